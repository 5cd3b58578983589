"""Likelihoods whose network runs only when asked, and only on the rows that are scored.

Layer: distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_mmvae.distributions.event_mask import mask_event
from pyro_mmvae.distributions.shapes import broadcast

__all__ = ["Lazy", "Scored"]


class Lazy(TorchDistribution):
    r"""
    A likelihood :math:`p(x \mid h)` given by a network that has not run yet.

    Semantically equivalent to ``fn(*inputs)``. The network runs at the first :meth:`log_prob`, :meth:`sample` or
    ``mean``; :meth:`score` runs it on chosen rows alone.
    Laws: ``Lazy(fn, z).log_prob(x) == fn(z).log_prob(x)``; ``score`` equals it on the chosen rows and is 0 elsewhere.

    Example::

        >>> import pyro.distributions as dist
        >>> from torch.distributions import constraints
        >>> net = torch.nn.Linear(2, 3)
        >>> fn = lambda z: dist.Normal(net(z), 1.0).to_event(1)
        >>> x = Lazy(fn, torch.zeros(5, 2), event_shape=(3,), support=constraints.real_vector)
        >>> x.batch_shape, x.score(torch.zeros(5, 3), torch.tensor([True, True, False, False, False])).shape
        (torch.Size([5]), torch.Size([5]))

    :param fn: inputs -> Distribution with this event shape and the inputs' batch shape.
    :param inputs: tensors ``(*batch, *input_event)``, e.g. the latent z of shape ``(*batch, D)``.
    :param event_shape: shape of one observation.
    :param support: its support, known without running the network.
    :param input_event_dim: number of event dimensions of every input.
    :param cost: multiply-adds of the network per row, if known; small networks are not worth gathering for.
    :param has_rsample: whether draws are reparametrized, known without running the network.
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(
        self,
        fn: Callable[..., TorchDistribution],
        *inputs: Tensor,
        event_shape: Sequence[int],
        support: Constraint,
        input_event_dim: int = 1,
        cost: int | None = None,
        has_rsample: bool = False,
    ) -> None:
        if not inputs:
            raise ValueError("Lazy needs at least one input tensor, e.g. the latent z.")
        self.fn, self.inputs, self.input_event_dim, self.cost = fn, inputs, input_event_dim, cost
        self._support, self.has_rsample = support, has_rsample
        self._cache: list[TorchDistribution] = []  # shared with expanded copies: the network runs once
        batch = broadcast(*(x.shape[: x.dim() - input_event_dim] for x in inputs))
        super().__init__(torch.Size(batch), torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return self._support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Lazy:
        new = Lazy.__new__(Lazy)
        new.__dict__.update(self.__dict__)
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def dense(self) -> TorchDistribution:
        """The distribution over all rows; the network runs once."""
        if not self._cache:
            self._cache.append(self.fn(*self.inputs))
        fn = self._cache[0]
        return fn if fn.batch_shape == self.batch_shape else fn.expand(self.batch_shape)

    def __call__(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.dense()(torch.Size(sample_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.dense().sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.dense().rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.dense().log_prob(value)

    @property
    def mean(self) -> Tensor:
        return self.dense().mean

    @property
    def variance(self) -> Tensor:
        return self.dense().variance

    def score(
        self,
        value: Tensor,  # shape: (*batch, *event) or fewer leading dimensions
        mask: Tensor,  # shape: (*block,), bool, right-aligned with the batch: rows to score
        *,
        features: Tensor | None = None,  # shape: (B, *event), bool
        index: Tensor | None = None,  # shape: (R,), the rows of mask, flattened, if known
        name: str = "the modality",
    ) -> Tensor:  # shape: (*batch,)
        """
        Log-density on the rows where ``mask`` is True, 0 elsewhere; the network sees those rows alone.

        :param value: observed values, in the support also where they are not scored.
        :param features: per-feature mask of the value, if entries within a sample are missing.
        :param index: ``mask.flatten().nonzero()``, if the caller knows it (saves a device synchronization).
        :raises ValueError: if a BatchNorm network is left with a single row in training.
        """
        shape = broadcast(self.batch_shape, mask.shape)
        block = shape[len(shape) - mask.dim() :]
        lead = shape[: len(shape) - mask.dim()]
        if index is None:
            index = mask.expand(block).reshape(-1).nonzero().squeeze(-1)
        if index.numel() == 0:
            return self.inputs[0].new_zeros(shape)
        inputs = [_take_rows(x, self.input_event_dim, block, index) for x in self.inputs]
        fn = _run(self.fn, inputs, name)
        if features is not None:
            fn = mask_event(fn, _take_rows(features, self.event_dim, block, index), name)
        scores = fn.log_prob(_take_rows(value, self.event_dim, block, index))
        scores = scores.expand(lead + index.shape)
        flat = scores.new_zeros((*lead, prod(block)))
        return flat.index_copy(-1, index, scores).reshape(shape)


def _run(fn: Callable[..., TorchDistribution], inputs: list[Tensor], name: str) -> TorchDistribution:
    try:
        return fn(*inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"{name}: the network normalizes over the batch (BatchNorm), but a single row is observed in this "
            "batch. Try one of the following fixes:\n1. nn.LayerNorm or nn.GroupNorm in place of BatchNorm\n"
            "2. larger batches\n3. network.eval()"
        ) from error


def _take_rows(
    x: Tensor,  # shape: (*batch, *event)
    event_dim: int,
    block: torch.Size,
    index: Tensor,  # shape: (R,)
) -> Tensor:  # shape: (*lead, R, *event)
    """Rows ``index`` of the flattened trailing ``block`` of batch dimensions."""
    batch = x.shape[: x.dim() - event_dim]
    event = x.shape[x.dim() - event_dim :]
    if len(batch) <= 1 and batch[-1:] == block[-1:]:
        return x.index_select(0, index if len(block) == 1 else index % block[-1])
    lead = batch[: max(len(batch) - len(block), 0)]
    flat = x.expand(lead + block + event).reshape((*lead, prod(block), *event))
    return flat.index_select(len(lead), index)


class Scored(TorchDistribution):
    """
    A likelihood whose log-density at the observed value is already known.

    ``log_prob`` of that very value returns the stored scores; any other value (an outer handler replaced it) is
    scored by the base distribution.

    :param base: the likelihood.
    :param value: the observed value the scores belong to.
    :param scores: log-densities, zero where not scored, shape ``(*batch,)``.
    """

    arg_constraints: dict[str, Constraint] = {}
    has_rsample = False

    def __init__(self, base: TorchDistribution, value: Tensor, scores: Tensor) -> None:
        self.base, self.value, self.scores = base, value, scores
        super().__init__(scores.shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return self.base.support  # type: ignore[return-value]

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Scored:
        return Scored(self.base, self.value, self.scores.expand(torch.Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if value is self.value:
            return self.scores
        return self.base.expand(self.batch_shape).log_prob(value)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base.expand(self.batch_shape).sample(torch.Size(sample_shape))
