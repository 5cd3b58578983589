"""Checks of single DataFrames, and the outer join of their rows.
Layer: datasets, private."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_mmvae._optional import optional_import
from pyro_mmvae.datasets import _checks
from pyro_mmvae.datasets._frames_kinds import some_of

__all__ = ["checked", "checked_frames", "joined_index"]


def checked_frames(frames: Any) -> dict[str, Any]:
    """
    A mapping from modality names to DataFrames with unique rows and columns.

    :raises TypeError: for anything else.
    :raises ValueError: if there is no frame, or one has no rows, no columns, or repeats either.
    """
    if not isinstance(frames, Mapping):
        raise TypeError(
            f"frames: expected a mapping from modality names to DataFrames, got {type(frames).__name__}. "
            f"Fix: {{'name': frame}}."
        )
    if not frames:
        raise ValueError("frames: expected at least one DataFrame, got an empty mapping.")
    _checks.check_names(frames, reserved=_checks.RESERVED)
    return {m: checked(f"frames[{m!r}]", frame, m) for m, frame in frames.items()}


def checked(where: str, frame: Any, name: str) -> Any:  # pandas.DataFrame
    """One DataFrame; a Series becomes one column, called ``name`` if it has no name."""
    pandas = optional_import("pandas", "tables")
    if isinstance(frame, pandas.Series):
        frame = frame.to_frame(name if frame.name is None else frame.name)
    if not isinstance(frame, pandas.DataFrame):
        raise TypeError(f"{where}: expected a pandas.DataFrame, got {type(frame).__name__}. Fix: pd.DataFrame(...).")
    if 0 in frame.shape:
        raise ValueError(f"{where} is empty: {frame.shape[0]} rows, {frame.shape[1]} columns. Fix: leave it out.")
    _check_columns(where, frame.columns)
    _check_index(where, frame.index)
    return frame


def _check_columns(where: str, labels: Any) -> None:
    if labels.nlevels > 1:
        raise ValueError(
            f"{where}: its columns have {labels.nlevels} levels. Fix: frame.columns = frame.columns.map('_'.join)."
        )
    strange = [x for x in labels if isinstance(x, (bool, np.bool_)) or not isinstance(x, (str, int, np.integer))]
    if strange:
        raise TypeError(
            f"{where}: column labels are strings or integers, got {some_of(strange)}. "
            f"Fix: frame.columns = frame.columns.astype(str)."
        )
    repeated = labels[labels.duplicated()].unique()
    if len(repeated):
        raise ValueError(f"{where}: the column label {some_of(repeated)} is there more than once. Fix: rename.")


def _check_index(where: str, index: Any) -> None:
    nameless = index.to_frame().isna().to_numpy().any(1)  # of several levels, too
    if nameless.any():
        raise ValueError(f"{where}: {int(nameless.sum())} rows have no id (NaN in the index). Fix: drop them.")
    repeated = index[index.duplicated()].unique()
    if len(repeated):
        raise ValueError(
            f"{where}: the index names each sample once, but {some_of(repeated)} "
            f"{'is' if len(repeated) == 1 else 'are'} there more than once ({len(repeated)} ids). "
            f"Fix: frame[~frame.index.duplicated()], frame.groupby(level=0).mean(), or frame.set_index(the ids)."
        )


def joined_index(frames: Mapping[str, Any]) -> Any:  # pandas.Index
    """
    The ids of all frames, in the order in which they appear first.

    :raises ValueError: if the frames fall into groups that share no ids.
    """
    _check_shared({m: frame.index for m, frame in frames.items()})
    index = None
    for frame in frames.values():
        if index is None:
            index = frame.index
            continue
        new = frame.index[~frame.index.isin(index)]
        index = index.append(new) if len(new) else index
    return index


def _check_shared(indices: Mapping[str, Any]) -> None:
    """Every frame is tied to the first by shared ids, perhaps through others."""
    (first, tied), *rest = indices.items()
    names, waiting = [first], dict(rest)
    while waiting:
        near = [m for m, index in waiting.items() if index.isin(tied).any()]
        if not near:
            break
        for m in near:
            tied = tied.append(waiting.pop(m))
        names += near
    if waiting:
        other, index = next(iter(waiting.items()))
        raise ValueError(
            f"frames[{other!r}] shares no id with {', '.join(names)}: its index has {some_of(index)}, theirs "
            f"{some_of(tied)}.{_hint(tied, index)} Fix: the ids of the samples as the index, written alike."
        )


def _hint(a: Any, b: Any) -> str:
    """What would make ids equal: their type, or spaces and capitals."""
    if a.nlevels > 1 or b.nlevels > 1:
        return ""
    for way, text in (
        (str, " As text some are equal ('12' is not 12): frame.index = frame.index.astype(str)."),
        (lambda x: str(x).strip().lower(), " Some differ by spaces or capitals only: frame.index.str.strip()."),
    ):
        if {way(x) for x in a} & {way(x) for x in b}:
            return text
    return ""
