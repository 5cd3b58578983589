"""Count distributions that read integer values in the precision of their parameters.

Layer: distributions.
"""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

__all__ = ["Binomial", "NegativeBinomial", "Poisson"]


class Binomial(dist.Binomial):
    """
    Pyro's ``Binomial``, exact in float64 for integer values: torch takes their log-factorials in float32.

    Example::

        >>> import torch
        >>> fn = Binomial(torch.tensor(40.0, dtype=torch.float64), logits=torch.zeros((), dtype=torch.float64))
        >>> bool(fn.log_prob(torch.tensor(7)) == fn.log_prob(torch.tensor(7.0, dtype=torch.float64)))
        True
    """

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.to(self._param.dtype))


class NegativeBinomial(dist.NegativeBinomial):
    """Pyro's ``NegativeBinomial``, exact in float64 for integer values."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.to(self._param.dtype))


class Poisson(dist.Poisson):
    """Pyro's ``Poisson``, exact in float64 for integer values."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.to(self.rate.dtype))
