"""Simulated missingness: which of the observed entries are to be hidden.
Layer: datasets, private."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mmvae.datasets import _checks


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


def blanked(
    value: Tensor,  # shape: (N, *event)
    obs_mask: Tensor,  # shape: (N,) or (N, *event), bool, True = observed
    entries: Tensor,  # shape: (N, 1) or (N, number of cells), bool, True = hide
) -> tuple[Tensor, Tensor, Tensor]:  # shapes: (N, *event), (N,) or (N, *event), (N, *event)
    """A modality with entries hidden, NaN or 0 in their place; its mask; and which cells are gone."""
    by_row = entries.shape[-1] == 1
    gone = entries.reshape((-1,) if by_row else value.shape).to(value.device)
    cells = _checks.cells(gone, value)
    blank = value.masked_fill(cells, torch.nan if value.is_floating_point() else 0)
    keep_rows = by_row and obs_mask.dim() == 1
    mask = obs_mask & ~gone if keep_rows else _checks.cells(obs_mask, value) & ~cells
    return blank, _checks.collapse(mask), cells
