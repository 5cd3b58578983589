"""The likelihood of a table: a product over columns of mixed kinds, in the units of the data.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import expm1, log
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_mmvae.columns import Column, as_columns
from pyro_mmvae.distributions import ColumnProduct, ColumnSupport, Lazy, Scored
from pyro_mmvae.nn.likelihoods.base import Likelihood, PositiveParameter
from pyro_mmvae.nn.likelihoods.classes import Ordinal
from pyro_mmvae.nn.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

__all__ = ["Columns", "class_probabilities"]

_FREE = 8.0  # raw outputs that are exponentiated are themselves up to here, and grow as a logarithm beyond
_RARE = 0.05  # the smallest mean count that a column starts from
_STUDENT_DF = 4.0


def _bounded(raw: Tensor) -> Tensor:
    """The identity from -8 to 8, a logarithm beyond: its exponential stays finite and its gradient is never 0."""
    excess = (raw.abs() - _FREE).clamp(min=0.0)
    return torch.where(excess > 0, raw.sign() * (_FREE + excess.log1p()), raw)


class _Group(nn.Module):
    """Columns of one family, as one distribution."""

    num_raw: int = 1
    loc: Tensor
    scale: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.likelihood, self.size = columns[0].likelihood, len(columns)

    def _standard(self, locs: Sequence[float], scales: Sequence[float]) -> None:
        self.register_buffer("loc", torch.tensor(locs))
        self.register_buffer("scale", torch.tensor(scales))

    def forward(self, raw: Tensor) -> TorchDistribution:  # shape: (*batch, Q * num_raw); batch_shape: (*batch, Q)
        raise NotImplementedError


_REAL: dict[str, Callable[[Tensor, Tensor], TorchDistribution]] = {
    "normal": dist.Normal,
    "laplace": dist.Laplace,
    "student_t": lambda loc, scale: dist.StudentT(loc.new_full((), _STUDENT_DF), loc, scale),
    "log_normal": dist.LogNormal,
}


class _Reals(_Group):
    """Real and positive columns: location and scale in units of the column's own."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self._standard([c.loc for c in columns], [c.scale for c in columns])
        self.spread = PositiveParameter("learned", "Columns: scale", floor=1e-2)
        self.spread.build(torch.Size([self.size]))

    def forward(self, raw: Tensor) -> TorchDistribution:
        raw = _bounded(raw) if self.likelihood == "log_normal" else raw
        return _REAL[self.likelihood](self.loc + self.scale * raw, self.scale * self.spread(raw))


class _Counts(_Group):
    """Columns of counts: the raw output moves the logarithm of the mean, in units of its own spread."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        means = [max(expm1(min(c.loc, 80.0)), _RARE) for c in columns]
        self._standard([log(m) for m in means], [_log_spread(c, m) for c, m in zip(columns, means, strict=True)])
        kinds: dict[str, type[Likelihood]] = {
            "poisson": Poisson,
            "negative_binomial": NegativeBinomial,
            "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial,
        }
        self.of_log_mean = kinds[self.likelihood]().build(self.size)
        self.num_raw = self.of_log_mean.raw_per_feature
        total = getattr(self.of_log_mean, "total_count", None)
        if isinstance(total, PositiveParameter) and total.log is not None:
            start = [log(_total_count(m, float(s))) for m, s in zip(means, self.scale, strict=True)]
            with torch.no_grad():
                total.log.copy_(torch.tensor(start))

    def forward(self, raw: Tensor) -> TorchDistribution:
        each = raw.reshape(*raw.shape[:-1], self.size, self.num_raw)
        log_mean = self.loc + self.scale * _bounded(each[..., 0])
        if self.num_raw == 1:
            return self.of_log_mean.distribution(log_mean)
        return self.of_log_mean.distribution(torch.stack([log_mean, each[..., 1]], -1))


def _log_spread(column: Column, mean: float) -> float:
    """The spread of log x that a spread of log(1 + x) amounts to; for rare counts, whose spread is noise, at most 1."""
    return max(column.scale, min(column.scale * (1.0 + mean) / mean, 1.0))


def _total_count(mean: float, spread: float) -> float:
    r"""
    Where a negative binomial's number of failures r starts: what explains the spread of log x if the mean is the same
    for all, :math:`s^2 \approx 1 / \mu + 1 / r`, and no less than 1.
    """
    return max(1.0 / max(spread**2 - 1.0 / mean, 0.01 * spread**2), 1.0)


class _Binary(_Group):
    """Binary columns."""

    def forward(self, raw: Tensor) -> TorchDistribution:
        return dist.Bernoulli(logits=raw)


class _Categories(_Group):
    """Columns of as many unordered classes each."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.num_raw = len(columns[0].levels)

    def forward(self, raw: Tensor) -> TorchDistribution:
        return dist.Categorical(logits=raw.reshape(*raw.shape[:-1], self.size, self.num_raw))


class _Ordered(_Group):
    """Columns of as many ordered classes each."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.cumulative = Ordinal(len(columns[0].levels)).build(self.size)

    def forward(self, raw: Tensor) -> TorchDistribution:
        return self.cumulative.distribution(raw)


_GROUPS: dict[str, type[_Group]] = {
    "real": _Reals,
    "positive": _Reals,
    "count": _Counts,
    "binary": _Binary,
    "category": _Categories,
    "ordinal": _Ordered,
}


def _grouped(columns: Sequence[Column]) -> dict[tuple[str, str, int], list[int]]:
    """Places of the columns of each family: its kind, likelihood and number of classes."""
    found: dict[tuple[str, str, int], list[int]] = {}
    for place, column in enumerate(columns):
        alone = len(column.levels) == 1  # without cut points, ordered or not
        family = ("category", "categorical", 1) if alone else (column.kind, column.likelihood, len(column.levels))
        found.setdefault(family, []).append(place)
    return found


class Columns(Likelihood):
    r"""
    A row of a table, each column of its own family, in the units of the data:
    :math:`p(x \mid h) = \prod_d p_d(x_d \mid h_d)`.

    With l and s a column's ``loc`` and ``scale``, and w a learned number per column:

    - normal, laplace, student_t (4 degrees of freedom): location :math:`l + s h`, scale :math:`s (0.01 + e^w)`;
      log_normal the same for :math:`\log x`
    - poisson, negative_binomial, zero_inflated_negative_binomial (whose second raw output is the logit of the
      zeros' share): :math:`\log \mu = \log(e^l - 1) + s' h`, s' the spread of log x that s, one of
      :math:`\log(1 + x)`, amounts to; a learned dispersion per column as in
      :class:`~pyro_mmvae.nn.NegativeBinomial`
    - bernoulli, categorical: h are logits; ordinal: cumulative logits with learned cut points, as in
      :class:`~pyro_mmvae.nn.Ordinal`

    So raw outputs are of order 1 whatever the units, and in other units (:math:`x' = a x + b`, columns fitted anew) the
    same raw outputs give :math:`\log p(x') = \log p(x) - \log a` for each real cell. Where h is exponentiated
    it is so up to :math:`|h| = 8`; beyond, the exponent grows as a logarithm.
    Single cells may be missing. Columns of one family (and one number of classes) are one operation.
    The mean of a class is the most probable one, see :class:`~pyro_mmvae.distributions.ColumnProduct`; for
    probabilities :func:`~pyro_mmvae.nn.class_probabilities`.

    Example::

        >>> columns = [Column("age", "normal", loc=50.0, scale=10.0), Column("sex", "categorical", ("f", "m"))]
        >>> lik = Columns(columns)
        >>> lik.raw_shape()  # one for the age, a logit per sex
        torch.Size([3])
        >>> lik(torch.tensor([[1.5, 0.0, 2.0]])).mean.tolist()
        [[65.0, 1.0]]

    :param columns: the P columns, or their JSON form. The event shape is (P,).
    :raises ValueError: if there is none, or names repeat.
    """

    order: Tensor | None
    inverse: Tensor | None

    def __init__(self, columns: Sequence[Column | Mapping[str, Any]]) -> None:
        super().__init__()
        self.columns = as_columns(columns)
        self.feature_support = ColumnSupport(self.columns)
        families = _grouped(self.columns)
        self.groups = nn.ModuleList(
            _GROUPS[kind]([self.columns[i] for i in places]) for (kind, _, _), places in families.items()
        )
        self.num_raw = [group.size * group.num_raw for group in self._groups()]
        order = torch.tensor([place for places in families.values() for place in places])
        moved = len(families) > 1 and not torch.equal(order, order.sort().values)
        self.register_buffer("order", order if moved else None, persistent=False)
        self.register_buffer("inverse", order.argsort() if moved else None, persistent=False)
        self.build(len(self.columns))

    def _groups(self) -> list[_Group]:
        return list(self.groups)  # type: ignore[arg-type]

    def raw_shape(self, event_shape: int | Sequence[int] | None = None) -> torch.Size:
        """Shape (R,) of the raw outputs for one row: all that its columns need, side by side.

        :raises ValueError: if the event is not a vector with a cell per column.
        """
        shape = torch.Size([len(self.columns)]) if event_shape is None else self._shape(event_shape)
        if tuple(shape) != (len(self.columns),):
            raise ValueError(f"Columns: {len(self.columns)} columns have events of that size, got {tuple(shape)}.")
        return torch.Size([sum(self.num_raw)])

    def distribution(self, raw: Tensor) -> TorchDistribution:
        pieces = zip(self._groups(), raw.split(self.num_raw, -1), strict=True)
        parts = [group(piece) for group, piece in pieces]
        support: Any = self.feature_support
        return ColumnProduct(parts, self.order, support, inverse=self.inverse, dtype=raw.dtype)


def class_probabilities(
    distribution: Distribution,  # batch_shape: batch, event_shape: (P,)
    column: int | str,
) -> Tensor:  # shape: (*batch, K), adding up to 1
    """
    The probabilities of the classes of one column of a table; of 0 and 1 for a binary one.

    Example::

        >>> lik = Columns([Column("sex", "categorical", ("f", "m")), Column("age", "normal")])
        >>> class_probabilities(lik(torch.zeros(5, 3)), "sex").shape
        torch.Size([5, 2])

    :param distribution: what :class:`Columns`, or a decoder with this likelihood, returns.
    :param column: its name; or its place, if no column has this number for a name.
    :raises TypeError: if the distribution is not one over columns.
    :raises ValueError: if there is no such column, or it has no classes.
    """
    fn: Any = distribution
    while not isinstance(fn, ColumnProduct):
        if isinstance(fn, Lazy):
            fn = fn.dense()
        elif isinstance(fn, Scored):
            fn = fn.base
        elif hasattr(fn, "base_dist"):
            fn = fn.base_dist
        else:
            raise TypeError(f"class_probabilities: expected a distribution over columns, got {type(fn).__name__}.")
    names = list(fn.support.names)
    if column in names:
        return fn.probabilities(names.index(column))
    if not isinstance(column, int) or not 0 <= column < len(names):
        raise ValueError(f"no column {column!r}; the columns are {names[:20]}{' ...' if len(names) > 20 else ''}.")
    return fn.probabilities(column)
