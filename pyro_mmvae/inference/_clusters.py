"""Which latent has clusters, what each modality says about them, and how modalities are put together.

Layer: inference, private.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.distributions import Mixture, unwrap
from pyro_mmvae.inference._anatomy import anatomy
from pyro_mmvae.inference._batch import Batch
from pyro_mmvae.inference._run import encode, local_latents, outer_form, run_guide, run_model
from pyro_mmvae.inference.predictive import PredictMessenger
from pyro_mmvae.masks import ObsMask, restrict
from pyro_mmvae.stories import MixturePrior

__all__ = ["clustered", "over_observed", "per_modality", "vote"]


def clustered(batch: Batch, latent: str | None) -> tuple[str, MixturePrior]:
    """The latent with a mixture prior, and the prior, found by one run of the story on one row."""
    if not batch.is_story:
        raise NotImplementedError(
            f"clusters are those of a story's prior, and {type(batch.model).__name__} has no story. Fix: make the "
            "model with pyro_mmvae.observe(story, modalities)."
        )
    model: Any = batch.model
    row = batch.take(slice(0, 1))
    nothing = row.masks(())
    feeding = anatomy(row).feeding((), row.names)
    trace = run_model(row, nothing, {}, None, outer=PredictMessenger(row.data, nothing, (), feeding=feeding))
    sites = local_latents(trace)
    priors = [part for part in model.modules() if isinstance(part, MixturePrior)]
    found = {name: prior for name, site in sites.items() for prior in priors if _is_prior_of(prior, site["fn"])}
    if latent is not None and latent not in found:
        raise ValueError(f"latent: {latent!r} has no MixturePrior; latents that have one: {list(found)}.")
    if not found:
        raise ValueError(
            f"no latent of the story has clusters; its latents are {list(sites)}. Fix: give one the prior "
            "pyro_mmvae.stories.MixturePrior(latent_dim, num_clusters)."
        )
    if latent is None and len(found) > 1:
        raise ValueError(f"latent: several have clusters, {list(found)}. Fix: latent={next(iter(found))!r}.")
    name = next(iter(found)) if latent is None else latent
    return name, found[name]


def _is_prior_of(prior: MixturePrior, fn: Any) -> bool:
    """Whether the distribution is what this prior returned: its locations are the prior's own, expanded."""
    own = getattr(unwrap(fn.components), "loc", None) if isinstance(fn, Mixture) else None
    return isinstance(own, Tensor) and own.untyped_storage().data_ptr() == prior.loc.untyped_storage().data_ptr()


def per_modality(
    batch: Batch, masks: ObsMask, site: str, prior: MixturePrior, draws: int
) -> tuple[Tensor, Tensor]:  # shape: (K, M, B, C), (M, B)
    """log p(z_m | c) at draws from each modality's own posterior, and which of these mean something."""
    experts = encode(batch, masks)
    names = _informing(batch, site)
    parts = []
    for m in names:
        latents = local_latents(run_guide(batch, restrict(masks, (m,)), draws, experts))
        if site not in latents:
            raise ValueError(
                f"the guide lacks the latent {site!r}; it has {list(latents)}. Fix: infer it in the guide."
            )
        z = outer_form(latents[site]["value"], latents[site], batch, draws)
        if z.dim() != 3:
            raise NotImplementedError(
                f"latent {site!r} lies in a plate of the story's own, of shape {tuple(z.shape[1:-2])}. Fix: one latent "
                "vector per sample."
            )
        parts.append(torch.stack([prior.log_components(x) for x in z]))  # draw by draw: (B, C, D) at a time
    return torch.stack(parts, 1), torch.stack([masks.rows[m] for m in names])


def _informing(batch: Batch, site: str) -> tuple[str, ...]:
    """Modalities that tell something about the latent: those with an encoder of it, in guides that have encoders."""
    encoders = getattr(batch.guide, "encoders", {})
    own = [m for m in batch.names if m in encoders[site]] if site in encoders else []
    return tuple(own) if own else batch.names


def over_observed(
    values: Tensor,  # shape: (M, B, *rest)
    observed: Tensor,  # shape: (M, B)
) -> Tensor:  # shape: (B, *rest)
    """The mean over observed modalities; 0 where there are none."""
    shape = observed.shape + (1,) * (values.dim() - 2)
    total = torch.where(observed.reshape(shape), values, 0.0).sum(0)
    return total / observed.sum(0).clamp(min=1).reshape(shape[1:])


def vote(
    probabilities: Tensor,  # shape: (M, B, C)
    observed: Tensor,  # shape: (M, B)
) -> Tensor:  # shape: (B,)
    """The cluster most often chosen by observed modalities; of equals the smallest index."""
    ballots = torch.nn.functional.one_hot(probabilities.argmax(-1), probabilities.shape[-1])
    return (ballots * observed.unsqueeze(-1)).sum(0).argmax(-1)
