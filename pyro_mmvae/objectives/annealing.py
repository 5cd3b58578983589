"""Schedules: weights that change with the annealing clock.

Layer: objectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from pyro_mmvae.objectives.subsets import Context

__all__ = ["Annealed"]


@dataclass(frozen=True)
class Annealed:
    r"""
    A weight that rises from nearly 0 to ``value`` over ``steps`` training steps.

    .. math:: \text{linear: } v \min(1, (t + 1) / T), \qquad
        \text{cosine: } v \tfrac12 (1 - \cos(\pi \min(1, (t + 1) / T)))

    Cyclical: the linear rise fills the first half of every period of ``steps`` steps (Fu et al. 2019,
    arXiv:1903.10145). The clock counts training steps and stands still in evaluation.

    Example::

        >>> weight = Annealed(2.0, steps=4)
        >>> [weight.at(t) for t in (0, 1, 3, 100)]
        [0.5, 1.0, 2.0, 2.0]

    :param value: the weight at the end.
    :param steps: T; 0 means no annealing.
    :param shape: "linear", "cosine" or "cyclical".
    :param times: a further factor, per sample: a function of the :class:`Context` that gives ``(B,)``.
    """

    value: float = 1.0
    steps: int = 0
    shape: Literal["linear", "cosine", "cyclical"] = "linear"
    times: Callable[[Context], Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"Annealed: steps must be >= 0, got {self.steps}.")
        if self.shape not in ("linear", "cosine", "cyclical"):
            raise ValueError(f"Annealed: shape is 'linear', 'cosine' or 'cyclical', got {self.shape!r}.")

    def at(self, step: int) -> float:
        """The weight after ``step`` training steps."""
        if self.steps == 0:
            return self.value
        if self.shape == "cyclical":
            return self.value * min(1.0, 2 * (step % self.steps + 1) / self.steps)
        share = min(1.0, (step + 1) / self.steps)
        return self.value * (share if self.shape == "linear" else 0.5 * (1 - math.cos(math.pi * share)))

    def __call__(self, context: Context) -> Tensor | float:  # shape: (B,)
        now = self.at(context.step)
        return now if self.times is None else now * self.times(context)
