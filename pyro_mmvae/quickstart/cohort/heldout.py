"""What each method says about known cells that were hidden from it.

Layer: quickstart; pandas is imported where it is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_mmvae._optional import optional_import
from pyro_mmvae.inference.completed import Completed
from pyro_mmvae.quickstart.cohort import baselines
from pyro_mmvae.quickstart.cohort.encoding import Encoding, is_number
from pyro_mmvae.quickstart.cohort.hiding import Part, Task
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["LEVEL", "METHODS", "compared"]

METHODS = ("model", "mean", "neighbors", "ridge")
LEVEL = 0.9  # of intervals
_ROWS, _CELLS = 200, 50  # columns of a modality that are looked at, where modalities and where cells are hidden
_DRAWS = 200


def compared(vae: MultimodalVAE, part: Part, seed: int) -> Any:
    """
    What the model and the simpler methods say about hidden cells of held-out rows.

    :param seed: of the columns that are looked at in wide tables.
    :returns: pandas.DataFrame with one row per cell: ``hidden``, ``modality``, ``column``, ``row``, ``number`` (whether
        it is one; else a class), ``log`` (whether its logarithm is compared), ``scale`` (standard deviation of what is
        compared, in the training rows), ``truth``, a prediction by each
        of :data:`METHODS`, and the ends of the model's central 90 % interval, ``lower`` and ``upper``. Classes are
        their places in the levels.
    """
    pandas = optional_import("pandas", "tables")
    encoding = Encoding(part.train)
    learned = encoding.features(part.train)
    found, cells = [], None
    for task in part.tasks:
        if task.given is not None:
            full = vae.predict(task.seen, given=task.given, target={task.modality}, num_samples=_DRAWS, progress=False)
        elif cells is None:  # the single cells of all modalities are predicted together
            full = cells = vae.impute(task.seen, num_samples=_DRAWS, progress=False)
        else:
            full = cells
        columns = _looked_at(task, seed)
        said = _said(full, task.modality) | _simpler(task, encoding, learned, columns)
        found.append(_table(pandas, task, encoding, columns, said))
    return pandas.concat(found, ignore_index=True)


def _looked_at(task: Task, seed: int) -> np.ndarray:
    """Columns that are compared: all with a cell to predict, or some of these at random of a wide table."""
    columns = np.flatnonzero(~np.isnan(task.truth).all(0))
    most = _ROWS if task.given is not None else _CELLS
    if len(columns) <= most:
        return columns
    return np.sort(np.random.default_rng(seed).choice(columns, most, replace=False))


def _said(full: Completed, m: str) -> dict[str, np.ndarray]:  # each shape: (n, P)
    """
    The model's predictions: means of numbers, geometric ones of positive numbers, the more probable value of bools, the
    most frequent class.
    """
    gaps, columns = full.gaps[m], full.frames.columns[m]
    where = gaps.cells.numpy()
    place = np.nonzero(where)[1]
    middle = gaps.means.double().numpy()
    kind = np.array([c.kind for c in columns])[place]
    middle = np.where(kind == "binary", (middle > 0.5).astype(float), middle)
    classes, positive = np.isin(kind, ("category", "ordinal")), kind == "positive"
    draws = gaps.draws.double().cpu()
    middle[classes] = draws[:, classes].mode(0).values.numpy()
    middle[positive] = draws[:, positive].log().mean(0).exp().numpy()
    found = {"model": np.full(where.shape, np.nan)}
    found["model"][where] = middle
    for name, frame in zip(("lower", "upper"), full.interval(LEVEL), strict=True):
        ends = np.full(where.shape, np.nan)
        for i, column in enumerate(columns):
            if is_number(column):
                ends[:, i] = frame[m].iloc[:, i].astype(float)
        found[name] = ends
    return found


def _simpler(task: Task, encoding: Encoding, learned: np.ndarray, columns: np.ndarray) -> dict[str, np.ndarray]:
    """Predictions of the simpler methods, for the columns that are compared."""
    m, own = task.modality, [k for k in encoding.blocks if k[0] == task.modality]
    new = encoding.features(task.seen)
    keys = [(m, int(i)) for i in columns]
    wanted, every = encoding.of(keys), encoding.of(list(encoding.blocks))
    found = {name: np.zeros((len(new), len(every))) for name in METHODS[1:]}
    if task.given is not None:
        new[:, encoding.of(own)] = np.nan
        others = np.setdiff1d(every, encoding.of(own))
        found["ridge"][:, wanted] = baselines.ridge(learned, new, others, wanted)
    else:
        for key in keys:
            block = encoding.of([key])
            rows = ~np.isnan(task.truth[:, key[1]])
            if rows.any():
                others = np.setdiff1d(every, block)
                found["ridge"][np.ix_(rows, block)] = baselines.ridge(learned, new[rows], others, block)
    found["neighbors"][:, wanted] = baselines.neighbors(learned, new, wanted)
    made = {name: np.full(task.truth.shape, np.nan) for name in found}
    for name, features in found.items():
        for key in keys:
            made[name][:, key[1]] = encoding.cells(key, features[:, encoding.blocks[key].places])
    return made


def _table(pandas: Any, task: Task, encoding: Encoding, columns: np.ndarray, said: dict[str, np.ndarray]) -> Any:
    """One row per hidden cell of these columns."""
    known = ~np.isnan(task.truth)
    known[:, np.setdiff1d(np.arange(known.shape[1]), columns)] = False
    row, place = np.nonzero(known)
    blocks = [encoding.blocks[task.modality, int(i)] for i in range(known.shape[1])]
    own = np.array([is_number(b.column) for b in blocks])
    scale = np.array([encoding.scale[b.start] for b in blocks])
    names = np.array([str(b.column.name) for b in blocks], dtype=object)
    ids = np.asarray(task.seen.frames.index, dtype=object) if task.seen.frames is not None else np.arange(len(known))
    cells = {"hidden": task.hidden, "modality": task.modality, "column": names[place], "row": ids[row]}
    logs = np.array([b.column.kind == "positive" for b in blocks])
    cells |= {"number": own[place], "log": logs[place], "scale": scale[place], "truth": task.truth[known]}
    return pandas.DataFrame(cells | {name: said[name][known] for name in (*METHODS, "lower", "upper")})
