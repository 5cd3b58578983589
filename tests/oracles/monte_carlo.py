"""Plain Monte Carlo estimates of importance-weighted bounds, with their standard errors.

Test layer: every estimate is a mean of independent repeats of the definition; chunked only to bound memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from .linear_gaussian import Gaussian, LinearGaussian, Masks
from .products import mixture_components
from .statistics import mean_and_se
from .terms import Component, log_mixture

CHUNK = 2**18  # draws held at once


def log_weight(
    model: LinearGaussian,
    components: list[Component],
    z: Tensor,  # shape: (N, K, L)
    data: Mapping[str, Tensor],
    target: Masks,
    row: int,
    *,
    rescale: Mapping[str, float] | None = None,
    beta: float = 1.0,
) -> Tensor:  # shape: (N, K)
    r"""
    Log-weight of draws for one row, in nats.

    .. math:: \log w(z) = \sum_{m \in A} \lambda_m \log p(x_m \mid z) + \beta (\log p(z) - \log q(z))

    :param components: the density q in the denominator, a mixture (of one component, if it is a Gaussian).
    """
    weights = rescale if rescale is not None else {}
    one_row = {m: x[row : row + 1] for m, x in data.items()}
    one_mask = {m: a[row : row + 1] for m, a in target.items()}
    scored = model.log_likelihoods(z.unsqueeze(-2), one_row, one_mask)
    total = sum(weights.get(m, 1.0) * value.squeeze(-1) for m, value in scored.items())
    return total + beta * (model.log_prior(z) - log_mixture(z, components))


def iwae(
    model: LinearGaussian,
    q: Gaussian,  # shapes: (B, L)
    data: Mapping[str, Tensor],
    target: Masks,
    *,
    num_particles: int,
    repeats: int,
    generator: torch.Generator,
    rescale: Mapping[str, float] | None = None,
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:  # shapes: (B,), (B,)
    """
    E log (1/K) sum_k w(z_k), z_k ~ q, of each row: mean over ``repeats`` independent estimates and standard error.

    With K = 1 it is the ELBO; with the exact posterior it is log p(x_O) with standard error 0.
    """
    means, errors = [], []
    for row in range(q[0].shape[0]):
        component = (1.0, q[0][row].double(), q[1][row].double())
        draws = []
        for size in _chunks(repeats, num_particles):
            z = _draw(component, size, num_particles, generator)
            w = log_weight(model, [component], z, data, target, row, rescale=rescale, beta=beta)
            draws.append(_log_mean_exp(w))
        mean, error = mean_and_se(torch.cat(draws))
        means.append(mean)
        errors.append(error)
    return torch.stack(means), torch.stack(errors)


def mixture_iwae(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    num_particles: int,
    repeats: int,
    generator: torch.Generator,
    bound: Literal["looser", "tight"] = "looser",
    rescale: Mapping[str, float] | None = None,
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:  # shapes: (B,), (B,)
    """
    MMVAE's bounds, K draws from every observed expert, the mixture density in the denominator; 0 for an empty row.

    looser: mean over experts of E log (1/K) sum_k w; tight: E log of the mean of w over experts and draws.
    """
    means, errors = [], []
    for row in range(next(iter(obs_mask.values())).shape[0]):
        components = mixture_components(experts, obs_mask, row)
        if not components:
            means.append(torch.zeros((), dtype=torch.float64))
            errors.append(torch.zeros((), dtype=torch.float64))
            continue
        draws = []
        for size in _chunks(repeats, num_particles * len(components)):
            parts = []
            for component in components:
                z = _draw(component, size, num_particles, generator)
                parts.append(log_weight(model, components, z, data, obs_mask, row, rescale=rescale, beta=beta))
            if bound == "tight":
                draws.append(_log_mean_exp(torch.cat(parts, -1)))
            else:
                draws.append(torch.stack([_log_mean_exp(part) for part in parts]).mean(0))
        mean, error = mean_and_se(torch.cat(draws))
        means.append(mean)
        errors.append(error)
    return torch.stack(means), torch.stack(errors)


def _draw(component: Component, repeats: int, num_particles: int, generator: torch.Generator) -> Tensor:
    """Draws of one component, shape (repeats, K, L)."""
    _, loc, scale = component
    noise = torch.randn(repeats, num_particles, loc.shape[-1], generator=generator, dtype=torch.float64)
    return loc + scale * noise


def _log_mean_exp(w: Tensor) -> Tensor:  # shapes: (N, K) -> (N,)
    """log (1/K) sum_k exp(w_k)."""
    return torch.logsumexp(w, -1) - torch.log(torch.tensor(float(w.shape[-1]), dtype=torch.float64))


def _chunks(repeats: int, per_repeat: int) -> list[int]:
    """Sizes that add up to ``repeats``, none holding more than CHUNK draws (but one repeat at least)."""
    size = max(1, CHUNK // per_repeat)
    return [min(size, repeats - start) for start in range(0, repeats, size)]
