"""One of two distributions, row by row.

Layer: distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, kl_divergence, register_kl
from torch.distributions.constraints import Constraint

from pyro_mmvae.distributions.log_uniform import stand_ins
from pyro_mmvae.distributions.params import map_params
from pyro_mmvae.distributions.shapes import broadcast

__all__ = ["Where"]


class Where(TorchDistribution):
    r"""
    ``first`` in rows where ``condition`` is True, ``second`` elsewhere.

    Used for posteriors that fall back to the story's prior where nothing is observed.
    Laws: ``log_prob`` is that of the branch, bit for bit; KL to any p is row-wise the branch's KL. Both branches are
    drawn in every row; an improper ``second``, such as :class:`LogUniform`, gives zeros: every dimension switched off.

    Example::

        >>> import pyro.distributions as dist
        >>> q = Where(torch.tensor([True, False]), dist.Normal(5.0, 1.0), dist.Normal(0.0, 1.0))
        >>> q.mean.tolist()
        [5.0, 0.0]

    :param condition: bool ``(*batch,)``.
    :param first: distribution with this event shape.
    :param second: another one over the same space.
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(self, condition: Tensor, first: Any, second: Any) -> None:
        if first.event_shape != second.event_shape:
            raise ValueError(f"Where: event shapes {tuple(first.event_shape)} and {tuple(second.event_shape)} differ.")
        shape = broadcast(condition.shape, first.batch_shape, second.batch_shape)
        self.condition, self.first, self.second = condition, first.expand(shape), second.expand(shape)
        self.has_rsample = bool(first.has_rsample)
        super().__init__(shape, first.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return self.second.support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Where:
        shape = torch.Size(batch_shape)
        return Where(self.condition, self.first.expand(shape), self.second.expand(shape))

    def map_params(self, f: Callable[[Tensor, Any, int], Tensor], event_dim: int) -> Where:
        """The same choice with ``f`` applied to every parameter, see :func:`pyro_mmvae.distributions.map_params`."""
        condition = f(self.condition.expand(self.batch_shape), None, event_dim)
        return Where(condition, map_params(self.first, f, event_dim), map_params(self.second, f, event_dim))

    def _select(self, first: Tensor, second: Tensor, event: bool = True) -> Tensor:
        condition = self.condition.reshape(self.condition.shape + (1,) * (len(self.event_shape) if event else 0))
        return torch.where(condition, first, second)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with stand_ins():
            second = self.second.rsample(shape) if self.second.has_rsample else self.second.sample(shape)
        return self._select(self.first.rsample(shape), second)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            with stand_ins():
                second = self.second.sample(shape)
            return self._select(self.first.sample(shape), second)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._select(self.first.log_prob(value), self.second.log_prob(value), event=False)

    @property
    def mean(self) -> Tensor:
        return self._select(self.first.mean, self.second.mean)

    @property
    def variance(self) -> Tensor:
        return self._select(self.first.variance, self.second.variance)


@register_kl(Where, Distribution)
def _kl_where(q: Where, p: Distribution) -> Tensor:
    return torch.where(q.condition, kl_divergence(q.first, p), kl_divergence(q.second, p))


@register_kl(Where, Where)
def _kl_where_where(q: Where, p: Where) -> Tensor:
    first, second = (
        torch.where(p.condition, kl_divergence(own, p.first), kl_divergence(own, p.second))
        for own in (q.first, q.second)
    )
    return torch.where(q.condition, first, second)
