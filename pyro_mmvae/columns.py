"""What a column of a table is: its name, its likelihood, its levels, and how it is scaled.

Layer: columns, at the bottom: nothing of the library's is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["LIKELIHOODS", "Column", "Scaling", "as_columns", "fitted"]

Kind = Literal["real", "positive", "count", "binary", "category", "ordinal"]
Scaling = Literal["standard", "robust"] | None

#: likelihood of a column -> the kind of numbers it is about
LIKELIHOODS: dict[str, Kind] = {
    "normal": "real",
    "laplace": "real",
    "student_t": "real",
    "log_normal": "positive",
    "poisson": "count",
    "negative_binomial": "count",
    "zero_inflated_negative_binomial": "count",
    "bernoulli": "binary",
    "categorical": "category",
    "ordinal": "ordinal",
}

_CONSTANT = 1e-6  # a spread below this share of |loc| is none: float32 could not tell


@dataclass(frozen=True)
class Column:
    """
    One column of a table.

    Its cells are numbers: as they are for "real", "positive" and "count", 0 and 1 for "binary", the place in ``levels``
    for "category" and "ordinal". They keep their units; ``loc`` and ``scale`` are what networks standardize with.

    Example::

        >>> Column("stage", "ordinal", levels=("I", "II", "III")).kind
        'ordinal'

    :param name: label of the column.
    :param likelihood: one of :data:`LIKELIHOODS`.
    :param levels: what class numbers stand for, in order.
    :param loc: where the observed cells lie; of log(1 + x) for counts, of log(x) for positive numbers.
    :param scale: how far they spread, positive, on the same scale as ``loc``.
    :raises ValueError: for an unknown likelihood, levels where there are no classes or none where there are, or a scale
        that is not positive.
    """

    name: str | int
    likelihood: str
    levels: tuple[str | int | float | bool, ...] = ()
    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(
                f"column {self.name!r}: unknown likelihood {self.likelihood!r}; known are {', '.join(LIKELIHOODS)}."
            )
        classes = self.kind in ("category", "ordinal")
        if classes != bool(self.levels):
            raise ValueError(
                f"column {self.name!r}: the likelihood {self.likelihood!r} {'needs' if classes else 'has no'} levels."
            )
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"column {self.name!r}: scale must be positive, got {self.scale}.")

    @property
    def kind(self) -> Kind:
        """What its cells are."""
        return LIKELIHOODS[self.likelihood]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON, from which :func:`as_columns` makes it again."""
        return {**asdict(self), "levels": list(self.levels)}


def as_columns(columns: Sequence[Column | Mapping[str, Any]]) -> tuple[Column, ...]:
    """
    Columns, from themselves or from their JSON form.

    Example::

        >>> as_columns([{"name": "age", "likelihood": "normal"}])
        (Column(name='age', likelihood='normal', levels=(), loc=0.0, scale=1.0),)

    :raises ValueError: if there is none, or names repeat.
    """
    made = tuple(c if isinstance(c, Column) else Column(**{**c, "levels": tuple(c.get("levels", ()))}) for c in columns)
    names = [c.name for c in made]
    if not made or len(set(names)) < len(names):
        raise ValueError(f"columns: expected at least one, and different names; got {names}.")
    return made


def fitted(
    columns: Sequence[Column],
    x: Tensor,  # shape: (N, P), cells
    obs_mask: Tensor,  # shape: (N,) or (N, P), bool, True = observed
    how: Scaling = "standard",
) -> tuple[Column, ...]:
    r"""
    Columns with the location and scale of their observed cells: mean and standard deviation ("standard"), or median and
    normal-consistent interquartile range ("robust"); None leaves them as they are.

    Counts are looked at as log(1 + x), positive numbers as log(x); other kinds have no scale. A constant column, whose
    spread is below 1e-6 \|loc\|, has the floor 1e-3 \|loc\| as its scale, or 1e-3 at 0.

    Example::

        >>> x, seen = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([True, True, False])
        >>> [(c.loc, c.scale) for c in fitted([Column("a", "normal")], x, seen)]
        [(2.0, 1.0)]

    :raises ValueError: for another ``how``.
    """
    if how not in ("standard", "robust", None):
        raise ValueError(f"scale: expected 'standard', 'robust' or None, got {how!r}.")
    if how is None:
        return tuple(columns)
    seen = obs_mask.reshape(obs_mask.shape + (1,) * (x.dim() - obs_mask.dim())).expand_as(x)
    return tuple(_fitted(c, x[:, i][seen[:, i]].double(), how) for i, c in enumerate(columns))


def _fitted(column: Column, values: Tensor, how: Scaling) -> Column:  # values, shape: (n,)
    if column.kind in ("binary", "category", "ordinal") or values.numel() == 0:
        return column
    values = {"count": torch.log1p, "positive": torch.log}.get(column.kind, torch.clone)(values)
    if how == "standard":
        loc, scale = float(values.mean()), float(values.std(correction=0))
    else:
        low, middle, high = values.quantile(values.new_tensor([0.25, 0.5, 0.75])).tolist()
        loc, scale = middle, (high - low) / 1.349  # the interquartile range of a standard normal
        scale = scale if scale > 0 else float(values.std(correction=0))  # more than half of the cells are equal
    if scale <= _CONSTANT * abs(loc):
        scale = 1e-3 * abs(loc) if loc else 1e-3
    return replace(column, loc=loc, scale=scale)
