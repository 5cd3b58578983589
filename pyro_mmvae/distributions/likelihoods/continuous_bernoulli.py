"""The continuous Bernoulli, exact at every logit.

Layer: distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["ContinuousBernoulli"]

_SMALL = 0.25  # below it, series; the first neglected term is under 1e-14


def _split(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Where |l| is small, and |l| kept away from 0, so that no branch of a where has a bad gradient."""
    size = logits.abs()
    small = size < _SMALL
    return small, torch.where(small, torch.full_like(size, _SMALL), size)


class ContinuousBernoulli(TorchDistribution):
    r"""
    Exponential density on [0, 1].

    .. math:: p(x) = \frac{l}{e^l - 1} e^{l x}, \qquad x \in [0, 1]

    The same family as ``torch.distributions.ContinuousBernoulli(logits=l)``, which clamps ``sigmoid(l)`` and is
    therefore not normalized beyond logits of about 16 in float32 (0.6 nats too low per feature at 30).
    Law: the density integrates to 1 for every logit, and ``l = 0`` is uniform.

    Example::

        >>> fn = ContinuousBernoulli(torch.tensor([0.0, 30.0]))
        >>> fn.log_prob(torch.ones(2))
        tensor([0.0000, 3.4012])
        >>> fn.mean
        tensor([0.5000, 0.9667])

    :param logits: real, any shape; not log-odds of a probability, the mean is not their sigmoid.

    [1] *The continuous Bernoulli: fixing a pervasive error in variational autoencoders*, Loaiza-Ganem and Cunningham,
    NeurIPS 2019, arXiv:1907.06845, eq. (4).
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ContinuousBernoulli:
        new = self._get_checked_instance(ContinuousBernoulli, _instance)
        batch_shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(batch_shape)
        super(ContinuousBernoulli, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_normalizer(self) -> Tensor:
        r""":math:`\log \int_0^1 e^{l x} dx`, shape: batch."""
        square = self.logits.square()
        tail = square * (1 / 181440 - square / 9676800)
        series = self.logits / 2 + square * (1 / 24 + square * (-1 / 2880 + tail))
        small, size = _split(self.logits)
        closed = self.logits.clamp(min=0) + torch.log(-torch.expm1(-size)) - size.log()
        return torch.where(small, series, closed)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return value * self.logits - self.log_normalizer()

    @property
    def mean(self) -> Tensor:
        square = self.logits.square()
        series = 0.5 + self.logits * (1 / 12 + square * (-1 / 720 + square * (1 / 30240 - square / 1209600)))
        small, size = _split(self.logits)
        upper = -1 / torch.expm1(-size) - 1 / size  # the mean at |l|
        return torch.where(small, series, torch.where(self.logits > 0, upper, 1 - upper))

    @property
    def variance(self) -> Tensor:
        square = self.logits.square()
        series = 1 / 12 + square * (-1 / 240 + square * (1 / 6048 - square / 172800))
        small, size = _split(self.logits)
        return torch.where(small, series, 1 / size.square() - torch.exp(-size) / torch.expm1(-size).square())

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile at ``value`` in [0, 1]."""
        logits, value = torch.broadcast_tensors(self.logits, value)
        size = logits.abs()
        u = torch.where(logits < 0, 1 - value, value)  # by symmetry, the quantile at |l|
        tiny, spread = size < 1e-2, u * (1 - u)
        series = u + spread * size / 2 + spread * (1 - 2 * u) * size.square() / 6
        safe = torch.where(tiny, torch.ones_like(size), size)
        large = 1 + (u + (1 - u) * torch.exp(-safe)).log() / safe
        moderate = torch.log1p(u * torch.expm1(safe.clamp(max=1))) / safe.clamp(max=1)
        x = torch.where(tiny, series, torch.where(safe > 1, large, moderate))
        return torch.where(logits < 0, 1 - x, x).clamp(0, 1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))
