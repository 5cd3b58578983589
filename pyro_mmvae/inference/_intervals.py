"""Central intervals from draws, many cells at a time.

Layer: inference, private.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["central", "student_quantile"]


def central(
    draws: Tensor,  # shape: (S, G)
    center: Tensor,  # shape: (G,), means of what the draws are from
    level: float,
    *,
    real: Tensor,  # shape: (G,), bool
    positive: Tensor,  # shape: (G,), bool
) -> tuple[Tensor, Tensor]:  # each shape: (G,), float64
    r"""
    Ends of central prediction intervals: a new draw lies between the order statistics of rank a and b of S draws with
    probability (b - a) / (S + 1), so the ends are those of rank q (S + 1), q the probability below.

    Between two ranks the ends of real and positive cells are interpolated, those of others are the farther draw. Where
    the draws do not reach so far (S + 1 < 2 / (1 - level)), real cells have
    :math:`c \pm t_S\, (\frac1S \sum_s (x_s - c)^2)^{1/2}`, t the quantile of Student's distribution, and positive ones
    the same of their logarithms; others end at the farthest draw.

    Example::

        >>> any_real = torch.tensor([True])
        >>> [x.item() for x in central(torch.arange(19.0)[:, None], torch.tensor([9.0]), 0.9, real=any_real,
        ...                            positive=~any_real)]
        [0.0, 18.0]
    """
    ordered, count = draws.double().sort(0).values, len(draws)
    smooth, below, ends = real | positive, (1 - level) / 2, []
    for q in (below, 1 - below):
        place = min(max(q * (count + 1) - 1, 0.0), count - 1.0)
        place = round(place) if abs(place - round(place)) < 1e-9 else place
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        ends.append(torch.where(smooth, low.lerp(high, place - math.floor(place)), low if q < 0.5 else high))
    if below * (count + 1) < 1 - 1e-9 and bool(smooth.any()):
        reach = _beyond(ordered, center.double(), student_quantile(1 - below, count), positive)
        ends = [torch.where(smooth, far, end) for far, end in zip(reach, ends, strict=True)]
    return ends[0], ends[1]


def _beyond(draws: Tensor, center: Tensor, factor: float, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Ends by the spread of the draws, of logarithms where cells are positive."""
    draws = torch.where(positive, draws.clamp(min=torch.finfo(draws.dtype).tiny).log(), draws)
    center = torch.where(positive, center.clamp(min=torch.finfo(draws.dtype).tiny).log(), center)
    reach = factor * (draws - center).square().mean(0).sqrt()
    ends = (center - reach, center + reach)
    low, high = (torch.where(positive, x.exp(), x) for x in ends)
    return low, high


def student_quantile(q: float, df: int) -> float:
    """
    Quantile of Student's t, q above one half, by bisection of its distribution function, which is a finite sum.

    Example::

        >>> round(student_quantile(0.95, 1), 3), round(student_quantile(0.975, 10), 3)
        (6.314, 2.228)

    Reference: *Handbook of Mathematical Functions*, Abramowitz and Stegun, 1964, eq. (26.7.3), (26.7.4).
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(df)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < 2 * q - 1 else (low, middle)
    return math.tan(low) * math.sqrt(df)


def _within(angle: float, df: int) -> float:
    """Probability of less than ``sqrt(df) * tan(angle)`` in absolute value."""
    square, odd = math.cos(angle) ** 2, df % 2
    term = math.cos(angle) if odd else 1.0
    total = term if df > 1 else 0.0
    for k in range(2 + odd, df - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
