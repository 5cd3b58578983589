"""A Normal whose scale is, in every batch, the best one.

Layer: distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["OptimalNormal"]


class OptimalNormal(TorchDistribution):
    r"""
    Normal with the maximum-likelihood scale of the values it is asked about.

    .. math::
        \log p(x) = \log \mathcal N(x;\, \mu, \sigma^2_x), \qquad
        \sigma^2_x = \max\Big(\frac{1}{N} \sum_i (x_i - \mu_i)^2,\; \epsilon^2\Big)

    The mean runs over everything one call of ``log_prob`` scores: rows, features, particles, terms. The scale is held
    constant in the backward pass; for the sum of ``log_prob`` this is the exact gradient, since the scale is optimal.
    Elementwise: wrap with ``to_event``. A batch statistic: the value of a row depends on the other rows, and the
    "density" is one only once the scale is fixed. Draws use ``scale``.

    Example::

        >>> fn = OptimalNormal(torch.zeros(2, 3), torch.tensor(1.0))
        >>> fn.log_prob(torch.full((2, 3), 2.0)).exp()[0, 0] * 2 * (2 * torch.pi) ** 0.5  # exp(-1/2)
        tensor(0.6065)

    :param loc: the mean, any shape.
    :param scale: standard deviation of draws, broadcastable to ``loc``.
    :param floor: smallest scale.
    :param scored: True where an entry is scored, broadcastable to ``loc``; None is everywhere. The others do not count.
    :param report: called at each ``log_prob`` with the sum of squared errors and their number; not under ``no_grad``.

    [1] *Simple and Effective VAE Training with Calibrated Decoders*, Rybkin, Daniilidis and Levine, ICML 2021,
    arXiv:2006.13202, eq. (5).
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        *,
        floor: float = 1e-3,
        scored: Tensor | None = None,
        report: Callable[[Tensor, Tensor], None] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.floor, self.scored, self.report = floor, scored, report
        super().__init__(self.loc.shape, validate_args=validate_args)

    def _copy(self, batch_shape: torch.Size, scored: Tensor | None) -> OptimalNormal:
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        new = OptimalNormal(loc, scale, floor=self.floor, scored=scored, report=self.report, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> OptimalNormal:
        return self._copy(torch.Size(batch_shape), self.scored)

    def mask(self, mask: bool | Tensor) -> OptimalNormal:  # type: ignore[override]
        """Pyro's ``.mask``: ``log_prob`` is 0 where ``mask`` is False, and the scale comes from the other entries."""
        scored = torch.as_tensor(mask, device=self.loc.device)
        batch = torch.broadcast_shapes(self.batch_shape, scored.shape)
        return self._copy(batch, scored if self.scored is None else self.scored & scored)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square()

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return dist.Normal(self.loc, self.scale, validate_args=False).rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        training = torch.is_grad_enabled()
        with torch.no_grad():
            error = (value - self.loc).square()
            seen = torch.ones_like(error) if self.scored is None else self.scored.expand(error.shape).to(error.dtype)
            total, count = (error * seen).sum(), seen.sum()
            scale = (total / count.clamp(min=1)).sqrt().clamp(min=self.floor)
            if self.report is not None and training:
                self.report(total, count)
        scores = dist.Normal(self.loc, scale.expand(self.loc.shape), validate_args=False).log_prob(value)
        return scores if self.scored is None else torch.where(self.scored, scores, torch.zeros_like(scores))
