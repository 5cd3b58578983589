"""A data set in words and numbers: columns, covariates, patterns of missingness.
Layer: datasets, private."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae._optional import optional_import
from pyro_mmvae.columns import Column
from pyro_mmvae.datasets import _checks
from pyro_mmvae.datasets._frames_kinds import some_of, whole

__all__ = ["Description", "describe"]

_SHOWN = 12  # columns of a modality that the text lists


@dataclass(frozen=True, eq=False)
class Description:
    """
    What :meth:`MultimodalDataset.describe` found; printed, it is a page of text.

    :ivar columns: DataFrame with one row per modality and column: ``likelihood``, ``observed`` (share of all rows),
        ``mean``, ``sd``, ``levels`` (with their counts), ``note``. Tensor modalities have one row, with their shape.
    :ivar context: DataFrame of the same form with one row per covariate.
    :ivar patterns: DataFrame with one row per pattern of modalities, most frequent first: a bool column per modality
        (anything observed), ``rows`` and ``share``.
    """

    columns: Any
    context: Any
    patterns: Any

    def __repr__(self) -> str:
        pandas = optional_import("pandas", "tables")
        rows = int(self.patterns["rows"].sum())
        lines = [f"{rows} rows"]
        with pandas.option_context("display.width", 200, "display.max_colwidth", 60, "display.max_columns", None):
            for m in self.columns.index.unique(0):
                own = self.columns.loc[m]
                lines.append(f"\n{m}: {len(own)} columns" + (f", the first {_SHOWN}" if len(own) > _SHOWN else ""))
                lines.append(_text(own.iloc[:_SHOWN]))
                if len(own) > _SHOWN:
                    kinds = own["likelihood"].value_counts().items()
                    lines.append("in all: " + ", ".join(f"{count} {kind}" for kind, count in kinds))
                    notes = own["note"].iloc[_SHOWN:]
                    lines += [f"{note}: {_names(notes.index[notes == note])}" for note in notes.unique() if note]
            if len(self.context):
                lines += ["\ncontext, given for every row", _text(self.context)]
            lines += ["\npatterns of modalities", self._patterns()]
        return "\n".join(lines)

    def _patterns(self) -> str:
        shown = self.patterns.head(20).copy()
        for m in shown.columns[:-2]:
            shown[m] = np.where(shown[m], "x", ".")
        shown["share"] = shown["share"].map("{:.0%}".format)
        more = len(self.patterns) - len(shown)
        return str(shown.to_string(index=False)) + (f"\nand {more} more" if more else "")


def _names(labels: Any) -> str:
    """The first labels, and how many more there are."""
    more = f" and {len(labels) - 8} more" if len(labels) > 8 else ""
    return ", ".join(str(label) for label in labels[:8]) + more


def _text(table: Any) -> str:
    """The columns that say anything."""
    shown = table.copy()
    shown["observed"] = shown["observed"].map("{:.0%}".format)
    for name in ("mean", "sd"):
        shown[name] = shown[name].map(lambda x: "" if np.isnan(x) else f"{x:.4g}")
    said = [name for name in shown.columns if (shown[name].astype(str) != "").any()]
    return str(shown[said].rename_axis(None).to_string())


def describe(
    ds: Any,  # MultimodalDataset
) -> Description:
    """The work of :meth:`MultimodalDataset.describe`."""
    pandas = optional_import("pandas", "tables")
    frames = ds.frames
    found: dict[tuple[str, str | int], dict[str, Any]] = {}
    for m in ds.modalities:
        value, mask = ds.data[m], ds.obs_mask[m]
        if frames is None:
            found[m, ""] = _of_tensor(value, mask)
            continue
        table = frames.table(m)
        cells, dtypes = table.cells(), table.source.dtypes
        seen = _checks.cells(mask, value).cpu().numpy()
        for i, column in enumerate(table.columns):
            own = cells[:, i][seen[:, i] & ~np.isnan(cells[:, i])]
            found[m, column.name] = _of_column(column, own, len(ds), dtypes.iloc[i])
    index = pandas.MultiIndex.from_tuples(list(found), names=["modality", "column"])
    return Description(pandas.DataFrame(list(found.values()), index=index), _context(pandas, ds), _patterns(pandas, ds))


def _of_tensor(value: Tensor, mask: Tensor) -> dict[str, Any]:
    cells = _checks.cells(mask, value)
    seen = value[cells].double()
    return {
        "likelihood": "",
        "observed": float(cells.double().mean()),
        "mean": float(seen.mean()) if len(seen) else np.nan,
        "sd": float(seen.std(correction=0)) if len(seen) else np.nan,
        "levels": "",
        "note": f"shape {tuple(value.shape[1:])}, {str(value.dtype).removeprefix('torch.')}",
    }


def _of_column(column: Column, seen: np.ndarray, n: int, dtype: Any) -> dict[str, Any]:  # seen, shape: (observed,)
    classes = column.kind in ("category", "ordinal")
    counts = np.bincount(seen.astype(np.int64), minlength=len(column.levels)) if classes else np.empty(0)
    shown = [f"{level} ({count})" for level, count in zip(column.levels, counts, strict=False)]
    numeric = not classes and len(seen) > 0
    return {
        "likelihood": column.likelihood,
        "observed": len(seen) / n,
        "mean": float(seen.mean()) if numeric else np.nan,
        "sd": float(seen.std()) if numeric else np.nan,
        "levels": (" < " if column.kind == "ordinal" else ", ").join(shown[:8] + ["..."] * (len(shown) > 8)),
        "note": "; ".join(_notes(column, seen, counts, dtype)),
    }


def _notes(column: Column, seen: np.ndarray, counts: np.ndarray, dtype: Any) -> list[str]:
    """What a reader should know about a column, or decide otherwise."""
    if len(seen) == 0:
        return ["nothing observed"]
    notes = []
    kind = str(getattr(dtype, "kind", "O"))
    if (seen == seen[0]).all():
        notes.append("constant")
    if kind == "f" and column.kind in ("count", "category") and whole(seen):
        notes.append("floats that are whole numbers with gaps, read as integers")
    if kind == "f" and column.kind == "binary":
        notes.append("floats that are 0 or 1, read as bools")
    if kind == "O" and column.kind == "binary":
        notes.append("objects that are bools")
    if column.kind == "count" and len(seen) > 1 and seen.std() > 0 and seen.var() < 0.5 * seen.mean():
        notes.append("varies less than counts do; 'normal' may fit better")
    if column.kind == "count" and 2 < len(np.unique(seen)) < 6:
        notes.append(f"{len(np.unique(seen))} different values; a category if they are classes")
    if column.kind == "category" and kind in "iuf":
        notes.append("two numbers, read as classes")
    never = [level for level, count in zip(column.levels, counts, strict=False) if count == 0]
    if never:
        notes.append(f"never observed: {some_of(never)}")
    return notes


def _context(pandas: Any, ds: Any) -> Any:
    frames = ds.frames
    found = {}
    if frames is not None and frames.context_table is not None:
        table = frames.context_table
        cells = table.cells()
        for i, column in enumerate(table.columns):
            found[column.name] = _of_column(column, cells[:, i], len(ds), table.source.dtypes.iloc[i])
    else:
        for name in ds.covariates:
            value = ds.data[name]
            found[name] = _of_tensor(value, torch.ones(len(value), dtype=torch.bool, device=value.device))
    return pandas.DataFrame(list(found.values()), index=pandas.Index(list(found), name="column"))


def _patterns(pandas: Any, ds: Any) -> Any:
    state = torch.stack([_checks.some(ds.obs_mask[m]).cpu() for m in ds.modalities], -1)
    patterns, counts = torch.unique(state, dim=0, return_counts=True)
    order = torch.argsort(counts, descending=True, stable=True)
    table = pandas.DataFrame(patterns[order].numpy(), columns=list(ds.modalities))
    table["rows"] = counts[order].numpy()
    table["share"] = table["rows"] / len(ds)
    return table
