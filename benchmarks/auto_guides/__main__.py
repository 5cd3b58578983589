"""All stories: ``python -m benchmarks.auto_guides``."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.auto_guides import report
from benchmarks.auto_guides.runs import STORIES, Run, perform


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not on file, then print the table; with --report write the page instead of running."""
    options = _options(argv)
    if options.report is not None:
        options.report.write_text(report.page(report.read(options.out)))
        print(f"{options.report} written")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    runs = [Run(story, options.seconds, options.seed) for story in options.stories]
    left = [run for run in runs if options.again or run.kept(options.out) is None]
    print(f"{len(left)} of {len(runs)} stories to run, {options.jobs} at a time", flush=True)
    _perform_all(left, options.out, options.jobs)
    print(f"\n{report.table(report.read(options.out))}")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.auto_guides", description=main.__doc__)
    known = ", ".join(STORIES)
    parser.add_argument("--stories", nargs="+", choices=STORIES, default=STORIES, metavar="STORY", help=known)
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU time of one training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="stories at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("auto-guides-output"), help="folder of the results")
    parser.add_argument("--again", action="store_true", help="run anew what is on file")
    parser.add_argument("--report", type=Path, help="write the page from the results in --out, and run nothing")
    return parser.parse_args(argv)


def _perform_all(runs: Sequence[Run], folder: Path, jobs: int) -> None:
    """Each run in a process of its own, with one thread: its CPU time is its budget."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is loaded in the children
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        futures = {pool.submit(perform, run, folder): run for run in runs}
        for done, future in enumerate(as_completed(futures), 1):
            error = future.exception()
            said = future.result() if error is None else f"{futures[future].story}: FAILED: {error!r}"
            print(f"[{done}/{len(runs)}] {said}", flush=True)


if __name__ == "__main__":
    main()
