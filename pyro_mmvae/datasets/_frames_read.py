"""DataFrames as tensors, covariates and what is needed to go back.
Layer: datasets, private."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae._optional import optional_import
from pyro_mmvae.columns import Scaling
from pyro_mmvae.datasets._frames_cells import Encoded, decoded, encoded, encoded_like
from pyro_mmvae.datasets._frames_join import checked, checked_frames, joined_index
from pyro_mmvae.datasets._frames_kinds import indistinct, some_of
from pyro_mmvae.datasets._frames_table import Table
from pyro_mmvae.datasets.frames import Frames

__all__ = ["Read", "read_frames"]

_CALLER = 4  # stack level of who called from_frames


@dataclass(frozen=True)
class Read:
    """What a data set is made of: modalities, covariates, and the tables themselves."""

    data: dict[str, Tensor]
    covariates: dict[str, Tensor]
    frames: Frames


def read_frames(frames: Any, context: Any, scale: Scaling, likelihoods: Any, other: Any) -> Read:
    """The work of :meth:`MultimodalDataset.from_frames`; see there."""
    if scale not in ("standard", "robust", None):
        raise ValueError(f"scale: expected 'standard', 'robust' or None, got {scale!r}.")
    like = _frames_of(other)
    given = checked_frames(frames)
    index = joined_index(given)
    if like is None:
        chosen = _check_likelihoods(likelihoods, given)
        tables = {}
        for m, frame in given.items():  # a comprehension is a level of the stack, or is not, by Python's version
            tables[m] = _table(m, frame, chosen.get(m, {}), index)
    elif likelihoods is not None:
        raise ValueError("likelihoods: with `like`, likelihoods are those of the other data set. Fix: leave one out.")
    else:
        tables = _tables_like(given, like, index)
        scale = like.scale
    covariates = _context(context, like, index)
    made = Frames(index, tables, covariates, scale)
    dtype = torch.get_default_dtype()
    data = {m: made.cells(m).to(dtype) for m in tables}
    return Read(data, {} if covariates is None else _values(covariates, dtype), made)


def _frames_of(like: Any) -> Frames | None:
    found = getattr(like, "frames", None)
    if like is not None and not isinstance(found, Frames):
        what = "one made of tensors" if hasattr(like, "frames") else type(like).__name__
        raise TypeError(f"like: expected a dataset made by from_frames, got {what}.")
    return found


def _check_likelihoods(likelihoods: Any, frames: Mapping[str, Any]) -> dict[str, dict[Any, Any]]:
    """Modality -> column -> likelihood; one name for a modality stands for all of its columns."""
    if likelihoods is None:
        return {}
    if not isinstance(likelihoods, Mapping):
        raise TypeError(
            f"likelihoods: expected {{modality: {{column: likelihood}}}}, got {type(likelihoods).__name__}."
        )
    chosen = {}
    for m, own in likelihoods.items():
        if m not in frames:
            raise ValueError(f"likelihoods: no modality {m!r}; there are {', '.join(frames)}.")
        labels = frames[m].columns
        own = own if isinstance(own, Mapping) else dict.fromkeys(labels, own)
        unknown = [column for column in own if column not in labels]
        if unknown:
            raise ValueError(f"likelihoods: {m!r} has no column {some_of(unknown)}; it has {some_of(labels)}.")
        chosen[m] = dict(own)
    return chosen


def _table(m: str, frame: Any, likelihoods: Mapping[Any, Any], index: Any) -> Table:
    """One modality by its dtypes; columns of which nothing is observed are left out."""
    empty = frame.isna().to_numpy().all(0)
    if empty.any():
        names = some_of(frame.columns[empty])
        if empty.all():
            raise ValueError(f"frames[{m!r}]: nothing is observed, in none of its columns. Fix: leave it out.")
        _warn(f"frames[{m!r}]: nothing is observed of column {names} ({int(empty.sum())} in all): dropped.")
    source = frame.iloc[:, np.flatnonzero(~empty)]
    parts = [
        encoded(_where(m, label), series, likelihoods.get(label)) for label, series in source.items()
    ]
    same = [c.name for c, _, x in parts if indistinct(c.likelihood, x)]
    if same:
        _warn(
            f"frames[{m!r}]: cells of column {some_of(same)} ({len(same)} in all) differ by less than a millionth of "
            f"their size, which single precision can hardly tell: taken as constant. Fix: subtract a number amid them."
        )
    return Table.made([c for c, _, _ in parts], source, np.stack([x for _, _, x in parts], 1), index)


def _tables_like(frames: Mapping[str, Any], like: Frames, index: Any) -> dict[str, Table]:
    unknown = [m for m in frames if m not in like.columns]
    if unknown:
        raise ValueError(f"frames: `like` has no modality {some_of(unknown)}; it has {', '.join(like.columns)}.")
    tables = {}
    for m in like.columns:
        tables[m] = _table_like(f"frames[{m!r}]", m, frames.get(m), like.table(m), index)
    return tables


def _table_like(where: str, m: str, frame: Any, like: Table, index: Any) -> Table:
    """One modality by the columns of another table; what is absent is missing."""
    pandas = optional_import("pandas", "tables")
    labels = like.source.columns
    if frame is None:
        frame = pandas.DataFrame(index=index[:0])
    extra = [label for label in frame.columns if label not in labels]
    if extra:
        _warn(f"{where}: `like` has no column {some_of(extra)} ({len(extra)} in all): dropped.", _CALLER + 1)
    parts: list[Encoded] = []
    for label, column, dtype in zip(labels, like.columns, like.source.dtypes, strict=True):
        if label in frame.columns:
            parts.append(encoded_like(_where(m, label), frame[label], column, dtype))
        else:
            parts.append((column, decoded(np.zeros(len(frame)), column, dtype), np.full(len(frame), np.nan)))
    cells = {i: getattr(own, "array", own) for i, (_, own, _) in enumerate(parts)}
    source = pandas.DataFrame(cells, index=frame.index).set_axis(labels, axis=1)
    return Table.made(like.columns, source, np.stack([x for _, _, x in parts], 1), index)


def _context(context: Any, like: Frames | None, index: Any) -> Table | None:
    """The covariates of the rows, complete."""
    wanted = None if like is None else like.context_table
    if context is None:
        if wanted is not None:
            raise ValueError(
                f"context: `like` has {some_of(wanted.source.columns)}, none came. Fix: context=DataFrame with them."
            )
        return None
    frame = checked("context", context, "context")
    for label in frame.columns:
        if not isinstance(label, str):
            raise TypeError(f"context: column {label!r} is given to networks by name. Fix: a string.")
    if like is not None:
        frame = _context_like(frame, wanted)
    frame = frame.reindex(_present(frame.index, index))
    for label in frame.columns:
        missing = frame[label].isna().to_numpy()
        if missing.any():
            raise ValueError(
                f"context, column {label!r}: missing for {some_of(index[missing])} ({int(missing.sum())} rows); "
                f"covariates are given, never modelled. Fix: fill it, drop the rows, or make it a column of a modality."
            )
    if wanted is not None:
        dtypes = wanted.source.dtypes
        parts = [
            encoded_like(f"context, column {c.name!r}", frame[c.name], c, dtypes[c.name]) for c in wanted.columns
        ]
    else:
        parts = [encoded(f"context, column {label!r}", s, None, context=True) for label, s in frame.items()]
    source = optional_import("pandas", "tables").DataFrame({c.name: own for c, own, _ in parts}, index=index)
    return Table.made([c for c, _, _ in parts], source, np.stack([x for _, _, x in parts], 1), index)


def _present(own: Any, index: Any) -> Any:
    """The ids of the data set, of which the context must have every one."""
    absent = index[~index.isin(own)]
    if len(absent):
        raise ValueError(
            f"context: no row for {some_of(absent)} ({len(absent)} of {len(index)} rows); its ids are {some_of(own)}. "
            f"Fix: a row for each sample of any frame."
        )
    return index


def _context_like(frame: Any, wanted: Table | None) -> Any:
    labels = [] if wanted is None else list(wanted.source.columns)
    absent = [label for label in labels if label not in frame.columns]
    if absent:
        raise ValueError(f"context: column {some_of(absent)} of `like` is missing. Fix: add it.")
    extra = [label for label in frame.columns if label not in labels]
    if extra:
        _warn(f"context: `like` has no column {some_of(extra)} ({len(extra)} in all): dropped.", _CALLER + 1)
    if not labels:
        raise ValueError("context: `like` has no covariates. Fix: leave it out.")
    return frame[labels]


def _values(table: Table, dtype: torch.dtype) -> dict[str, Tensor]:  # each shape: (N,)
    """Covariates by name: numbers and bools floating, classes int64."""
    values = table.cells()
    found = {}
    for i, column in enumerate(table.columns):
        own = torch.from_numpy(values[:, i].copy())
        found[str(column.name)] = own.long() if column.levels else own.to(dtype)
    return found


def _where(m: str, label: Any) -> str:
    label = label.item() if isinstance(label, np.generic) else label
    return f"frames[{m!r}], column {label!r}"


def _warn(message: str, level: int = _CALLER) -> None:
    warnings.warn(message, UserWarning, stacklevel=level + 1)
