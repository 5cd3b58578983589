"""Which known cells are hidden from rows that no training sees.

Layer: quickstart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.quickstart.cohort.encoding import is_number

__all__ = ["FIFTHS", "Part", "Task", "parts"]

FIFTHS = 5  # of the rows, one of which is held out at a time
SHARE = 0.2  # of single cells that are hidden


@dataclass(frozen=True)
class Task:
    """
    Cells of one modality that are to be predicted for some rows.

    :ivar seen: the rows as methods may see them, but for ``given``.
    :ivar given: where the whole modality is hidden the other ones, which are all that may be used; None where single
        cells are hidden.
    :ivar truth: (n, P), the cells to predict; NaN elsewhere, and in columns of numbers that all training rows share.
    """

    modality: str
    seen: MultimodalDataset
    given: frozenset[str] | None
    truth: np.ndarray

    @property
    def hidden(self) -> str:
        """What is hidden, "modality" or "cells"."""
        return "cells" if self.given is None else "modality"


@dataclass(frozen=True)
class Part:
    """Rows to learn from, rows that are held out, and what is to be predicted for these."""

    train: MultimodalDataset
    test: MultimodalDataset
    tasks: tuple[Task, ...]


def parts(ds: MultimodalDataset, number: int, seed: int) -> list[Part]:
    """
    So many parts, in each of which another fifth of the rows is held out.

    :raises ValueError: if there are too few rows, or nothing to hide.
    """
    if len(ds) < 4 * FIFTHS:
        raise ValueError(f"{len(ds)} samples are too few to hold some out. Fix: at least {4 * FIFTHS}.")
    order = torch.randperm(len(ds), generator=torch.Generator().manual_seed(seed))
    made = []
    for i, test in enumerate(order.tensor_split(FIFTHS)[:number]):
        train, rest = ds[order[~torch.isin(order, test)].sort().values], ds[test.sort().values]
        compared = [_telling(task, train) for task in tasks(rest, seed + i)]
        made.append(Part(train, rest, tuple(task for task in compared if not np.isnan(task.truth).all())))
    if not any(part.tasks for part in made):
        raise ValueError("no cell can be held out that others could tell. Fix: a second table, or more columns.")
    return [part for part in made if part.tasks]


def tasks(test: MultimodalDataset, seed: int) -> Iterator[Task]:
    """Each modality hidden from the rows that also have another one; then a fifth of all single cells."""
    seen = torch.stack([mask.reshape(len(test), -1).any(-1) for mask in test.obs_mask.values()], -1)
    for i, m in enumerate(test.modalities):
        rows = (seen[:, i] & (seen.sum(-1) > 1)).nonzero()[:, 0]
        if len(rows):
            part = test[rows]
            yield Task(m, part, frozenset(test.modalities) - {m}, cells_of(part, m))
    if sum(len(test.data[m][0]) for m in test.modalities) == 1:
        return  # the only cell of a row
    left = test.hide(SHARE, seed=seed, level="feature")
    for m in test.modalities:
        truth = np.where(np.isnan(cells_of(left, m)), cells_of(test, m), np.nan)
        if not np.isnan(truth).all():
            yield Task(m, left, None, truth)


def _telling(task: Task, train: MultimodalDataset) -> Task:
    """Without the cells of number columns that have a single value in the training rows: errors have no unit there."""
    cells, columns = cells_of(train, task.modality), train.frames.columns[task.modality] if train.frames else ()
    alike = [is_number(c) and len(np.unique(x[~np.isnan(x)])) < 2 for c, x in zip(columns, cells.T, strict=True)]
    return replace(task, truth=np.where(alike, np.nan, task.truth))


def cells_of(ds: MultimodalDataset, m: str) -> np.ndarray:  # shape: (N, P), NaN = missing
    if ds.frames is None:
        raise TypeError("expected a dataset made from DataFrames.")
    return np.asarray(ds.frames.cells(m).numpy())
