"""Pareto's k of importance weights, for all rows at once.

Layer: inference, private.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["pareto_k", "tail_length"]


def tail_length(count: int) -> int:
    """How many of ``count`` weights make up the tail: min(K / 5, 3 sqrt(K))."""
    return math.ceil(min(0.2 * count, 3.0 * math.sqrt(count)))


def pareto_k(
    largest: Tensor,  # shape: (n + 1, B), the largest log-weights, descending
    count: int,
) -> Tensor:  # shape: (B,)
    r"""
    Shape k of the generalized Pareto distribution fitted to the tail of the weights.

    Below 0.7 the estimate can be trusted; the mean of the weights converges as :math:`K^{-1/2}` for k < 0.5, and has
    no variance above. Semantically equivalent to ``arviz.psislw`` of each row. NaN where all weights in the tail are
    equal (nothing to fit), infinite for fewer than 5 of them.

    [1] *Pareto Smoothed Importance Sampling*, Vehtari, Simpson, Gelman, Yao and Gabry, JMLR 2024, arXiv:1507.02646,
    section 3. [2] *A New and Efficient Estimation Method for the Generalized Pareto Distribution*, Zhang and Stephens,
    Technometrics 2009, equations (7) to (11).

    :param count: number of all weights, K.
    """
    n = min(tail_length(count), largest.shape[0] - 1)
    top = largest[: n + 1]
    if n < 5:
        flat = top[0] == top[-1]
        return torch.where(flat, torch.nan, torch.inf).to(top)
    scaled = (top - top[0]).exp()
    excess = (scaled[:n] - scaled[n]).flip(0)  # ascending
    return torch.where(excess[-1] <= 1e-10, torch.nan, _shape(excess))


def _shape(
    x: Tensor,  # shape: (n, B), ascending, >= 0
) -> Tensor:  # shape: (B,)
    """The posterior mean of k under Zhang and Stephens' prior for theta and a weak one at k = 1/2 (weight 10)."""
    n = x.shape[0]
    size = 30 + int(math.sqrt(n))
    grid = torch.arange(1, size + 1, device=x.device, dtype=x.dtype) - 0.5
    quartile = x[int(n / 4 + 0.5) - 1].clamp(min=torch.finfo(x.dtype).tiny)
    theta = 1.0 / x[-1] + (1.0 - (size / grid).sqrt()).unsqueeze(-1) / (3.0 * quartile)  # (m, B)
    k = torch.stack([torch.log1p(-t * x).mean(0) for t in theta])
    profile = n * ((-theta / k).log() - k - 1.0)
    theta_hat = (theta * profile.softmax(0)).sum(0)
    k_hat = torch.log1p(-theta_hat * x).mean(0)
    return (n * k_hat + 10.0 * 0.5) / (n + 10.0)
