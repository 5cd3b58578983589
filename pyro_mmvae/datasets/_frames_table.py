"""One table as it came, and where its rows and its observed cells lie in a data set.
Layer: datasets, private."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyro_mmvae._optional import optional_import
from pyro_mmvae.columns import Column
from pyro_mmvae.datasets._frames_cells import as_numbers, decoded

__all__ = ["Table"]


@dataclass(frozen=True, eq=False)
class Table:
    """
    A modality of a data set of N rows, from a DataFrame of n rows.

    :ivar columns: the P columns.
    :ivar source: the DataFrame, (n, P); shared between all parts of the data set.
    :ivar numbers: its cells as numbers, (n, P), NaN = missing.
    :ivar gaps: where the source has None, NaN or NA, (n, P).
    :ivar rows: (N,), the place of each row in the source; -1: it is not there.
    :ivar known: (N, P), bool: the cell is there, and was not hidden.
    """

    columns: tuple[Column, ...]
    source: Any
    numbers: np.ndarray
    gaps: np.ndarray
    rows: np.ndarray
    known: np.ndarray

    @classmethod
    def made(cls, columns: Sequence[Column], source: Any, numbers: np.ndarray, index: Any) -> Table:
        """From a DataFrame and its numbers, over the rows of ``index``."""
        rows = source.index.get_indexer(index)
        known = np.zeros((len(index), len(columns)), dtype=bool)
        known[rows >= 0] = ~np.isnan(numbers[rows[rows >= 0]])
        return cls(tuple(columns), source, numbers, source.isna().to_numpy(), rows, known)

    def take(self, rows: Any) -> Table:
        """Some rows: a slice or an integer array."""
        return replace(self, rows=self.rows[rows], known=self.known[rows])

    def hide(self, gone: np.ndarray) -> Table:  # shape: (N, P), bool
        """With some cells unknown."""
        return replace(self, known=self.known & ~gone)

    def cells(self) -> np.ndarray:  # shape: (N, P), float64
        """Numbers, NaN where a cell is not known."""
        if len(self.source) == 0:
            return np.full(self.known.shape, np.nan)
        return np.where(self.known, self.numbers[self.rows], np.nan)

    def to_frame(self, index: Any, values: np.ndarray) -> Any:  # values, shape: (N, P), float64
        """
        Numbers in the dtypes of the columns. A number that is the one known for its cell, also if it went through
        single precision, gives the cell as it came.
        """
        pandas = optional_import("pandas", "tables")
        own = self.cells()
        came = self.known & ((values == own) | (values == own.astype(np.float32)))
        if len(self.source):
            gaps = (self.rows >= 0)[:, None] & self.gaps[self.rows]
            came |= gaps & np.isnan(values)  # None, NaN or NA: whichever it was
        parts: dict[int, Any] = {}
        pieces = []
        for dtype, group in self._groups():
            if self._plain(group) and (dtype.kind == "f" or not np.isnan(values[:, group]).any()):
                block = as_numbers(values[:, group], dtype)
                pieces.append(pandas.DataFrame(block, index=index, columns=group))
            else:
                parts.update({i: decoded(values[:, i], self.columns[i], dtype) for i in group})
        if parts:
            pieces.append(pandas.DataFrame(parts, index=index))
        return self._with_source(self._joined(pandas, pieces), came)

    def keep(self, made: Any, kept: np.ndarray) -> Any:  # kept, shape: (N, P), bool
        """A frame of these columns with known cells, where ``kept``, as they came."""
        return self._with_source(made, kept & self.known)

    def _with_source(self, made: Any, came: np.ndarray) -> Any:
        pandas = optional_import("pandas", "tables")
        if not came.any():
            return made.set_axis(self.source.columns, axis=1)
        pieces, parts = [], {}
        for dtype, group in self._groups():
            if self._plain(group) and (made.dtypes.iloc[group] == dtype).all():
                own = self.source.iloc[:, group].to_numpy()[self.rows]
                block = np.where(came[:, group], own, made.iloc[:, group].to_numpy())
                pieces.append(pandas.DataFrame(block, index=made.index, columns=group))
                continue
            for i in group:
                both = pandas.concat([made.iloc[:, i], self.source.iloc[:, i]], ignore_index=True)
                where = np.where(came[:, i], len(made) + self.rows, np.arange(len(made)))
                parts[i] = both.iloc[where].array
        if parts:
            pieces.append(pandas.DataFrame(parts, index=made.index))
        return self._joined(pandas, pieces)

    def _joined(self, pandas: Any, pieces: list[Any]) -> Any:
        """Pieces whose labels are places of columns, side by side in order."""
        whole = pieces[0] if len(pieces) == 1 else pandas.concat(pieces, axis=1)
        places = list(whole.columns)
        if places != sorted(places):
            whole = whole.iloc[:, np.argsort(places)]
        return whole.set_axis(self.source.columns, axis=1)

    def _groups(self) -> list[tuple[Any, list[int]]]:
        """Places of the columns, those of one dtype together."""
        groups: dict[tuple[Any, bool], list[int]] = {}
        for i, (dtype, column) in enumerate(zip(self.source.dtypes, self.columns, strict=True)):
            groups.setdefault((dtype, bool(column.levels)), []).append(i)
        return [(dtype, group) for (dtype, _), group in groups.items()]

    def _plain(self, group: list[int]) -> bool:
        """Whether these columns of one dtype are numbers of numpy's, to be handled as one array."""
        dtype = self.source.dtypes.iloc[group[0]]
        return isinstance(dtype, np.dtype) and dtype.kind in "fiu" and not self.columns[group[0]].levels
