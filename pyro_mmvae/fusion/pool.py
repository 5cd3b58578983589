"""Masked precision pooling: every product of Gaussians is one function.

Layer: fusion.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.distributions import SharedScaleNormal, Where, unwrap

__all__ = ["gaussian_prior", "precision_pool", "stacked", "uniform_log_weights", "with_prior"]


def precision_pool(
    loc: Tensor,  # shape: (M, B, D)
    scale: Tensor,  # shape: (M, B, D), standard deviation
    weights: Tensor,  # shape: (M, *batch, D or 1), 0 = leave out
    prior_loc: Tensor,  # shape: broadcastable to (*batch, D)
    prior_scale: Tensor,  # shape: broadcastable to (*batch, D)
    prior_weight: Tensor | float,  # shape: broadcastable to (*batch, D)
) -> Any:  # Normal, batch_shape: batch, event_shape: (D,)
    r"""
    Weighted product of Gaussians.

    .. math:: \Lambda = w_0 \tau_0 + \sum_m w_m \tau_m, \qquad
        \mu = \Lambda^{-1} \Bigl( w_0 \tau_0 \mu_0 + \sum_m w_m \tau_m \mu_m \Bigr), \qquad \sigma^2 = \Lambda^{-1}

    Weights are masked; no variance is ever infinite.

    Example::

        >>> one = torch.ones(1, 1)
        >>> q = precision_pool(2 * one[None], one[None], one[None], 0 * one, one, 1.0)
        >>> float(q.mean), round(float(q.variance), 3)
        (1.0, 0.5)

    :param weights: exponents of the experts; the total precision must be positive.
    """
    tau = 1 / (scale * scale)
    weights = weights.to(loc.dtype)
    weighted = weights * stacked(tau, weights)
    prior_tau = 1 / (prior_scale * prior_scale)
    if isinstance(prior_weight, Tensor) or prior_weight != 1.0:
        prior_tau = prior_tau * prior_weight
    total = weighted.sum(0) + prior_tau
    first = (weighted * stacked(loc, weights)).sum(0) + prior_tau * prior_loc
    return SharedScaleNormal(first / total, total.rsqrt()).to_event(1)


def stacked(
    params: Tensor,  # shape: (M, B, D)
    like: Tensor,  # shape: (M, *batch, D or 1)
) -> Tensor:  # shape: (M, 1, ..., B, D)
    """Expert parameters aligned with masks that have leading batch dimensions."""
    return params.reshape(params.shape[:1] + (1,) * (like.dim() - params.dim()) + params.shape[1:])


def gaussian_prior(prior: Any) -> tuple[Tensor, Tensor, bool]:
    """
    Location and standard deviation of the prior, and whether it is Gaussian.

    A prior of another family enters a product by its moments.
    """
    base = unwrap(prior)
    if isinstance(base, dist.Normal):
        return base.loc, base.scale, True
    return prior.mean, prior.variance.sqrt(), False


def with_prior(prior: Any, posterior: Any, any_observed: Tensor) -> Any:
    """``posterior`` where something is observed, the prior itself elsewhere; of one family, by its parameters."""
    own, other = unwrap(posterior), unwrap(prior)
    kind = next((k for k in (dist.Normal, dist.Laplace) if isinstance(own, k) and isinstance(other, k)), None)
    if kind is None or len(posterior.event_shape) != 1 or own.batch_shape[-1:] != other.batch_shape[-1:]:
        return Where(any_observed, posterior, prior)
    chosen = any_observed.unsqueeze(-1)
    loc, scale = torch.where(chosen, own.loc, other.loc), torch.where(chosen, own.scale, other.scale)
    return (SharedScaleNormal if kind is dist.Normal else kind)(loc, scale).to_event(1)


def uniform_log_weights(mask: Tensor, dtype: torch.dtype) -> Tensor:  # shape: (E, *batch)
    """Log of 1/#valid on valid components, -inf elsewhere; uniform where none is valid (the caller replaces it)."""
    safe = mask | ~mask.any(0)
    return torch.where(safe, -safe.sum(0).to(dtype).log(), -torch.inf)
