"""A Normal whose scale is shared by many entries, scored without expanding it.

Layer: distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["SharedScaleNormal"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class SharedScaleNormal(dist.Normal):
    """
    ``Normal(loc, scale)`` for a scale that is a number, or has fewer dimensions than the draws.

    Semantically equivalent to ``dist.Normal``; logarithm and square of the scale are taken on its own shape, not on
    that of ``loc``.

    Example::

        >>> SharedScaleNormal(torch.zeros(3, 2), 1.0).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3, 2])

    :param loc: location.
    :param scale: standard deviation, broadcastable to ``loc``.
    """

    own_scale: Tensor | float

    def __init__(self, loc: Tensor, scale: Tensor | float, validate_args: bool | None = None) -> None:
        super().__init__(loc, scale, validate_args=validate_args)
        self.own_scale = scale

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> SharedScaleNormal:
        new = super().expand(torch.Size(batch_shape), self._get_checked_instance(SharedScaleNormal, _instance))
        new.own_scale = self.own_scale
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        scale = self.own_scale
        log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
        error = self.loc - value
        return error * error * (-0.5 / (scale * scale)) - (log_scale + _HALF_LOG_TWO_PI)
