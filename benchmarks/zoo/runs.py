"""One training: what is run, what it is scored by, and the file that keeps it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyro
import torch

from benchmarks.on_file import on_file
from benchmarks.zoo import scores
from benchmarks.zoo.baselines import BASELINES
from benchmarks.zoo.methods import METHODS
from benchmarks.zoo.networks import digits, networks
from benchmarks.zoo.training import fit_within

__all__ = ["Run", "perform"]


@dataclass(frozen=True)
class Run:
    """
    A row of the table with one seed.

    :param kind: "method", "multivae" or "baseline".
    :param seconds: the budget, CPU time.
    :param particles: importance samples per log-likelihood.
    """

    kind: Literal["method", "multivae", "baseline"]
    name: str
    seed: int
    seconds: float
    particles: int

    def file(self, folder: Path) -> Path:
        """Where its scores are kept."""
        name = re.sub(r"\W+", "-", f"{self.kind} {self.name}")
        return folder / f"{name}-{self.seed}.json"

    def kept(self, folder: Path) -> dict[str, Any] | None:
        """Its scores, if a run with the same settings is on file."""
        return on_file(self.file(folder), self)


def perform(run: Run, folder: Path) -> str:
    """Train, score, write the file; returns a line that says what came out."""
    torch.set_num_threads(1)  # the budget is CPU time of one thread
    pyro.clear_param_store()
    torch.manual_seed(run.seed)
    found = {"method": _method, "multivae": _multivae, "baseline": _baseline}[run.kind](run)
    run.file(folder).write_text(json.dumps({"run": asdict(run), **found}))
    shown = {k: sum(v) / len(v) if isinstance(v, list) else v for k, v in found.items()}
    return f"{run.kind} {run.name}, seed {run.seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in shown.items())


def _method(run: Run) -> dict[str, Any]:
    data, method = digits(run.seed), METHODS[run.name]
    vae = method.build(networks(private=method.private))
    budget = fit_within(vae, data.train, run.seconds, run.seed)
    return _scored(vae, data, run, budget)


def _multivae(run: Run) -> dict[str, Any]:
    from benchmarks.zoo import peer

    data = digits(run.seed)
    model, vae = peer.build(run.name, networks(private=METHODS[run.name].private))
    budget = peer.fit_within(run.name, model, data.train, run.seconds, run.seed)
    peer.PEERS[run.name].transfer(model, vae)
    return _scored(vae.eval(), data, run, budget)


def _scored(vae: Any, data: Any, run: Run, budget: Any) -> dict[str, Any]:
    start = time.process_time()
    found = scores.of_model(vae, data, particles=run.particles)
    return found | {
        "seconds": budget.elapsed, "steps": budget.steps, "scoring seconds": time.process_time() - start,
    }  # fmt: skip


def _baseline(run: Run) -> dict[str, Any]:
    return BASELINES[run.name](digits(run.seed), run.seconds, run.seed, run.particles)
