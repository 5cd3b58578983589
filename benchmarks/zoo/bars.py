"""What a row is asked to reach, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.zoo.baselines import INDEPENDENT, MEAN, NEIGHBOR
from benchmarks.zoo.methods import METHODS
from pyro_mmvae.quickstart.scores import HALVES

__all__ = ["Rows", "Seeds", "average", "difference", "missed"]

ACCURACY, CROSS_ACCURACY, BELOW_MEAN = 0.60, 0.80, 0.97

Seeds = Mapping[int, Mapping[str, Any]]
"""Seed -> scores."""

Rows = Mapping[tuple[str, str], Seeds]
"""(kind, name) -> the scores of a row."""


def difference(one: Seeds, other: Seeds, score: str) -> tuple[float, float]:
    """
    Mean difference of two rows' log-likelihoods in nats per digit, and its standard error.

    Digits are compared in pairs. The error has two parts: the choice of held-out digits (over which the mean of the
    seeds' differences varies), and the seed.
    """
    seeds = sorted(set(one) & set(other))
    if not seeds:
        raise ValueError(f"{score}: the two rows have no seed in common.")
    by_seed = [[a - b for a, b in zip(one[s][score], other[s][score], strict=True)] for s in seeds]
    by_digit = [mean(pair) for pair in zip(*by_seed, strict=True)]
    means = [mean(values) for values in by_seed]
    over_seeds = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return mean(by_digit), math.hypot(stdev(by_digit) / math.sqrt(len(by_digit)), over_seeds)


def missed(name: str, rows: Rows) -> list[str]:
    """The bars that a method does not reach, in words; those whose other row was not run are left out."""
    own, method = rows["method", name], METHODS[name]
    found = []
    least = CROSS_ACCURACY if method.cross else ACCURACY
    for half in HALVES:
        if average(own, f"accuracy {half}") < least:
            found.append(f"label from {half} below {least:.2f}")
    for half in HALVES:
        found += _rmse(own, half, method.cross, rows)
    return found + _log_p(name, own, rows)


def average(row: Seeds, score: str) -> float:
    """Mean over seeds; of log-likelihoods over digits as well."""
    values = [scores[score] for scores in row.values()]
    return mean(mean(v) if isinstance(v, Sequence) else v for v in values)


def _rmse(own: Seeds, half: str, cross: bool, rows: Rows) -> list[str]:
    error, found = average(own, f"rmse {half}"), []
    trivial, neighbor = rows.get(("baseline", MEAN)), rows.get(("baseline", NEIGHBOR))
    if trivial is not None and error > BELOW_MEAN * average(trivial, f"rmse {half}"):
        found.append(f"RMSE of {half} not 3 % below the mean's")
    if cross and neighbor is not None and error >= average(neighbor, f"rmse {half}"):
        found.append(f"RMSE of {half} not below the nearest neighbor's")
    return found


def _log_p(name: str, own: Seeds, rows: Rows) -> list[str]:
    independent, peer, found = rows.get(("baseline", INDEPENDENT)), rows.get(("multivae", name)), []
    if independent is not None and difference(own, independent, "log p_O")[0] <= 0:
        found.append("log p(x_O) not above independent VAEs")
    if peer is not None:
        value, error = difference(own, peer, "log p_O")
        if value < -2 * error:
            found.append("log p(x_O) more than two standard errors below multivae")
    return found
