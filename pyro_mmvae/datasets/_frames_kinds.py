"""What the cells of a pandas column are, and which likelihood that suggests.
Layer: datasets, private."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pyro_mmvae._optional import optional_import
from pyro_mmvae.columns import LIKELIHOODS

__all__ = [
    "CellKind",
    "check_finite",
    "check_likelihood",
    "check_units",
    "chosen_likelihood",
    "indistinct",
    "kind_of",
    "numbers",
    "whole",
]

CellKind = Literal["bool", "category", "integer", "float", "text"]

ENOUGH = 10  # whole numbers in a float column with gaps, from which on it is read as integers
_EACH = 5  # rows of either value, from which on two values are classes
_LARGEST = float(np.finfo(np.float32).max)  # cells become float32
_SQUARED = 1e-16, 1e18  # sizes of real cells whose squares, and those of a hundredth, single precision holds
_SAME = 1e-6  # of their size, below which columns.fitted takes cells that differ as constant
_OVERRIDES: dict[CellKind, tuple[str, ...]] = {  # kinds of likelihoods that a dictionary may ask for
    "bool": ("binary", "real", "category"),
    "category": ("category", "ordinal"),
    "integer": ("real", "positive", "count", "binary", "category", "ordinal"),
    "float": ("real", "positive", "count", "binary", "category", "ordinal"),
    "text": ("category",),
}


def kind_of(where: str, series: Any, *, text: bool = False) -> CellKind:
    """
    What the cells of a column are, by its dtype; a column of Python objects that are all bools is bool.

    :param where: names the column in errors.
    :param text: whether text is accepted.
    :raises TypeError: for text, dates, Python objects, complex numbers and sparse columns, with the way out.
    """
    types = optional_import("pandas.api.types", "tables")
    dtype = series.dtype
    if types.is_object_dtype(dtype):
        return _of_objects(where, types.infer_dtype(series, skipna=True), text)
    kind = str(getattr(dtype, "kind", "O"))
    if hasattr(dtype, "categories"):
        return "category"
    if hasattr(dtype, "sp_index") or type(dtype).__name__ == "SparseDtype":
        raise TypeError(f"{where} is sparse ({dtype}). Fix: frame[column] = frame[column].sparse.to_dense().")
    if kind in "Mm" or types.is_datetime64_any_dtype(dtype) or type(dtype).__name__ == "PeriodDtype":
        raise _time(where, dtype)
    if types.is_bool_dtype(dtype):
        return "bool"
    if types.is_integer_dtype(dtype):
        return "integer"
    if types.is_float_dtype(dtype):
        return "float"
    return _text(where, dtype, text)


def _of_objects(where: str, inferred: str, text: bool) -> CellKind:
    if inferred == "boolean":
        return "bool"
    if inferred in ("integer", "floating", "mixed-integer-float", "decimal"):
        raise TypeError(
            f"{where} holds numbers as Python objects ({inferred}). Fix: frame[column] = pd.to_numeric(frame[column])."
        )
    if inferred.startswith(("date", "time", "period")):
        raise _time(where, inferred)
    return _text(where, f"object, {inferred}", text and inferred == "string")


def _text(where: str, dtype: Any, accepted: bool) -> CellKind:
    if accepted:
        return "text"
    raise TypeError(
        f"{where} is text, or no number ({dtype}). Fix: frame[column].astype('category') if its values are classes, "
        f"pd.to_numeric(frame[column], errors='coerce') if they are numbers, or frame.drop(columns=column)."
    )


def _time(where: str, dtype: Any) -> TypeError:
    return TypeError(
        f"{where} holds dates or times ({dtype}). Fix: a number, such as (frame[column] - start) / "
        f"pd.Timedelta(days=1), or frame.drop(columns=column)."
    )


def numbers(series: Any, kind: CellKind) -> np.ndarray:  # shape: (n,), float64
    """The cells of a bool, integer or float column as numbers; NaN where they are missing."""
    if kind == "bool" and series.dtype == object:
        series = series.astype("boolean")
    if isinstance(series.dtype, np.dtype):
        return series.to_numpy(dtype=np.float64)  # type: ignore[no-any-return]
    return series.to_numpy(dtype=np.float64, na_value=np.nan)  # type: ignore[no-any-return]


def check_finite(where: str, values: np.ndarray, index: Any) -> None:
    """No observed cell is infinite, or becomes so in single precision."""
    bad = np.abs(values) > _LARGEST  # NaN compares as False
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{where}, row {some_of([index[row]])}: {values[row]} is infinite, or beyond single precision. "
            f"Fix: correct it, or NaN where it is missing."
        )


def check_units(where: str, likelihood: str, values: np.ndarray) -> None:  # values, shape: (n,), NaN = missing
    """Observed real cells have squares in single precision, which densities need."""
    seen = values[~np.isnan(values)]
    if LIKELIHOODS[likelihood] != "real" or len(seen) == 0:
        return
    largest, middle, spread = (float(x) for x in (np.abs(seen).max(), abs(seen.mean()), seen.std()))
    spread = spread if spread > _SAME * middle else 1e-3 * middle  # as columns.fitted has it
    if largest > _SQUARED[1] or 0 < spread < _SQUARED[0]:
        size = largest if largest > _SQUARED[1] else spread
        raise ValueError(
            f"{where}: its cells are as {'large' if size > 1 else 'small'} as {size:.1g}, whose square single "
            f"precision does not hold. Fix: another unit, such as frame[column] / {10.0 ** round(np.log10(size)):g}."
        )


def indistinct(likelihood: str, values: np.ndarray) -> bool:  # values, shape: (n,), NaN = missing
    """Whether real cells differ, but by so little of their size that they are taken as constant."""
    seen = values[~np.isnan(values)]
    if LIKELIHOODS[likelihood] != "real" or len(seen) == 0 or (seen == seen[0]).all():
        return False
    return float(seen.std()) <= _SAME * abs(float(seen.mean()))


def whole(seen: np.ndarray) -> bool:  # shape: (n,), observed cells
    """Whether all cells are whole numbers."""
    return bool((seen == np.rint(seen)).all())


def chosen_likelihood(kind: CellKind, dtype: Any, values: np.ndarray) -> str:  # values, shape: (n,), NaN = missing
    """
    The likelihood that a dtype and the values suggest: the table in :meth:`MultimodalDataset.from_frames`.

    :param values: numbers of bool, integer and float columns.
    """
    if kind == "bool":
        return "bernoulli"
    if kind == "category":
        return "ordinal" if dtype.ordered and len(dtype.categories) > 1 else "categorical"
    missing = np.isnan(values)
    seen = values[~missing]
    found, counts = np.unique(seen, return_counts=True)
    if kind == "float":
        if found.tolist() == [0.0, 1.0]:
            return "bernoulli"
        if not (missing.any() and len(seen) >= ENOUGH and whole(seen)):
            return "normal"
    if found[0] < 0:
        return "normal"
    if found[-1] <= 1:
        return "bernoulli"
    return "categorical" if len(found) == 2 and counts.min() >= _EACH else "negative_binomial"


def check_likelihood(where: str, likelihood: Any, kind: CellKind, values: np.ndarray, index: Any) -> str:
    """
    A likelihood that was asked for, if the cells of the column can have it.

    :raises ValueError: for an unknown one, and one that the cells do not fit; names the first cell that does not.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihoods: {where}: unknown {likelihood!r}; known are {', '.join(LIKELIHOODS)}.")
    wanted = LIKELIHOODS[likelihood]
    if wanted not in _OVERRIDES[kind]:
        possible = [name for name, own in LIKELIHOODS.items() if own in _OVERRIDES[kind]]
        raise ValueError(
            f"likelihoods: {where} holds {kind} cells and cannot be {likelihood!r}. Fix: one of {', '.join(possible)}, "
            f"or another dtype."
        )
    if kind not in ("category", "text"):
        check_range(where, likelihood, values, index)
    return str(likelihood)


def check_range(where: str, likelihood: str, values: np.ndarray, index: Any) -> None:
    """Observed cells are numbers that the likelihood can have; classes are checked where they are encoded."""
    wanted = LIKELIHOODS[likelihood]
    rules: dict[str, tuple[str, np.ndarray]] = {
        "positive": ("positive numbers", values > 0),
        "count": ("whole numbers from 0 on", (values >= 0) & (values == np.rint(values))),
        "binary": ("0 and 1", (values == 0) | (values == 1)),
    }
    if wanted not in rules:
        return
    expected, good = rules[wanted]
    bad = ~good & ~np.isnan(values)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{where}, row {some_of([index[row]])}: {likelihood!r} is about {expected}, got {values[row]:g}. "
            f"Fix: correct the cell, NaN where it is missing, or another likelihood by "
            f"likelihoods={{modality: {{column: ...}}}}."
        )


def some_of(values: Sequence[Any]) -> str:
    """Up to three values, as text."""
    shown = ", ".join(repr(_plain(v)) for v in list(values)[:3])
    return shown + (", ..." if len(values) > 3 else "")


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python number that prints without its type."""
    return value.item() if isinstance(value, np.generic) else value
