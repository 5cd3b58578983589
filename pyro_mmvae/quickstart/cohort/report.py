"""What the program prints about tables.

Layer: quickstart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_mmvae.columns import Column
from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.quickstart.cohort.heldout import METHODS

__all__ = ["likelihoods", "patterns", "scores", "scores_as_text", "standardized_error", "what_was_read"]

SHOWN = 3  # names of columns per likelihood
HEADINGS = {"model": "this model", "mean": "column mean", "neighbors": "10 neighbors", "ridge": "ridge"}


def what_was_read(ds: MultimodalDataset, paths: dict[str, Path], frames: dict[str, Any]) -> str:
    """Files with rows and columns, and how many ids they share."""
    width = max(len(str(path)) for path in paths.values())
    lines = [
        f"{path!s:{width}}  {m}: {frames[m].shape[0]:,} rows, {_count(frames[m].shape[1], 'column')}"
        for m, path in paths.items()
    ]
    common = set.intersection(*(set(frame.index) for frame in frames.values()))
    shared = f", {len(common):,} of them in every file" if len(frames) > 1 else ""
    lines.append(f"{len(ds):,} ids{shared}")
    if ds.covariates:
        lines.append(f"given, never modelled: {', '.join(_named(c) for c in _frames(ds).context)}")
    return "\n".join(lines)


def likelihoods(ds: MultimodalDataset) -> str:
    """The likelihood of each column: names by likelihood, the first few of many, and what should be looked at."""
    lines = ["The likelihood of each column (--likelihood modality.column=... chooses another)"]
    notes = ds.describe().columns["note"]
    for m, columns in _frames(ds).columns.items():
        kinds: dict[str, list[Column]] = {}
        for column in columns:
            kinds.setdefault(column.likelihood, []).append(column)
        for i, (kind, own) in enumerate(kinds.items()):
            lines.append(f"  {m if i == 0 else '':12} {len(own):>5} {kind:18} {_some([_named(c) for c in own])}")
        said = notes.loc[m]
        lines += [f"{'':15}{note}: {_some(list(map(str, said.index[said == note])))}" for note in said.unique() if note]
    return "\n".join(lines)


def patterns(ds: MultimodalDataset, most: int = 12) -> str:
    """Which modalities are seen together how often, and the share of single cells that is missing from them."""
    table = ds.describe().patterns
    names = list(table.columns[:-2])
    widths = [max(len(m), 4) for m in names]
    lines = ["What is there (x) and what is missing (.)", "  " + _cells(names, widths) + "    rows   share"]
    for row in table.head(most).itertuples(index=False):
        marks = ["x" if there else "." for there in row[:-2]]
        lines.append(f"  {_cells(marks, widths)}{row[-2]:>8,}{row[-1]:>8.0%}")
    if len(table) > most:
        lines.append(f"  and {len(table) - most} more patterns")
    inside = [_missing_inside(ds, m) for m in names]
    shares = [f"{share:.1%}" for share in inside]
    return "\n".join([*lines, f"  {_cells(shares, widths)}  single cells missing where the modality is there"])


def scores(cells: Any) -> Any:  # pandas.DataFrame
    """
    One row per modality and what was hidden of it.

    Numbers: the root mean squared error in standard deviations of the training rows (of logarithms for positive ones),
    and the share inside the model's 90 % intervals. Classes: the share that is right.

    :param cells: of :func:`~pyro_mmvae.quickstart.cohort.heldout.compared`.
    """
    rows: dict[Any, dict[str, float]] = {}
    order = dict.fromkeys(zip(cells["hidden"], cells["modality"], strict=True))
    for hidden, m in order:
        for number in (True, False):
            own = cells[(cells["hidden"] == hidden) & (cells["modality"] == m) & (cells["number"] == number)]
            if len(own) == 0:
                continue
            inside = (own["lower"] <= own["truth"]) & (own["truth"] <= own["upper"])
            found = {name: _score(own, name, number) for name in METHODS}
            found |= {"coverage": float(inside.mean()) if number else np.nan, "cells": len(own)}
            rows[hidden, m, "RMSE" if number else "accuracy"] = found
    names = ["hidden", "modality", "score"]
    return type(cells).from_dict(rows, orient="index").rename_axis(index=names).reset_index(names=names)


def scores_as_text(table: Any) -> str:
    """:func:`scores` in two blocks: whole modalities hidden, and single cells."""
    titles = {
        "modality": "A whole modality hidden, predicted from the other ones",
        "cells": "Single cells hidden, predicted from all the rest",
    }
    width = max(8, *(len(m) for m in table["modality"]))
    lines = []
    for hidden, title in titles.items():
        own = table[table["hidden"] == hidden]
        if len(own) == 0:
            continue
        heads = "".join(f"{HEADINGS[name]:>14}" for name in METHODS)
        lines.append(f"{title}\n  {'':{width}}  {'':8}{'cells':>8}{heads}{'90 % interval':>16}")
        for row in own.to_dict("records"):
            numbers = "".join(f"{row[name]:>14.3f}" for name in METHODS)
            inside = "-" if np.isnan(row["coverage"]) else f"{row['coverage']:.3f}"
            lines.append(f"  {row['modality']:{width}}  {row['score']:8}{row['cells']:>8,}{numbers}{inside:>16}")
    return "\n".join(lines)


def _score(cells: Any, name: str, number: bool) -> float:
    if number:
        return float((standardized_error(cells, name) ** 2).mean() ** 0.5)
    return float((cells[name] == cells["truth"]).mean())


def standardized_error(cells: Any, name: str) -> Any:  # pandas.Series
    """Prediction minus truth of numbers, for positive ones of their logarithms, in standard deviations."""
    pair = cells[[name, "truth"]].mask(cells["log"], np.log(cells[[name, "truth"]].where(cells["log"], 1.0)), axis=0)
    return (pair[name] - pair["truth"]) / cells["scale"]


def _missing_inside(ds: MultimodalDataset, m: str) -> float:
    known = ~np.isnan(_frames(ds).cells(m).numpy())
    there = known[known.any(1)]
    return float(1 - there.mean()) if len(there) else 0.0


def _frames(ds: MultimodalDataset) -> Any:
    return ds.frames


def _named(column: Column) -> str:
    """A column with its levels, if it has any."""
    if not column.levels:
        return str(column.name)
    mark = " < " if column.kind == "ordinal" else ", "
    more = ", ..." if len(column.levels) > 6 else ""
    return f"{column.name} ({mark.join(map(str, column.levels[:6]))}{more})"


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _cells(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{text:^{width + 1}}" for text, width in zip(texts, widths, strict=True))


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("s" if n != 1 else "")
