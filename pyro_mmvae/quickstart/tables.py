"""The scores as text.

Layer: quickstart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from pyro_mmvae.quickstart.scores import SUBSETS

__all__ = ["Run", "report"]

MODEL = "this model"
ROWS = {
    MODEL: "half of all entries",
    "5 neighbors": "rows with all it needs",
    "SVM, complete rows": "complete rows",
    "SVM, all labels": "everything, nothing hidden",
    "training mean": "half of all entries",
}
COLUMNS = {
    "accuracy top": "top",
    "accuracy bottom": "bottom",
    "accuracy top+bottom": "both",
    "rmse bottom": "bottom",
    "rmse top": "top",
}


@dataclass(frozen=True)
class Run:
    """One training: the scores of the model and of the baselines, and the CPU seconds that went into it."""

    seed: int
    model: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    training: float
    scoring: float


def report(runs: Sequence[Run], digits: int, particles: int) -> str:
    """All tables; with several runs their means and standard deviations, and a table by seed."""
    parts = [_predictions(runs, digits), _uncertainty(runs), _log_likelihoods(runs, particles)]
    parts += [_by_seed(runs)] if len(runs) > 1 else []
    return "\n\n".join([*parts, _time(runs)])


def _predictions(runs: Sequence[Run], digits: int) -> str:
    """Label accuracy and error of completion, beside the baselines."""
    seeds = f", mean and standard deviation of {len(runs)} seeds" if len(runs) > 1 else ""
    lines = [
        f"{digits} held-out digits{seeds}",
        f"{'':48}{'label accuracy from':^36}{'RMSE of completing':>24}",
        f"{'':20}{'trained on':28}" + "".join(f"{column:>12}" for column in COLUMNS.values()),
    ]
    for name, source in ROWS.items():
        columns = "".join(f"{_cell([_scores(r, name).get(c) for r in runs], c):>12}" for c in COLUMNS)
        lines.append(f"{name:20}{source:28}{columns}".rstrip())
    return "\n".join(lines)


def _scores(run: Run, name: str) -> Mapping[str, float]:
    return run.model if name == MODEL else run.baselines[name]


def _cell(values: Sequence[float | None], column: str) -> str:
    """A mean, with its spread over seeds; a dash where there is no such score."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    digits = 3 if column.startswith("accuracy") else 2
    spread = f" ±{stdev(known):.{digits}f}".replace("±0.", "±.") if len(known) > 1 else ""
    return f"{mean(known):.{digits}f}{spread}"


def _uncertainty(runs: Sequence[Run]) -> str:
    def over_seeds(score: str) -> float:
        return mean(r.model[score] for r in runs)

    return "\n".join(
        [
            f"{'Hidden pixels':48}{'bottom':>12}{'top':>12}",
            f"{'share inside the central 90 % interval':48}"
            + "".join(f"{over_seeds(f'coverage {half}'):>12.3f}" for half in ("bottom", "top")),
            f"{'grey levels between two completions of a digit':48}"
            + "".join(f"{over_seeds(f'spread {half}'):>12.2f}" for half in ("bottom", "top")),
        ]
    )


def _log_likelihoods(runs: Sequence[Run], particles: int) -> str:
    """Each subset's log-likelihood, and that of the rest given it."""
    full = "+".join(SUBSETS[-1])
    lines = [
        f"log p(x_S) in nats per digit, importance sampling with K = {particles}",
        f"{'S':20}{'mean':>10}{'± over digits':>16}{'± of one estimate':>20}{'ESS':>8}{'log p(rest | x_S)':>20}",
    ]
    for name in map("+".join, SUBSETS):
        value, over, one, ess = (
            mean(r.model[f"log p {name}{part}"] for r in runs) for part in ("", " over digits", " per digit", " ess")
        )
        rest = f"{mean(r.model[f'log p {full}'] for r in runs) - value:>20.2f}" if name != full else f"{'-':>20}"
        lines.append(f"{name:20}{value:>10.2f}{over:>16.2f}{one:>20.2f}{ess:>8.0f}{rest}")
    return "\n".join(lines)


def _by_seed(runs: Sequence[Run]) -> str:
    columns = [*COLUMNS, "coverage bottom", "coverage top"]
    lines = ["this model, seed by seed", f"{'seed':6}" + "".join(f"{c:>21}" for c in columns)]
    lines += [f"{r.seed:<6}" + "".join(f"{r.model[c]:>21.3f}" for c in columns) for r in runs]
    return "\n".join(lines)


def _time(runs: Sequence[Run]) -> str:
    training, scoring = mean(r.training for r in runs), mean(r.scoring for r in runs)
    return f"CPU time of one run: {training:.0f} s training, {scoring:.0f} s scoring."
