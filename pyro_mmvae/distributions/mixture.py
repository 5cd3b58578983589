"""Mixtures of stacked components: draws with gradients for components and weights, density of the mixture.

Layer: distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_mmvae.distributions.implicit import follow_weights, has_weight_velocity
from pyro_mmvae.distributions.params import map_params
from pyro_mmvae.distributions.shapes import broadcast

__all__ = ["Mixture"]


class Mixture(TorchDistribution):
    r"""
    .. math:: q(z) = \sum_e \pi_e \, q_e(z)

    Each draw picks a component and is reparametrized within it, which gives the components their gradient, exact in
    expectation. Weights that carry a gradient get theirs, exact in expectation too, by implicit reparametrization
    [1, 2] if the components are independent Normals or Laplaces; it is noisy where components lie several scales
    apart, and takes memory of the event's size squared. Weights of other components get none from draws: there, and
    for less noise, use stratified terms (one draw per component, weights outside).

    Example::

        >>> import pyro.distributions as dist
        >>> q = Mixture(dist.Normal(torch.tensor([[0.0], [4.0]]), 1.0), torch.tensor([0.5, 0.5]).log().unsqueeze(-1))
        >>> q.batch_shape, q.mean.tolist()
        (torch.Size([1]), [2.0])

    :param components: distribution with batch shape ``(E, *batch)``.
    :param log_weights: ``(E, *batch)`` or broadcastable, normalized over E; -inf for absent components.

    [1] *Stochastic Backpropagation through Mixture Density Distributions*, Graves, 2016, arXiv:1607.05690.

    [2] *Implicit Reparameterization Gradients*, Figurnov, Mohamed and Mnih, NeurIPS 2018, arXiv:1805.08498.
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(
        self,
        components: Any,
        log_weights: Tensor,  # shape: (E, *batch)
    ) -> None:
        batch = components.batch_shape[1:]
        self.components = components
        self.log_weights = log_weights.expand(components.batch_shape)
        self.has_rsample = components.has_rsample
        super().__init__(batch, components.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return self.components.support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Mixture:
        shape = torch.Size(batch_shape)
        count = self.components.batch_shape[:1]
        lead = (1,) * (len(shape) - len(self.batch_shape))
        weights = self.log_weights.reshape(count + lead + self.batch_shape).expand(count + shape)
        return Mixture(_expand_stacked(self.components, shape), weights)

    def map_params(self, f: Callable[[Tensor, Any, int], Tensor], event_dim: int) -> Mixture:
        """The same mixture with ``f`` applied to every parameter, see :func:`pyro_mmvae.distributions.map_params`."""
        weights = f(self.log_weights, None, event_dim)
        return Mixture(map_params(self.components, f, event_dim), weights)

    def _draw(self, draws: Tensor, sample_shape: torch.Size) -> Tensor:
        weights = self.log_weights.movedim(0, -1).softmax(-1)
        index = torch.distributions.Categorical(weights, validate_args=False).sample(sample_shape)
        dim = len(sample_shape)
        index = index.unsqueeze(dim).reshape(index.unsqueeze(dim).shape + (1,) * len(self.event_shape))
        return draws.take_along_dim(index, dim).squeeze(dim)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        draws = self._draw(self.components.rsample(shape), shape)
        if self.log_weights.requires_grad and torch.is_grad_enabled() and has_weight_velocity(self.components):
            draws = follow_weights(self.components, self.log_weights, draws)
        return draws

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            return self._draw(self.components.sample(shape), shape)

    def log_prob(self, value: Tensor) -> Tensor:
        event = len(self.event_shape)
        dims = len(self.batch_shape)
        shape = broadcast(value.shape[: value.dim() - event], self.batch_shape)
        value = value.expand(shape + self.event_shape)
        scores = self.components.log_prob(value.unsqueeze(value.dim() - event - dims))
        return (scores + self.log_weights).logsumexp(scores.dim() - dims - 1)

    @property
    def mean(self) -> Tensor:
        return (self._weights() * self.components.mean).sum(0)

    @property
    def variance(self) -> Tensor:
        second = self.components.variance + self.components.mean.square()
        return (self._weights() * second).sum(0) - self.mean.square()

    def _weights(self) -> Tensor:
        weights = self.log_weights.exp()
        return weights.reshape(weights.shape + (1,) * len(self.event_shape))


def _expand_stacked(components: Any, shape: torch.Size) -> Any:
    """Expand ``(E, *batch)`` to ``(E, *shape)``: new dimensions go between E and batch."""
    batch = components.batch_shape
    new = len(shape) - (len(batch) - 1)
    if new:

        def insert(p: Tensor, constraint: Any, event_dim: int) -> Tensor:
            full = p.expand(batch + p.shape[p.dim() - event_dim :])
            return full.reshape(batch[:1] + (1,) * new + full.shape[1:])

        components = map_params(components, insert)
    return components.expand(batch[:1] + shape)
