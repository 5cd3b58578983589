"""Interleaved timing: what is compared runs in turns, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

__all__ = ["interleaved"]


def interleaved(
    steps: Mapping[str, Callable[[], object]], *, rounds: int = 60, warmup: int = 10
) -> dict[str, float]:
    """
    Median seconds of each step.

    :param steps: name -> what is timed; all run once per round, in an order that rotates.
    :param rounds: measured rounds.
    :param warmup: rounds before.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(warmup + rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            steps[name]()
            if i >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}
