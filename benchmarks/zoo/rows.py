"""The rows of each method's own page: ``python -m benchmarks.zoo.rows zoo-output docs/source/methods/rows``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.zoo import report
from benchmarks.zoo.bars import Rows
from benchmarks.zoo.baselines import INDEPENDENT
from benchmarks.zoo.methods import METHODS

__all__ = ["main", "rows_of", "write"]

_PAGE = """## Its row in the comparison

All methods share data, networks and budget: see [the comparison](../zoo.md), which explains the columns.

{table}
"""

_NONE = "<!-- made from the results of python -m benchmarks.zoo; none are on file yet -->\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the rows of all methods from a folder of results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo.rows", description=main.__doc__)
    parser.add_argument("results", type=Path, help="folder of the results, one file per run")
    parser.add_argument("pages", type=Path, help="folder of the rows, one file per class")
    options = parser.parse_args(argv)
    print(f"{len(write(options.results, options.pages))} methods have rows")


def write(results: Path, pages: Path) -> list[str]:
    """
    A file for each class in ``METHODS``; without results it holds a comment. Returns the classes that have rows.

    :param results: a folder of results, one file per run.
    :param pages: an existing folder; files there are replaced.
    """
    rows, found = report.read(results), []
    for kind in dict.fromkeys(method.kind for method in METHODS.values()):
        table = rows_of(kind, rows)
        (pages / f"{kind}.md").write_text(_PAGE.format(table=table) if table else _NONE)
        found += [kind] if table else []
    return found


def rows_of(kind: str, rows: Rows) -> str:
    """
    The rows of a class's settings and of multivae's same methods, and that of a VAE per modality; "" without results.

    :param kind: name of the class.
    :param rows: all results.
    """
    own = [name for name, method in METHODS.items() if method.kind == kind and ("method", name) in rows]
    if not own:
        return ""
    wanted = {*own, *(f"· multivae's {name}" for name in own), f"*{INDEPENDENT}*"}
    head, rule, *lines = report.table(rows).splitlines()
    return "\n".join([head, rule, *(line for line in lines if line.split(" | ")[0].removeprefix("| ") in wanted)])


if __name__ == "__main__":
    main()
