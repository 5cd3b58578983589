"""What a data set remembers of the DataFrames that it was made from, so that results can go back into their form.
Layer: datasets; pandas is imported where it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae.columns import Column, Scaling
from pyro_mmvae.datasets._frames_kinds import some_of
from pyro_mmvae.datasets._frames_table import Table

__all__ = ["Frames"]


class Frames:
    """
    The tables of a data set of N rows: their index, columns, dtypes, and cells as they came.

    Made by :meth:`MultimodalDataset.from_frames`, and kept as ``ds.frames`` through indexing, splitting and hiding: all
    parts share one copy of the DataFrames, beside which rows and hidden cells are noted.

    Example::

        >>> import pandas as pd
        >>> from pyro_mmvae.datasets import MultimodalDataset
        >>> blood = pd.DataFrame({"crp": [1.5, None], "group": pd.Categorical(["A", "O"])}, index=["p1", "p2"])
        >>> frames = MultimodalDataset.from_frames({"blood": blood}).frames
        >>> frames.to_frame("blood", torch.tensor([[1.5, 0.0], [2.5, 1.0]]))
            crp group
        p1  1.5     A
        p2  2.5     O

    :ivar index: pandas Index of the rows.
    :ivar scale: how networks are to standardize: "standard", "robust" or None.
    """

    def __init__(self, index: Any, tables: Mapping[str, Table], context: Table | None, scale: Scaling) -> None:
        self.index, self.scale = index, scale
        self._tables, self._context = dict(tables), context

    def __len__(self) -> int:
        return len(self.index)

    @property
    def columns(self) -> dict[str, tuple[Column, ...]]:
        """Modality -> its columns."""
        return {m: table.columns for m, table in self._tables.items()}

    @property
    def context(self) -> tuple[Column, ...]:
        """Columns of the covariates."""
        return () if self._context is None else self._context.columns

    @property
    def context_table(self) -> Table | None:
        """The table of the covariates; None without."""
        return self._context

    @property
    def dtypes(self) -> dict[str, tuple[Any, ...]]:
        """Modality -> pandas dtypes of its columns."""
        return {m: tuple(table.source.dtypes) for m, table in self._tables.items()}

    @property
    def original(self) -> dict[str, Any]:
        """
        Modality -> DataFrame over the rows of the data set, with the known cells as they came.

        Where rows are absent, integers and bools come as pandas' ``Int64`` and ``boolean``, which can hold gaps.
        """
        return {m: table.to_frame(self.index, table.cells()) for m, table in self._tables.items()}

    def cells(self, modality: str) -> Tensor:  # shape: (N, P), float64
        """Known cells as numbers, classes by their place in the levels; NaN elsewhere."""
        return torch.from_numpy(self.table(modality).cells())

    def to_frame(
        self,
        modality: str,
        cells: Tensor | np.ndarray,  # shape: (N, P)
    ) -> Any:  # pandas.DataFrame
        """
        Numbers as a DataFrame with the index, columns and dtypes that came in.

        Integers and classes are rounded to the nearest, bools are True above one half; NaN is a gap, for which integers
        and bools become nullable. A number that is the known one of its cell gives the cell as it came, bit by bit.

        :raises ValueError: for an unknown modality or another shape.
        """
        table = self.table(modality)
        values = cells.detach().cpu().double().numpy() if isinstance(cells, Tensor) else np.asarray(cells, np.float64)
        if values.shape != table.known.shape:
            raise ValueError(f"{modality!r}: expected cells of shape {table.known.shape}, got {values.shape}.")
        return table.to_frame(self.index, values)

    def keep(
        self,
        modality: str,
        made: Any,  # pandas.DataFrame, shape: (N, P)
        kept: Tensor | np.ndarray,  # shape: (N, P), bool
    ) -> Any:  # pandas.DataFrame
        """
        A frame from :meth:`to_frame` with the known cells where ``kept`` as they came, bit by bit.

        :raises ValueError: for an unknown modality or another shape.
        """
        table = self.table(modality)
        mask = kept.cpu().numpy() if isinstance(kept, Tensor) else np.asarray(kept)
        if mask.shape != table.known.shape or tuple(made.shape) != table.known.shape:
            raise ValueError(
                f"{modality!r}: expected shape {table.known.shape}, got {tuple(made.shape)} and kept {mask.shape}."
            )
        return table.keep(made, mask)

    def take(self, rows: slice | Tensor | np.ndarray) -> Frames:
        """The tables of some rows: a slice, or row numbers."""
        where = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        context = None if self._context is None else self._context.take(where)
        return Frames(self.index[where], {m: t.take(where) for m, t in self._tables.items()}, context, self.scale)

    def hide(
        self,
        gone: Mapping[str, Tensor],  # each shape: (N, P), bool
    ) -> Frames:
        """The tables with some cells unknown."""
        tables = {m: t.hide(gone[m].cpu().numpy()) if m in gone else t for m, t in self._tables.items()}
        return Frames(self.index, tables, self._context, self.scale)

    def aligned(self, name: str, values: Any) -> Any:
        """
        A pandas object over these rows, by its index; anything else as it is.

        :param name: what it is, for errors.
        :raises ValueError: if its index lacks a row, or repeats one.
        """
        own = getattr(values, "index", None)
        if not hasattr(values, "loc") or own is None:
            return values
        absent = self.index[~self.index.isin(own)]
        if len(absent) or own.has_duplicates:
            problem = f"has no {some_of(absent)}" if len(absent) else "repeats ids"
            raise ValueError(f"{name}: its index {problem}. Fix: one entry per row id, or an array in order of rows.")
        return values.loc[self.index]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{m}: {len(columns)}" for m, columns in self.columns.items())
        return f"Frames({len(self)} rows; columns {sizes})"

    def table(self, modality: str) -> Table:
        """
        One table with the places of its rows.

        :raises ValueError: for an unknown modality.
        """
        if modality not in self._tables:
            raise ValueError(f"no table {modality!r}; there are {', '.join(self._tables)}.")
        return self._tables[modality]
