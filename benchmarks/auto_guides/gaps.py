"""How far bounds lie below log p(x_O): per story, per mask pattern, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_mmvae as mm

__all__ = ["dataset_weights", "measure", "nothing", "patterns_of", "prior_weights", "row_weights"]


def nothing(data: Any = None, obs_mask: Any = None) -> None:
    """The guide without latents: what it lacks is proposed from the story's prior."""


@torch.no_grad()
def row_weights(
    model: Any, guide: Callable[..., Any], ds: mm.MultimodalDataset, draws: int
) -> Tensor:  # shape: (K, B), nats, float64
    """
    log p(x_O, z) - log q(z | x_O) at fresh draws; enumerated latents are summed out, as ``TraceEnum_ELBO`` does.

    Their mean over draws is the ELBO of a row, the log of their mean exponential IWAE.
    """
    ask = mm.inference.log_likelihood
    return torch.stack([ask(model, guide, ds, num_particles=1).double() for _ in range(draws)])


@torch.no_grad()
def dataset_weights(
    model: Any, guide: Callable[..., Any], ds: mm.MultimodalDataset, draws: int
) -> Tensor:  # shape: (K, 1), nats, float64
    """As :func:`row_weights` for a model with global latents: one weight of all rows and globals together per draw."""
    elbo = Trace_ELBO()
    return torch.tensor([[-elbo.loss(model, guide, ds.data, ds.obs_mask)] for _ in range(draws)]).double()


@torch.no_grad()
def prior_weights(model: Any, ds: mm.MultimodalDataset, draws: int) -> Tensor:  # shape: (K, 1), nats, float64
    """log p(x_O | z) of all rows, all latents, global ones too, drawn from the prior."""
    found = []
    for _ in range(draws):
        trace = poutine.trace(model).get_trace(ds.data, ds.obs_mask)
        total = trace.log_prob_sum(lambda name, site: site["infer"].get("modality") is not None)
        found.append(float(total))
    return torch.tensor(found).double().unsqueeze(-1)


def measure(
    log_p: Tensor,  # shape: (B,), or (1,) for a whole data set
    log_w: Tensor,  # shape: (K, B), or (K, 1)
    *,
    rows: int,
    patterns: Mapping[str, Tensor] | None = None,
    particles: int = 100,
) -> dict[str, Any]:
    """
    Gaps in nats per sample: ``"gap"`` of the ELBO and ``"IWAE gap"``, each with its standard error, and the patterns.

    The error is that of the mean over rows (draws included); with a single, whole data set that over draws.

    :param rows: the number of samples that ``log_w`` is about.
    :param patterns: name -> rows with that pattern of observed modalities, bool ``(B,)``.
    :param particles: K of IWAE.
    """
    gap = log_p - log_w  # shape: (K, B)
    groups = log_w[: len(log_w) // particles * particles].reshape(-1, particles, log_w.shape[-1])
    iwae = log_p - (groups.logsumexp(1) - math.log(particles))
    scale = log_w.shape[-1] / rows
    found: dict[str, Any] = {"gap": scale * float(gap.mean()), "error": scale * _error(gap)}
    found |= {"IWAE gap": scale * float(iwae.mean()), "IWAE error": scale * _error(iwae)}
    means = gap.mean(0)
    by_pattern = {} if patterns is None else patterns
    found["patterns"] = {
        name: {"gap": float(means[chosen].mean()), "error": _error(gap[:, chosen]), "rows": int(chosen.sum())}
        for name, chosen in by_pattern.items()
    }
    return found


def _error(gap: Tensor) -> float:  # gap, shape: (K, B)
    """Standard error of the mean: over rows where there are several, else over draws."""
    values = gap.mean(0) if gap.shape[1] > 1 else gap[:, 0]
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def patterns_of(ds: mm.MultimodalDataset) -> dict[str, Tensor]:  # {name: shape (B,), bool}
    """Which rows show which modalities, in whole or in part; "nothing" where none."""
    seen = torch.stack([x.reshape(len(x), -1).any(-1) for x in ds.obs_mask.values()], -1)
    found: dict[str, Tensor] = {}
    for row in seen.unique(dim=0):
        names = [m for m, there in zip(ds.obs_mask, row.tolist(), strict=True) if there]
        found[" + ".join(names) if names else "nothing"] = (seen == row).all(-1)
    return found
