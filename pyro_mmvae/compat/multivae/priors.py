"""Priors of a checkpoint, put into the model: each function takes them out of the state.

Layer: compat.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_mmvae.compat.multivae.configs import Config, family_of
from pyro_mmvae.compat.multivae.default import State
from pyro_mmvae.stories import NormalPrior

__all__ = ["put_cmvae", "put_mmvae", "put_mmvaeplus"]


def put_mmvae(config: Config, state: State, vae: Any) -> None:
    """p(z) of MMVAE."""
    loc, raw = state.pop("prior_mean"), state.pop("prior_log_var")
    _put_scale(vae.model.story.program.prior, loc[0], _scale(config, raw[0]))


def put_mmvaeplus(config: Config, state: State, vae: Any) -> None:
    """p(z, w), one for all modalities, and the auxiliary priors of MMVAE+."""
    loc, raw = state.pop("mean_priors.shared")[0], state.pop("logvars_priors.shared")[0]
    size = int(config["latent_dim"])
    scale = _scale(config, raw)
    _put_scale(vae.model.story.program.prior, loc[:size], scale[:size])
    _put_private(vae, loc[size:], scale[size:])
    _put_auxiliary(config, state, vae, "mean_priors", "logvars_priors")


def put_cmvae(config: Config, state: State, vae: Any) -> None:
    """Clusters, p(w) and the auxiliary priors of CMVAE."""
    prior, logits = vae.model.story.program.prior, state.pop("_pc_params")
    active = logits.isfinite()  # pruned clusters have a logit of minus infinity
    for i in range(len(prior.loc)):
        prior.loc.data[i] = state.pop(f"mean_clusters.{i}")[0]
        state.pop(f"logvar_clusters.{i}")  # never learned: scale 1
    prior.logits.data.copy_(torch.where(active, logits, 0.0))
    prior.active.copy_(active)
    loc, raw = state.pop("w_mean_prior")[0], state.pop("w_logvar_prior")[0]
    _put_private(vae, loc, _scale(config, raw))
    _put_auxiliary(config, state, vae, "r_mean_priors", "r_logvars_priors")


def _put_private(vae: Any, loc: Tensor, scale: Tensor) -> None:
    """One p(w) for all modalities."""
    for prior in vae.model.story.program.private_priors.values():
        _put_scale(prior, loc, scale)


def _put_auxiliary(config: Config, state: State, vae: Any, locs: str, raws: str) -> None:
    """The priors r that explain other modalities in training."""
    for m, own in vae.model.story.program.private_priors.items():
        loc, scale = state.pop(f"{locs}.{m}")[0], _scale(config, state.pop(f"{raws}.{m}")[0])
        learned = vae.guide.fusion[f"z_{m}"].auxiliary
        if learned is not None:
            _put_scale(learned, loc, scale)
        elif not _has(own, loc, scale):
            raise ValueError(f"the auxiliary prior of {m!r} is fixed and yet not p(w), which has no counterpart here")


def _scale(config: Config, raw: Tensor) -> Tensor:  # shapes: (D,)
    """multivae's scale of a prior, of what it calls the log-covariance whatever the family."""
    family = family_of(config)
    if family == "laplace_softmax":
        return len(raw) * raw.softmax(-1)  # it adds 1e-6, which the scales here, of mean 1, cannot
    return (0.5 * raw).exp() if family == "normal" else softplus(raw) + 1e-6


def _put_scale(
    prior: Any,
    loc: Tensor,  # shape: (D,)
    scale: Tensor,  # shape: (D,)
) -> None:
    """
    Values of a named prior.

    :raises ValueError: if it cannot have them.
    """
    with torch.no_grad():
        if isinstance(prior, NormalPrior):
            prior.loc.copy_(loc)
            prior.log_scale.copy_(scale.log())
        else:
            prior.logits.copy_(scale.log())
        if not _has(prior, loc, scale):
            raise ValueError(f"a Laplace prior here has location 0 and scales of mean 1, saved is {scale.tolist()}")


def _has(prior: Any, loc: Tensor, scale: Tensor) -> bool:
    own = prior().base_dist
    return torch.allclose(own.loc, loc) and torch.allclose(own.scale, scale, rtol=1e-4)
