"""Simulated missingness: which of the observed entries are to be hidden.
Layer: datasets, private."""

from __future__ import annotations

import torch
from torch import Tensor


def hide_mcar(
    entries: Tensor,  # shape: (N, E), bool, True = there to be hidden
    rate: float,
    keep_one: bool,
    generator: torch.Generator,
) -> Tensor:  # shape: (N, E), bool, True = hide
    """
    Entries hidden completely at random, each with the same probability among rows with as many entries.

    With ``keep_one`` each entry of a row with k of them is hidden independently with probability p, and a row that
    would lose all gets one back, chosen uniformly; p solves :math:`p - p^k / k = rate`, which makes ``rate`` the
    expected fraction hidden. Rows with :math:`(k - 1) / k < rate` keep exactly one.
    """
    if rate == 0:
        return torch.zeros_like(entries)
    count = entries.sum(-1)
    p = _probability(count, rate) if keep_one else torch.full_like(count, rate, dtype=torch.float64)
    hidden = entries & (_uniform(entries, generator) < p.unsqueeze(-1))
    if keep_one:
        lost = (hidden.sum(-1) == count) & (count > 0)
        back = _uniform(entries, generator).masked_fill(~entries, -1.0).argmax(-1)
        hidden[lost, back[lost]] = False
    return hidden


def _uniform(entries: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(entries.shape, generator=generator, dtype=torch.float64, device=generator.device)


def _probability(
    count: Tensor,  # shape: (N,), integers k
    rate: float,
) -> Tensor:  # shape: (N,)
    """Smallest p with p - p^k / k >= rate, or 1 where there is none; by bisection, since the left side rises in p."""
    k = count.clamp(min=1).double()
    low, high = torch.zeros_like(k), torch.ones_like(k)
    for _ in range(60):
        middle = (low + high) / 2
        short = middle - middle**k / k < rate
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return high
