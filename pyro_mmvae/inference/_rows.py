"""Blocks of rows as one distribution.

Layer: inference, private.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_mmvae.distributions import map_params

__all__ = ["Rows", "in_rows"]


class Rows(TorchDistribution):
    """
    Distributions of batch shapes ``(*lead, B_1), (*lead, B_2), ...`` as one of ``(*lead, B_1 + B_2 + ...)``.

    Example::

        >>> import pyro.distributions as dist
        >>> both = Rows([dist.Normal(torch.zeros(2), 1.0), dist.Normal(torch.ones(3), 1.0)])
        >>> both.mean.tolist(), both.sample((7,)).shape
        ([0.0, 0.0, 1.0, 1.0, 1.0], torch.Size([7, 5]))
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)
        self.has_rsample = all(p.has_rsample for p in parts)
        self.sizes = [p.batch_shape[-1] for p in parts]
        first = parts[0]
        super().__init__(first.batch_shape[:-1] + torch.Size([sum(self.sizes)]), first.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return self.parts[0].support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Rows:
        lead = tuple(batch_shape[:-1])
        return Rows([p.expand((*lead, size)) for p, size in zip(self.parts, self.sizes, strict=True)])

    def map_params(self, f: Callable[[Tensor, Any, int], Tensor], event_dim: int) -> Rows:
        """The same distribution with every parameter of every block replaced."""
        return Rows([map_params(p, f, event_dim) for p in self.parts])

    def _cat(self, parts: Sequence[Tensor], event_dim: int) -> Tensor:
        return torch.cat(list(parts), -1 - event_dim)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._cat([p.sample(torch.Size(sample_shape)) for p in self.parts], self.event_dim)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._cat([p.rsample(torch.Size(sample_shape)) for p in self.parts], self.event_dim)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        pieces = value.expand(shape).split(self.sizes, -1 - self.event_dim)
        return self._cat([p.log_prob(x) for p, x in zip(self.parts, pieces, strict=True)], 0)

    @property
    def mean(self) -> Tensor:
        return self._cat([p.mean for p in self.parts], self.event_dim)

    @property
    def variance(self) -> Tensor:
        return self._cat([p.variance for p in self.parts], self.event_dim)


def in_rows(parts: Sequence[Any]) -> Any:
    """The parts as one distribution; a single one stays itself."""
    return parts[0] if len(parts) == 1 else Rows(parts)
