"""From cells of a pandas column to numbers, and back to its dtype.
Layer: datasets, private."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_mmvae._optional import optional_import
from pyro_mmvae.columns import Column
from pyro_mmvae.datasets._frames_kinds import (
    check_finite,
    check_likelihood,
    check_range,
    check_units,
    chosen_likelihood,
    kind_of,
    numbers,
    some_of,
)

__all__ = ["Encoded", "as_numbers", "decoded", "encoded", "encoded_like"]

Encoded = tuple[Column, Any, np.ndarray]  # the column, its cells as they are to come back, and as numbers (n,)
_MOST = 2.0**62  # int64 can hold it and what is rounded to it


def encoded(where: str, series: Any, likelihood: str | None, *, context: bool = False) -> Encoded:
    """
    A column, by its dtype and values, or by the likelihood asked for; its numbers are NaN where a cell is missing.

    :param where: names the column in errors.
    :param context: whether it is a covariate: whole numbers are then as good as any.
    :raises TypeError: for text and other columns that are no numbers.
    :raises ValueError: for infinite cells, cells that the likelihood cannot have, and real ones of extreme size.
    """
    text = likelihood is not None
    kind = kind_of(where, series, text=text)
    name = series.name if isinstance(series.name, str) else int(series.name)
    if kind in ("category", "text"):
        values = np.empty(0)
    else:
        values = numbers(series, kind)
        check_finite(where, values, series.index)
    if likelihood is not None:
        likelihood = check_likelihood(where, likelihood, kind, values, series.index)
    elif context and kind in ("integer", "float"):
        likelihood = "normal"
    else:
        likelihood = chosen_likelihood(kind, series.dtype, values)
    check_units(where, likelihood, values)
    if kind == "category":
        levels = tuple(_level(v) for v in series.dtype.categories)
        return Column(name, likelihood, levels), series, _codes(series)
    if likelihood not in ("categorical", "ordinal"):
        return Column(name, likelihood), series, values
    found = sorted(series.dropna().unique()) if kind == "text" else np.unique(values[~np.isnan(values)]).tolist()
    levels = tuple(_level(v) for v in found)
    return Column(name, likelihood, levels), series, _numbered(where, series, values, levels, kind == "text")


def encoded_like(where: str, series: Any, column: Column, dtype: Any) -> Encoded:
    """
    A column read as one of another data set: its likelihood and its levels.

    :param dtype: of the column there; levels of a category are taken from it.

    :raises TypeError: for text and other columns that are no numbers, where the other is no category.
    :raises ValueError: for a level that the other data set does not have, or a number that its likelihood cannot have.
    """
    if hasattr(dtype, "categories"):
        series = _recategorized(where, series, dtype)
        return column, series, _codes(series)
    kind = kind_of(where, series, text=bool(column.levels))
    if kind == "category":
        raise TypeError(f"{where} is a category here and {dtype} in `like`. Fix: frame[column].astype({str(dtype)!r}).")
    values = np.empty(0) if kind == "text" else numbers(series, kind)
    if kind != "text":
        check_finite(where, values, series.index)
        check_range(where, column.likelihood, values, series.index)
    if column.levels:
        values = _numbered(where, series, values, column.levels, kind == "text")
    return column, series, values


def _codes(series: Any) -> np.ndarray:  # shape: (n,)
    codes = series.cat.codes.to_numpy().astype(np.float64)
    return np.where(codes < 0, np.nan, codes)


def _recategorized(where: str, series: Any, dtype: Any) -> Any:
    pandas = optional_import("pandas", "tables")
    cells = series.astype(object)
    observed = cells.dropna()
    unknown = observed[~observed.isin(list(dtype.categories))]
    if len(unknown):
        raise ValueError(
            f"{where}, row {some_of([unknown.index[0]])}: unknown level {unknown.iloc[0]!r}; `like` has "
            f"{list(dtype.categories)}. Fix: map it to one of these, or NaN (missing)."
        )
    return pandas.Series(pandas.Categorical(cells, dtype=dtype), index=series.index, name=series.name)


def _numbered(
    where: str, series: Any, values: np.ndarray, levels: tuple[Any, ...], text: bool
) -> np.ndarray:  # shape: (n,)
    """Places of the cells in the levels."""
    places: Mapping[Any, int] = {level: i for i, level in enumerate(levels)}
    missing = series.isna().to_numpy() if text else np.isnan(values)
    cells = series.tolist() if text else values.tolist()
    unknown = [i for i, cell in enumerate(cells) if not missing[i] and cell not in places]
    if unknown:
        row = unknown[0]
        raise ValueError(
            f"{where}, row {some_of([series.index[row]])}: unknown level {_level(cells[row])!r}; known are "
            f"{some_of(levels)}. Fix: map it to one of these, or NaN (missing)."
        )
    pairs = zip(cells, missing, strict=True)
    return np.array([np.nan if gap else float(places[cell]) for cell, gap in pairs])


def _level(value: Any) -> str | int | float | bool:
    """A level as JSON has it: numbers as they are, all else as text."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, (str, int, float)) else str(value)


def _nullable(dtype: Any) -> Any:
    """The dtype that also holds gaps, where a numpy dtype cannot."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iub":
        return dtype
    if dtype.kind == "b":
        return "boolean"
    return f"{'UInt' if dtype.kind == 'u' else 'Int'}{8 * dtype.itemsize}"


def decoded(
    values: np.ndarray,  # shape: (N,), float64, NaN = missing
    column: Column,
    dtype: Any,
) -> Any:  # pandas array or numpy array, (N,)
    """
    Numbers of one column in the dtype given: the nearest integer, bool or class; gaps make integers and bools nullable.
    """
    pandas = optional_import("pandas", "tables")
    missing = np.isnan(values)
    if column.levels:
        last = len(column.levels) - 1
        places = np.where(missing, -1, np.rint(np.where(missing, 0.0, values)).clip(0, last)).astype(np.int64)
        if hasattr(dtype, "categories"):
            return pandas.Categorical.from_codes(places, dtype=dtype)
        levels = np.array([*column.levels, None], dtype=object)
        if isinstance(column.levels[0], str):
            return pandas.array(levels[places], dtype=dtype)
        values = np.where(missing, np.nan, np.array([*column.levels, 0], dtype=np.float64)[places])
    types = pandas.api.types
    if types.is_bool_dtype(dtype) or types.is_object_dtype(dtype):
        return _bools(pandas, values, missing, dtype)
    if types.is_integer_dtype(dtype):
        values = _rounded(values, getattr(dtype, "numpy_dtype", dtype))
        dtype = _nullable(dtype) if missing.any() else dtype
    if isinstance(dtype, np.dtype):
        return values.astype(dtype)
    return pandas.array(values, dtype=dtype)


def as_numbers(
    values: np.ndarray,  # any shape, float64
    dtype: np.dtype[Any],  # float, or integer where no value is NaN
) -> np.ndarray:
    """Numbers in a dtype of numpy's, integers rounded and cut to their range."""
    return (values if dtype.kind == "f" else _rounded(values, dtype)).astype(dtype)


def _rounded(values: np.ndarray, dtype: Any) -> np.ndarray:
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if isinstance(dtype, np.dtype) else (-_MOST, _MOST)
    return np.rint(values).clip(max(low, -_MOST), min(high, _MOST))


def _bools(pandas: Any, values: np.ndarray, missing: np.ndarray, dtype: Any) -> Any:
    cells = values > 0.5
    if dtype == np.dtype(object):
        made = cells.astype(object)
        made[missing] = np.nan
        return made
    if isinstance(dtype, np.dtype):
        return cells if not missing.any() else pandas.arrays.BooleanArray(cells, missing)
    made = cells.astype(object)
    made[missing] = None
    return pandas.array(made, dtype=dtype)
