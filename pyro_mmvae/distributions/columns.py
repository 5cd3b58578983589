"""The distribution of a row of a table: a product over columns of mixed kinds, and its support.

Layer: distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_mmvae.columns import Column
from pyro_mmvae.distributions.params import map_params
from pyro_mmvae.distributions.shapes import broadcast

__all__ = ["ColumnProduct", "ColumnSupport"]


class ColumnSupport(Constraint):
    """
    What the cells of each column may be, cell by cell.

    Example::

        >>> support = ColumnSupport([Column("crp", "log_normal"), Column("stage", "ordinal", ("I", "II"))])
        >>> support.check(torch.tensor([[0.3, 1.0], [0.0, 2.0]])).tolist()
        [[True, True], [False, False]]
        >>> support.inside.tolist(), support.names
        ([1.0, 0.0], ('crp', 'stage'))

    :param columns: the P columns.
    :ivar inside: a cell of each column that is in the support, near its data; shape (P,).
    :ivar names: names of the columns.
    """

    event_dim = 0

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns, self.names = tuple(columns), tuple(c.name for c in columns)
        self.is_discrete = any(c.kind not in ("real", "positive") for c in columns)
        self.inside = torch.tensor([_inside(c) for c in columns], device="cpu")
        low = [-math.inf if c.kind == "real" else 0.0 for c in columns]
        self._low, self._high = (torch.tensor(x, device="cpu") for x in (low, [_highest(c) for c in columns]))
        self._whole = torch.tensor([c.kind not in ("real", "positive") for c in columns], device="cpu")
        self._open = torch.tensor([c.kind == "positive" for c in columns], device="cpu")

    def check(self, value: Tensor) -> Tensor:  # both, shape: (*batch, P); bool
        low, high, whole, open_ = (x.to(value.device) for x in (self._low, self._high, self._whole, self._open))
        value = value if value.is_floating_point() else value.to(low.dtype)
        within = torch.where(open_, value > low, value >= low) & (value <= high)
        return within & (~whole | (value == value.floor()))

    def expects(self, place: int) -> str:
        """What the cells of the column at ``place`` may be, in words."""
        column = self.columns[place]
        return {
            "real": "a number",
            "positive": "a number above 0",
            "count": "0, 1, 2, ...",
            "binary": "0 or 1",
        }.get(column.kind, f"the number of one of its {len(column.levels)} levels, from 0")

    def __repr__(self) -> str:
        return f"ColumnSupport of {len(self.columns)} columns"


def _inside(column: Column) -> float:
    """A constant in the support, where the data of the column lie, or 1 where they are positive and lie below."""
    if column.kind == "real":
        return column.loc
    if column.kind == "positive":
        return math.exp(min(max(column.loc, 0.0), 80.0))
    return float(round(math.expm1(min(max(column.loc, 0.0), 80.0)))) if column.kind == "count" else 0.0


def _highest(column: Column) -> float:
    levels = 2 if column.kind == "binary" else len(column.levels)
    return float(levels - 1) if levels else math.inf


class ColumnProduct(TorchDistribution):
    r"""
    Cells that are independent given the parameters, each of its own family:
    :math:`p(x) = \prod_d p_d(x_d)`; ``.to_event(1)`` makes a row of them.

    Elementwise: batch_shape (*batch, P), columns last. Columns of one family are one distribution with batch_shape
    (*batch, Q), so that a thousand real columns cost one operation.
    ``mean`` is the mean of numbers, the probability of 1 of a binary column, and the most probable class of classes,
    ordered or not; ``variance`` is the variance of the former two, and the probability of the other classes.

    Example::

        >>> parts = [dist.Normal(torch.zeros(5, 2), 1.0), dist.Categorical(logits=torch.zeros(5, 1, 4))]
        >>> columns = [Column("a", "normal"), Column("b", "categorical", ("w", "x", "y", "z")), Column("c", "normal")]
        >>> fn = ColumnProduct(parts, torch.tensor([0, 2, 1]), ColumnSupport(columns))
        >>> fn.batch_shape, fn.probabilities(1)[0].tolist()
        (torch.Size([5, 3]), [0.25, 0.25, 0.25, 0.25])

    :param parts: distributions of single cells, batch_shape (*batch, Q) each, the Q adding up to P.
    :param order: which column each cell of the parts, side by side, is; a permutation of 0 .. P-1, shape (P,); None if
        they are in order.
    :param support: of all columns.
    :param inverse: the inverse permutation, if known.
    :param dtype: of the draws; default: that of a float.
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(
        self,
        parts: Sequence[TorchDistribution],
        order: Tensor | None,
        support: ColumnSupport,
        *,
        inverse: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.parts, self.order, self._support = tuple(parts), order, support
        self.inverse = inverse if inverse is not None or order is None else order.argsort()
        self.dtype = dtype if dtype is not None else torch.get_default_dtype()
        self.sizes = [part.batch_shape[-1] for part in parts]
        self.has_rsample = all(part.has_rsample for part in parts)
        if sum(self.sizes) != len(support.columns):
            raise ValueError(f"ColumnProduct: parts of {self.sizes} cells for {len(support.columns)} columns.")
        lead = broadcast(*(part.batch_shape[:-1] for part in parts))
        super().__init__(torch.Size([*lead, sum(self.sizes)]), torch.Size(), validate_args=False)

    @property
    def support(self) -> ColumnSupport:  # type: ignore[override]
        return self._support

    def _with(self, parts: Sequence[TorchDistribution]) -> ColumnProduct:
        return ColumnProduct(parts, self.order, self._support, inverse=self.inverse, dtype=self.dtype)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ColumnProduct:
        *lead, _ = batch_shape
        return self._with([part.expand((*lead, size)) for part, size in zip(self.parts, self.sizes, strict=True)])

    def map_params(self, f: Callable[[Tensor, Any, int], Tensor], event_dim: int) -> ColumnProduct:
        """The same with ``f`` applied to every parameter, see :func:`pyro_mmvae.distributions.map_params`."""
        return self._with([_mapped(part, f, event_dim) for part in self.parts])

    def _joined(self, cells: Sequence[Tensor]) -> Tensor:  # each, shape: (*batch, Q); shape: (*batch, P)
        """The cells of all parts, in the order of the columns."""
        lead = broadcast(*(x.shape[:-1] for x in cells))
        whole = torch.cat([x.expand((*lead, x.shape[-1])) for x in cells], -1)
        return whole if self.inverse is None else whole.index_select(-1, self.inverse)

    def log_prob(self, value: Tensor) -> Tensor:
        grouped = value if self.order is None else value.index_select(-1, self.order)
        return self._joined([p.log_prob(x) for p, x in zip(self.parts, grouped.split(self.sizes, -1), strict=True)])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            return self._joined([part.sample(shape).to(self.dtype) for part in self.parts])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        if not self.has_rsample:
            raise NotImplementedError("Columns of counts or classes have no reparametrized draws. Fix: sample().")
        return self._joined([part.rsample(torch.Size(sample_shape)) for part in self.parts])

    @property
    def mean(self) -> Tensor:
        return self._joined([_mean(part).to(self.dtype) for part in self.parts])

    @property
    def variance(self) -> Tensor:
        return self._joined([_variance(part).to(self.dtype) for part in self.parts])

    def probabilities(self, place: int) -> Tensor:  # shape: (*batch, K), adding up to 1
        """
        The probabilities of the classes of one column; of 0 and 1 if it is binary.

        :param place: the column's number.
        :raises ValueError: if the column has no classes.
        """
        column = self._support.columns[place]
        where = place if self.inverse is None else int(self.inverse[place])
        ends = list(accumulate(self.sizes))
        number = next(i for i, end in enumerate(ends) if where < end)
        part, where = self.parts[number], where - ends[number]  # counted from the part's end
        if isinstance(part, torch.distributions.Bernoulli):
            probs = torch.stack([torch.sigmoid(-part.logits), part.probs], -1)[..., where, :]
        elif isinstance(part, torch.distributions.Categorical):
            probs = part.probs[..., where, :]
        else:
            raise ValueError(f"column {column.name!r}: its likelihood {column.likelihood!r} has no classes.")
        return probs.expand((*self.batch_shape[:-1], probs.shape[-1]))


def _mapped(part: Any, f: Callable[[Tensor, Any, int], Tensor], event_dim: int) -> Any:
    if isinstance(part, dist.ZeroInflatedDistribution):
        gate = f(part.gate_logits, type(part).arg_constraints["gate_logits"], event_dim)
        return dist.ZeroInflatedDistribution(map_params(part.base_dist, f, event_dim), gate_logits=gate)
    return map_params(part, f, event_dim)


def _mean(part: TorchDistribution) -> Tensor:
    if isinstance(part, torch.distributions.Categorical):
        return part.logits.argmax(-1)
    return part.mean


def _variance(part: TorchDistribution) -> Tensor:
    if isinstance(part, torch.distributions.Categorical):
        return 1.0 - part.probs.amax(-1)
    return part.variance
