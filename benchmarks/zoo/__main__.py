"""All methods and baselines, with several seeds: ``python -m benchmarks.zoo``."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path

from benchmarks.zoo import report
from benchmarks.zoo.baselines import BASELINES
from benchmarks.zoo.methods import METHODS, available
from benchmarks.zoo.runs import Run, perform

KINDS = ("method", "multivae", "baseline")


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not on file, then print the table; with --report write the page instead of running."""
    options = _options(argv)
    if options.report is None:
        options.out.mkdir(parents=True, exist_ok=True)
        wanted = list(_wanted(options))
        left = [run for run in wanted if options.again or run.kept(options.out) is None]
        print(f"{len(left)} of {len(wanted)} runs to make, {options.jobs} at a time", flush=True)
        _perform_all(left, options.out, options.jobs)
        print(f"\n{report.table(report.read(options.out))}")
    else:
        options.report.write_text(report.page(report.read(options.out)))
        print(f"{options.report} written")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=main.__doc__)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="which rows; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time of one training")
    parser.add_argument("--particles", type=int, default=1000, help="importance samples per log-likelihood")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("zoo-output"), help="folder of the results, one file per run")
    parser.add_argument("--again", action="store_true", help="make runs anew that are on file")
    parser.add_argument("--report", type=Path, help="write the page from the results in --out, and run nothing")
    return parser.parse_args(argv)


def _wanted(options: argparse.Namespace) -> Iterator[Run]:
    """Seed by seed, so that an interrupted command leaves complete seeds; a method at the same time as multivae's."""
    known = available()
    missing = [name for name in options.methods or () if name not in known]
    if missing:
        raise SystemExit(f"not in this version of the library: {', '.join(missing)}")
    chosen = list(known) if options.methods is None else options.methods
    rows = [(kind, name) for kind in options.kinds for name in _names(kind, chosen)]
    order = {name: i for i, name in enumerate([*BASELINES, *chosen])}
    rows.sort(key=lambda row: order[row[1]])
    for seed in options.seeds:
        for kind, name in rows:
            yield Run(kind, name, seed, options.seconds, options.particles)


def _names(kind: str, chosen: Sequence[str]) -> list[str]:
    """The rows of a kind."""
    if kind == "baseline":
        return list(BASELINES)
    if kind == "method":
        return list(chosen)
    if find_spec("multivae") is None:
        print("multivae is not installed: its rows are left out")
        return []
    from benchmarks.zoo.peer import PEERS

    return [name for name in chosen if name in PEERS]


def _perform_all(runs: Sequence[Run], folder: Path, jobs: int) -> None:
    """Each run in a process of its own, with one thread: its CPU time is its budget."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is loaded in the children
    start = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        futures = {pool.submit(perform, run, folder): run for run in runs}
        for done, future in enumerate(as_completed(futures), 1):
            minutes = (time.perf_counter() - start) / 60
            error, run = future.exception(), futures[future]
            said = future.result() if error is None else f"{run.kind} {run.name}, seed {run.seed}: FAILED: {error!r}"
            print(f"[{done}/{len(runs)}, {minutes:.0f} min] {said}", flush=True)


if __name__ == "__main__":
    main()
