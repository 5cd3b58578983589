"""``fit``: the training loop.

Layer: training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.training import checkpoint as checkpoints
from pyro_mmvae.training.batches import DoorBatches, PreparedBatches, make_batches
from pyro_mmvae.training.checks import (
    check_callable,
    check_callbacks,
    check_dataset,
    check_folder,
    check_number,
    check_optimizer,
    check_vae,
)
from pyro_mmvae.training.diverged import TrainingDiverged
from pyro_mmvae.training.history import Callback, Event, History, State
from pyro_mmvae.training.progress import ProgressBar
from pyro_mmvae.training.rng import get_states, preserved, set_states
from pyro_mmvae.training.step import Step, default_optimizer
from pyro_mmvae.training.validation import Best, annealed, modes_restored, validation_loss

__all__ = ["fit"]

AnyBatches = PreparedBatches | DoorBatches


def fit(
    vae: nn.Module,
    ds: MultimodalDataset,
    *,
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 1e-3,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    scheduler: Callable[[Any], LRScheduler] | None = None,
    clip_norm: float | None = None,
    validation: MultimodalDataset | float | None = None,
    patience: int | None = None,
    callbacks: Collection[Callback] = (),
    progress: bool = True,
    seed: int | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
) -> History:
    r"""
    Train a model, its guide and its objective on a data set in which anything may be missing.

    Semantically equivalent to::

        for epoch in range(epochs):
            for data, obs_mask in ds.batches(batch_size, shuffle=True):
                optimizer.zero_grad()
                loss = vae.objective.differentiable_loss(vae.model, vae.guide, data, obs_mask) / len(batch)
                loss.backward()
                optimizer.step()
                vae.objective.advance()                  # the annealing clock

    The data set is checked and filled once, cast to the dtype of the parameters and moved to their device, if it fits
    into half of the free memory there (else batch by batch). Where the model's plate scales the loss up to ``size``
    rows, it is divided by these.

    With a seed the run is reproducible (order of rows, split, dropout, draws), and torch's global random state is left
    as found; without one it goes on from the global state. Modes (``train``, ``eval``) of all modules are left as found.

    With validation data the weights with the lowest validation loss are put back at the end; epochs count, for this and
    for ``patience``, once the annealing of the objective (``annealing_steps``) is over. The validation loss uses the
    same noise in every epoch. After a ``KeyboardInterrupt`` the same weights are put back, then it is raised again.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> class VAE(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = mm.observe(self.story, ("x",), modules={})
        ...         self.guide = mm.guides.Product(self.model, {"x": mm.nn.MLPEncoder(2, 1)})
        ...         self.objective = mm.ELBO()
        ...     @staticmethod
        ...     def story():
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z.expand(z.shape[:-1] + (2,)), 1.0).to_event(1))
        >>> ds = mm.datasets.MultimodalDataset({"x": torch.randn(20, 1).expand(20, 2)})
        >>> history = fit(VAE(), ds, epochs=3, validation=0.2, progress=False, seed=0)
        >>> history["epoch"], len(history["val_loss"])
        ([1, 2, 3], 3)

    :param vae: a module with the attributes ``model``, ``guide`` and ``objective``. All its parameters that require a
        gradient are trained.
    :param epochs: passes over the data, in total: a resumed run makes the rest of them.
    :param batch_size: rows per step; the last batch of an epoch may be smaller.
    :param lr: learning rate of Adam, fused where possible; not used if ``optimizer`` is given.
    :param optimizer: parameters -> any torch optimizer that needs no closure, e.g. ``lambda p: AdamW(p, lr=1e-3)``.
    :param scheduler: optimizer -> a schedule, stepped once per epoch; ``ReduceLROnPlateau`` gets the validation loss,
        or the training loss without validation data.
    :param clip_norm: largest 2-norm of the gradient of the loss per row.
    :param validation: a data set, or the fraction of rows to hold out.
    :param patience: stop after so many epochs without a better validation loss.
    :param callbacks: called as ``f(event, state)`` at "train_start", "stage", each "step", "validation" and "epoch",
        and at the "end", when the best weights are back; see :class:`State`.
    :param progress: whether to show a progress bar.
    :param device: where to train, ``vae`` is moved there; default: where its parameters are.
    :param checkpoint: file to write after each epoch: weights, optimizer, schedule, random states, history; no data.
    :param resume: such a file: go on as if the run had not stopped. The learning rate is the one in the file. Without
        a seed torch's global random state becomes the one in the file.
    :raises TrainingDiverged: if the loss or a gradient is not finite, naming step, modality and site; the parameters
        are those after the last good step.
    :raises ValueError: for options out of range, data that the model refuses, a file that is no checkpoint of this run.
    :raises TypeError: for arguments of the wrong kind, and for parameters that are in Pyro's store only.
    """
    check_vae(vae)
    check_dataset("ds", ds)
    check_callbacks(callbacks)
    check_number("epochs", epochs, int, least=0)
    check_number("batch_size", batch_size, int, least=1)
    check_number("lr", lr, float, above=0)
    for name, option in (("optimizer", optimizer), ("scheduler", scheduler)):
        check_callable(name, option)
    if clip_norm is not None:
        check_number("clip_norm", clip_norm, float, above=0)
    if seed is not None:
        check_number("seed", seed, int, least=0)
    if patience is not None:
        check_number("patience", patience, int, least=1)
        if validation is None:
            raise ValueError("patience: early stopping needs a validation loss. Fix: validation=0.1, or a data set.")
    saved = None if resume is None else checkpoints.read(Path(resume))
    target = None if checkpoint is None else check_folder(Path(checkpoint))
    if device is not None:
        vae.to(device)
    place = next(vae.parameters()).device
    number = _run_number(seed) if saved is None else saved["seed"]
    with ExitStack() as stack:
        stack.enter_context(modes_restored(vae))
        if seed is not None:
            stack.enter_context(preserved(place, seed))
        train, held_out = _split(ds, validation, number)
        shuffle = torch.Generator(device="cpu").manual_seed(number)
        batches = make_batches(vae, train, batch_size, place, shuffle)
        valid = None if held_out is None else make_batches(vae, held_out, batch_size, place)
        parameters = [p for p in vae.parameters() if p.requires_grad]
        optim = default_optimizer(parameters, lr) if optimizer is None else check_optimizer(optimizer(parameters))
        state = State(vae, optim, epochs)
        own = [stack.enter_context(ProgressBar(len(batches)))] if progress else []
        loop = _Loop(
            state, batches, valid,
            schedule=None if scheduler is None else scheduler(optim),
            step=Step(state, clip_norm, place),
            callbacks=[*own, *callbacks],
            patience=patience, checkpoint=target, seed=seed, number=number, device=place,
        )  # fmt: skip
        if saved is not None:
            loop.load(Path(str(resume)), saved)
        loop.run()
    return state.history


def _run_number(seed: int | None) -> int:
    """What the order of rows, the split and the validation noise start from."""
    return int(torch.randint(2**31, (), device="cpu")) if seed is None else seed


def _split(
    ds: MultimodalDataset,
    validation: MultimodalDataset | float | None,
    number: int,
) -> tuple[MultimodalDataset, MultimodalDataset | None]:
    if validation is None:
        return ds, None
    if isinstance(validation, int | float):
        if isinstance(validation, bool) or not 0 < validation < 1:
            raise ValueError(f"validation: expected a data set or a fraction in (0, 1), got {validation!r}.")
        train, held_out = ds.split(1 - validation, seed=number)
        return train, held_out
    check_dataset("validation", validation)
    return ds, validation


class _Loop:
    """The epochs of one run."""

    def __init__(
        self,
        state: State,
        batches: AnyBatches,
        valid: AnyBatches | None,
        *,
        schedule: LRScheduler | None,
        step: Step,
        callbacks: list[Callback],
        patience: int | None,
        checkpoint: Path | None,
        seed: int | None,
        number: int,
        device: torch.device,
    ) -> None:
        self.state, self.batches, self.valid, self.schedule, self.step = state, batches, valid, schedule, step
        self.callbacks, self.patience, self.checkpoint = callbacks, patience, checkpoint
        self.number, self.device, self.best = number, device, Best()
        self.started = time.perf_counter()
        self.settings = {
            "seed": seed,
            "batch_size": batches.batch_size,
            "rows": batches.num_rows,
            "validation rows": None if valid is None else valid.num_rows,
            "optimizer": type(state.optimizer).__name__,
            "scheduler": None if schedule is None else type(schedule).__name__,
        }

    def run(self) -> None:
        state, vae = self.state, self.state.vae
        self.emit("train_start")
        self.emit("stage")
        try:
            while state.epoch < state.epochs and not state.stop and not self.out_of_patience:
                vae.train()
                self.epoch()
        except TrainingDiverged:
            raise
        except KeyboardInterrupt:
            self.best.restore(vae)
            raise
        finally:
            state.optimizer.zero_grad()
        self.best.restore(vae)
        self.emit("end")

    @property
    def out_of_patience(self) -> bool:
        return self.patience is not None and self.best.waited >= self.patience

    def emit(self, event: Event) -> None:
        self.state.seconds = time.perf_counter() - self.started
        for callback in self.callbacks:
            callback(event, self.state)

    def epoch(self) -> None:
        state = self.state
        state.epoch += 1
        total, seen = 0.0, 0
        for data, obs_mask in self.batches:
            rows = next(iter(data.values())).shape[0]
            state.loss = self.step(data, obs_mask)
            total, seen = total + state.loss * rows, seen + rows
            self.emit("step")
            if state.stop:
                break
        state.loss, lr = total / seen, state.lr
        self.validate()
        self.advance_schedule()
        losses = {"loss": state.loss} if state.val_loss is None else {"loss": state.loss, "val_loss": state.val_loss}
        seconds = time.perf_counter() - self.started
        state.history.add(epoch=state.epoch, **losses, seconds=seconds, lr=lr)
        self.emit("epoch")
        if self.checkpoint is not None:
            self.save(self.checkpoint)

    def validate(self) -> None:
        state = self.state
        if self.valid is None:
            return
        state.val_loss = validation_loss(state.vae, self.valid, seed=self.number, device=self.device)
        if annealed(state.vae.objective):
            self.best.see(state.val_loss, state.epoch, state.vae)
            state.history.best_epoch = self.best.epoch
        self.emit("validation")

    def advance_schedule(self) -> None:
        state, schedule = self.state, self.schedule
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(state.loss if state.val_loss is None else state.val_loss)
        elif schedule is not None:
            schedule.step()

    def save(self, path: Path) -> None:
        state, shuffle = self.state, self.batches.generator
        checkpoints.write(path, {
            "settings": self.settings,
            "seed": self.number,
            "weights": state.vae.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scheduler": None if self.schedule is None else self.schedule.state_dict(),
            "random": get_states(self.device),
            "shuffle": None if shuffle is None else shuffle.get_state(),
            "epoch": state.epoch,
            "step": state.step,
            "seconds": time.perf_counter() - self.started,
            "history": dict(state.history),
            "best": vars(self.best),
        })  # fmt: skip

    def load(self, path: Path, saved: dict[str, Any]) -> None:
        state = self.state
        checkpoints.refuse_other_run(path, saved, self.settings, state.vae)
        state.optimizer.load_state_dict(saved["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["scheduler"])
        state.vae.load_state_dict(saved["weights"])
        if self.batches.generator is not None:
            self.batches.generator.set_state(saved["shuffle"])
        set_states(saved["random"], self.device)
        state.epoch, state.step = saved["epoch"], saved["step"]
        self.started -= saved["seconds"]
        self.best = Best(**saved["best"])
        state.history.update(saved["history"])
        state.history.best_epoch = self.best.epoch
