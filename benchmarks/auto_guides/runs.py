"""One story: train its automatic guide, measure its gaps, write a file."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import TraceEnum_ELBO

import pyro_mmvae as mm
from benchmarks.auto_guides import gaps
from benchmarks.auto_guides.references import EXACT, log_evidence
from benchmarks.on_file import on_file
from pyro_mmvae.stories import examples

__all__ = ["STORIES", "Run", "fit_within", "perform"]

#: The stories, in the order of the table.
STORIES = tuple(EXACT)

BATCH, LR, LAST_LR, CLIP = 256, 3e-3, 0.01, 10.0


@dataclass(frozen=True)
class Run:
    """
    A row of the table.

    :param story: name of a class in ``pyro_mmvae.stories.examples``.
    :param seconds: of training, CPU time of one thread.
    :param seed: of the initial weights, the data and the noise; the story's parameters are always those of seed 0.
    :param train: rows to train on; a model with global latents has 300, which are also those it is measured on.
    :param held_out: rows to measure on.
    :param draws: per row, of the guide.
    """

    story: str
    seconds: float = 120.0
    seed: int = 0
    train: int = 20_000
    held_out: int = 500
    draws: int = 200

    def file(self, folder: Path) -> Path:
        """Where its results are kept."""
        return folder / f"{self.story}-{self.seed}.json"

    def kept(self, folder: Path) -> dict[str, Any] | None:
        """Its results, if a run with the same settings is on file."""
        return on_file(self.file(folder), self)


def perform(run: Run, folder: Path) -> str:
    """Train, measure, write the file; returns a line that says what came out."""
    torch.set_num_threads(1)  # the budget is CPU time of one thread
    pyro.clear_param_store()
    torch.manual_seed(run.seed)
    story = getattr(examples, run.story)()
    shared = bool(getattr(story, "global_sites", ()))
    train = story.simulate(300 if shared else run.train, seed=run.seed + 1)
    model = story.observed()
    vae = mm.MultimodalVAE(model, automatic(model, train), objective_of(model, train))
    budget = fit_within(vae, train, run.seconds, run.seed, len(train) if shared else BATCH)
    held_out = train if shared else story.simulate(run.held_out, seed=run.seed + 2)
    found = measured(story, vae, held_out, run.draws)
    found |= {"seconds": budget.elapsed, "steps": budget.steps, "parameters": sum(p.numel() for p in vae.parameters())}
    run.file(folder).write_text(json.dumps({"run": asdict(run), **found}, indent=1))
    return f"{run.story}: gap {found['gap']:.3f} ± {found['error']:.3f}, IWAE gap {found['IWAE gap']:.3f}"


def automatic(model: Any, train: mm.MultimodalDataset) -> Any:
    """The guide, with no option but the data that it standardizes with."""
    if isinstance(model, mm.stories.ObservedModel):
        return mm.guides.auto(model, data=train)
    return mm.guides.auto(model, modalities=model.modalities, data=train)


def objective_of(model: Any, train: mm.MultimodalDataset) -> Any:
    """Stock ``TraceEnum_ELBO`` where a latent is enumerated, else the default."""
    if not isinstance(model, mm.stories.ObservedModel):
        return mm.ELBO()
    covariates = {name: train.data[name] for name in model.covariates}
    latents = model.door.outline(covariates).latents.values()
    return TraceEnum_ELBO(max_plate_nesting=1) if any(site.enumerated for site in latents) else mm.ELBO()


def measured(story: Any, vae: mm.MultimodalVAE, ds: mm.MultimodalDataset, draws: int) -> dict[str, Any]:
    """The gaps of the guide and, for scale, of the prior as a proposal."""
    log_p = log_evidence(story, ds.data, ds.obs_mask)
    ask = partial(gaps.measure, rows=len(ds), particles=min(draws, 100))
    if getattr(story, "global_sites", ()):
        whole = log_p.sum().unsqueeze(0)
        found = ask(whole, gaps.dataset_weights(vae.model, vae.guide, ds, draws))
        prior = ask(whole, gaps.prior_weights(vae.model, ds, draws))
    else:
        weights = gaps.row_weights(vae.model, vae.guide, ds, draws)
        found = ask(log_p, weights, patterns=gaps.patterns_of(ds))
        prior = ask(log_p, gaps.row_weights(vae.model, gaps.nothing, ds, draws))
    return found | {"prior gap": prior["gap"], "log p": float(log_p.mean()), "rows": len(ds)}


class Budget:
    """
    A callback of ``fit``: the learning rate falls along a cosine as the budget is used, and training ends when it is.

    :param seconds: CPU time of this process, from the construction on.
    :ivar elapsed: seconds used.
    :ivar steps: training steps so far.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.start, self.elapsed, self.steps = seconds, time.process_time(), 0.0, 0

    def __call__(self, event: str, state: Any) -> None:
        if event != "step":
            return
        self.steps += 1
        self.elapsed = time.process_time() - self.start
        used = torch.tensor(min(self.elapsed / self.seconds, 1.0))
        for group in state.optimizer.param_groups:
            group["lr"] = LR * float(LAST_LR + (1 - LAST_LR) * (1 + torch.cos(torch.pi * used)) / 2)
        state.stop = self.elapsed >= self.seconds


def fit_within(vae: mm.MultimodalVAE, train: mm.MultimodalDataset, seconds: float, seed: int, batch: int) -> Budget:
    """Train with ``fit`` for so many CPU seconds."""
    budget = Budget(seconds)
    mm.fit(
        vae, train, epochs=10**6, batch_size=batch, lr=LR, clip_norm=CLIP, callbacks=[budget], progress=False, seed=seed
    )
    vae.eval()
    return budget
