"""``python -m pyro_mmvae.quickstart --tables a.csv b.csv``: from files with gaps to completed files with intervals.

Layer: quickstart; the file to read first of this folder.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from pyro_mmvae._optional import optional_import
from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.quickstart.cohort import heldout, hiding, pictures, report, writing
from pyro_mmvae.quickstart.cohort.learning import learned
from pyro_mmvae.quickstart.cohort.reading import CONTEXT, Tables, name_of, read_tables
from pyro_mmvae.training.rng import preserved

__all__ = ["main"]

_PROGRAM = "python -m pyro_mmvae.quickstart"
_EXPLAINED = """\
RMSE: root mean squared error in standard deviations of the column (0 is perfect); accuracy: share of classes that are
right; 90 % interval: share of numbers inside the model's. The mean of classes is the most frequent one."""


def main(argv: Sequence[str] | None = None) -> None:
    """
    Read CSV files of one cohort, say what is in them, hide known cells of held-out samples and predict them, then train
    on everything and write the completed tables, standard deviations, intervals, latents and pictures.
    """
    options = _options(argv)
    torch.set_num_threads(1)  # tables this small gain next to nothing from more, and runs are the same everywhere
    try:
        tables, ds = _read(options)
        parts = hiding.parts(ds, options.folds, options.seed)
    except (ValueError, TypeError, OSError, ImportError) as error:
        _refuse(error, options.tables)
    print(report.what_was_read(ds, tables.paths, tables.frames), end="\n\n")
    print(report.likelihoods(ds), end="\n\n")
    print(report.patterns(ds), end="\n\n")
    limits = optional_import("threadpoolctl").threadpool_limits(1)  # numpy's threads, as torch's
    with limits, preserved(torch.device("cpu"), options.seed):  # draws too are those of the seed
        cells = _held_out(parts, options)
        scores = report.scores(cells)
        print(f"\n{report.scores_as_text(scores)}\n{_EXPLAINED}\n")
        start = time.perf_counter()
        vae = learned(ds, **_training(options))
        print(f"Trained on all {len(ds):,} samples, {time.perf_counter() - start:.0f} s. Written:")
        for path, what in writing.write_all(vae, ds, cells, scores, options.output):
            print(f"  {path}: {what}")
        for path, what in pictures.draw_all(vae, ds, cells, options.output):
            print(f"  {path}: {what}")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=main.__doc__)
    parser.add_argument("--tables", type=Path, nargs="+", required=True, metavar="CSV", help="one file per modality")
    parser.add_argument("--context", type=Path, metavar="CSV", help="covariates: given for every sample, not modelled")
    parser.add_argument(
        "--likelihood", type=_override, nargs="+", action="extend", default=[], metavar="MODALITY.COLUMN=NAME",
        help="of a column, or of all of a modality (MODALITY=NAME)",
    )  # fmt: skip
    parser.add_argument(
        "--drop", type=_column, nargs="+", action="extend", default=[], metavar="MODALITY.COLUMN",
        help="columns to leave out; context.COLUMN for covariates",
    )  # fmt: skip
    parser.add_argument("--scale", choices=("standard", "robust", "none"), default="standard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, choices=range(1, hiding.FIFTHS + 1), default=hiding.FIFTHS,
                        help="how many fifths of the samples are held out, one after the other")  # fmt: skip
    parser.add_argument("--epochs", type=_positive(int), help="passes over the data; default: by their size")
    parser.add_argument("--seconds", type=_positive(float), help="end each training after this time")
    parser.add_argument("--output", type=Path, default=Path("tables-output"))
    return parser.parse_args(argv)


def _column(text: str) -> tuple[str, str]:
    """``modality.column``."""
    m, dot, column = text.partition(".")
    if not (m and dot and column):
        raise argparse.ArgumentTypeError(f"expected MODALITY.COLUMN, got {text!r}")
    return m, column


def _override(text: str) -> tuple[str, str | None, str]:
    """``modality.column=likelihood``, or ``modality=likelihood``."""
    where, equals, likelihood = text.rpartition("=")
    m, _, column = where.partition(".")
    if not (m and equals and likelihood):
        raise argparse.ArgumentTypeError(f"expected MODALITY.COLUMN=LIKELIHOOD, got {text!r}")
    return m, column if column else None, likelihood


def _positive(kind: type[int] | type[float]) -> Any:
    def read(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
        return value

    return read


def _read(options: argparse.Namespace) -> tuple[Tables, MultimodalDataset]:
    """The files as one dataset; what was dropped is said."""
    optional_import("pandas", "tables")
    likelihoods = _likelihoods(options.likelihood)
    drop: dict[str, list[str]] = {}
    for m, column in options.drop:
        drop.setdefault(m, []).append(column)
    named = {m: own for m, own in likelihoods.items() if isinstance(own, dict)}
    classes = {m: [c for c, kind in own.items() if kind in ("categorical", "ordinal")] for m, own in named.items()}
    tables = read_tables(options.tables, options.context, classes=classes, drop=drop)
    scale = None if options.scale == "none" else options.scale
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        ds = MultimodalDataset.from_frames(tables.frames, tables.context, scale, likelihoods)
    for note in caught:
        print(f"note: {_with_files(str(note.message), options.tables)}", file=sys.stderr)
    return tables, ds


def _likelihoods(wishes: Sequence[tuple[str, str | None, str]]) -> dict[str, Any]:
    """As :meth:`MultimodalDataset.from_frames` takes them."""
    found: dict[str, Any] = {}
    for m, column, likelihood in wishes:
        if m == CONTEXT:
            raise ValueError("--likelihood: covariates are given and have none. Fix: leave it out.")
        if column is None:
            found[m] = likelihood
        elif isinstance(found.setdefault(m, {}), dict):
            found[m][column] = likelihood
        else:
            raise ValueError(f"--likelihood: one for all of {m}, and one for its column {column!r}. Fix: columns only.")
    return found


def _refuse(error: Exception, paths: Sequence[Path]) -> NoReturn:
    """One line that says what is wrong, and exit code 2."""
    print(f"{_PROGRAM}: error: {_with_files(str(error), paths)}", file=sys.stderr)
    raise SystemExit(2)


def _with_files(message: str, paths: Sequence[Path]) -> str:
    """A message of the library in one line, in which tables go by their files."""
    for path in paths:
        message = message.replace(f"frames[{name_of(path)!r}]", str(path))
    return " ".join(message.split())


def _training(options: argparse.Namespace) -> dict[str, Any]:
    return {"seed": options.seed, "epochs": options.epochs, "seconds": options.seconds}


def _held_out(parts: Sequence[hiding.Part], options: argparse.Namespace) -> Any:
    """Each part of the samples predicted by models that did not see it."""
    pandas = optional_import("pandas", "tables")
    found = []
    for i, part in enumerate(parts):
        start = time.perf_counter()
        vae = learned(part.train, **_training(options))
        trained = time.perf_counter()
        cells = heldout.compared(vae, part, options.seed)
        cells.insert(0, "fold", i)
        found.append(cells)
        print(
            f"Held out, part {i + 1} of {len(parts)}: {len(part.train):,} samples to learn from "
            f"({trained - start:.0f} s), {len(part.test):,} to predict ({time.perf_counter() - trained:.0f} s)",
            flush=True,
        )
    return pandas.concat(found, ignore_index=True)
