"""The table, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.auto_guides.references import EXACT

__all__ = ["page", "read", "table"]

Results = dict[str, dict[str, Any]]

TARGET = 0.1  # nats per sample
FEW = 10  # rows of a pattern below which its mean says little


def read(folder: Path) -> Results:
    """The results in a folder, by story, in the order of the table; of several seeds, the one of the lowest."""
    found: Results = {}
    for path in sorted(folder.glob("*.json"), reverse=True):
        result = json.loads(path.read_text())
        found[result["run"]["story"]] = result
    return {name: found[name] for name in EXACT if name in found}


_HEADS = (
    "story", "log p by", "log p(x_O)", "gap", "gap of IWAE(100)", "gap of the prior", "largest gap of a mask", "steps",
)  # fmt: skip


def table(results: Results) -> str:
    """The table alone."""
    lines = [_line(_HEADS), _line(["---", "---", *["---:"] * 4, "---", "---:"])]
    return "\n".join([*lines, *(_line(_cells(name, found)) for name, found in results.items())])


def _cells(name: str, found: dict[str, Any]) -> list[str]:
    met = "" if found["gap"] <= TARGET else " (missed)"
    return [
        name,
        EXACT[name],
        f"{found['log p']:.2f}",
        f"{found['gap']:.3f} ± {found['error']:.3f}{met}",
        f"{found['IWAE gap']:.4f} ± {found['IWAE error']:.4f}",
        f"{found['prior gap']:.1f}",
        worst(found),
        str(found["steps"]),
    ]


def worst(found: dict[str, Any]) -> str:
    """The pattern of observed modalities with the largest mean gap, among those with enough rows."""
    known = {name: p for name, p in found["patterns"].items() if p["rows"] >= FEW}
    if not known:
        return "–"
    name = max(known, key=lambda pattern: known[pattern]["gap"])
    return f"{known[name]['gap']:.3f} ± {known[name]['error']:.3f} ({name}, {known[name]['rows']} rows)"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(results: Results) -> str:
    """
    The page of the documentation: how it was made, the table, how to read it.

    :raises ValueError: if there are no results.
    """
    if not results:
        raise ValueError("no results in this folder. Fix: run `python -m benchmarks.auto_guides` first.")
    runs = [found["run"] for found in results.values()]
    settings = {key: "/".join(f"{v:g}" for v in sorted({run[key] for run in runs})) for key in ("seconds", "draws")}
    met = sum(found["gap"] <= TARGET for found in results.values())
    return _PAGE.format(table=table(results), met=met, count=len(results), target=TARGET, **settings)


_PAGE = """# Automatic guides, measured

`mm.guides.auto(story)` writes the guide of any story. Here it is trained on stories whose log p(x_O) is known, for
{seconds} CPU seconds of one thread each, and asked how far its bound lies below. At most {target:g} nats per sample is
the target; {met} of {count} stories meet it. `python -m benchmarks.auto_guides` makes the runs,
`python -m benchmarks.auto_guides --report docs/source/auto_guides.md` this page.

{table}

The stories are those of `pyro_mmvae.stories.examples`, with the parameters of seed 0; these are fixed, so that only the
guide is trained. It gets no option but the training data, with which it standardizes its inputs. Of 20,000 training
rows and 500 held-out rows 30 % of the modalities are hidden at random, each row keeping one, and 10 % of the single
cells that are left.

Columns, in nats per sample: the mean of log p(x_O) over the held-out rows; the gap, the mean over rows of

$$ \\log p(x_O) - \\frac1K \\sum_k \\bigl[ \\log p(x_O, z_k) - \\log q(z_k \\mid x_O) \\bigr], \\qquad
z_k \\sim q(z \\mid x_O), \\quad K = {draws}, $$

which estimates KL(q(z | x_O) || p(z | x_O)) without bias, with its standard error over rows; the same for the
importance-weighted bound of 100 draws; the gap of a guide that proposes from the prior, for scale. The last but one
names the set of observed modalities with the largest mean gap, of those with at least 10 rows. The class of
DiscreteMixture is summed out, as `TraceEnum_ELBO` does. Quadratures are good to 1e-4 nats in the worst row.

Hospitals has global latents: its rows are dependent, q has a factor for the globals, and what is bounded is log p of
all 300 rows, on which the guide is trained and measured at once. Its gaps are those of the whole data set divided by
300, errors are over draws, and the importance weights are those of whole draws, globals and all rows together: with
so many latents in one weight 100 draws gain little.
"""
