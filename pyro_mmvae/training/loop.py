"""The epochs of a training run.

Layer: training.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.inference.schema import check_columns
from pyro_mmvae.nn import modes_restored
from pyro_mmvae.training import checkpoint as checkpoints
from pyro_mmvae.training.batches import make_batches
from pyro_mmvae.training.history import Callback, Event, History, State
from pyro_mmvae.training.lazy import make_parameters
from pyro_mmvae.training.options import Options, check_optimizer
from pyro_mmvae.training.progress import ProgressBar
from pyro_mmvae.training.rng import get_states, preserved, set_states
from pyro_mmvae.training.step import Step, default_optimizer, parameter_groups
from pyro_mmvae.training.traced import chosen_loss
from pyro_mmvae.training.validation import Best, annealed, validation_loss

__all__ = ["train"]


def train(vae: nn.Module, ds: MultimodalDataset, options: Options) -> History:
    """What ``fit`` does, see there."""
    saved = None if options.resume is None else checkpoints.read(Path(options.resume))
    if options.device is not None:
        vae.to(options.device)
    at_home = (p.device for p in vae.parameters())
    device = next(at_home, ds.data[ds.modalities[0]].device)
    number = _run_number(options.seed) if saved is None else saved["seed"]
    with ExitStack() as stack:
        stack.enter_context(modes_restored(vae))
        if options.seed is not None:
            stack.enter_context(preserved(device, options.seed))
        loop = _Loop(vae, ds, options, number, device)
        if saved is not None:
            loop.load(Path(str(options.resume)), saved)
        if options.progress:
            loop.callbacks.insert(0, stack.enter_context(ProgressBar(len(loop.batches))))
        loop.run()
    return loop.state.history


def _run_number(seed: int | None) -> int:
    """What the order of rows, the split and the validation noise start from."""
    return int(torch.randint(2**31, (), device="cpu")) if seed is None else seed


class _Loop:
    """
    The epochs of one run.

    :param number: what the order of rows, the split and the validation noise start from.
    :param device: where the parameters are.
    """

    def __init__(
        self, vae: nn.Module, ds: MultimodalDataset, options: Options, number: int, device: torch.device
    ) -> None:
        self.options, self.number, self.device, self.best = options, number, device, Best()
        train, held_out = self._split(ds)
        programs: Any = vae
        for part in (train, held_out):
            check_columns(programs.model, part, programs.guide)
        size, self.shuffle = options.batch_size, torch.Generator(device="cpu").manual_seed(number)
        self.batches = make_batches(vae, train, size, device, self.shuffle)
        self.valid = None if held_out is None else make_batches(vae, held_out, size, device)
        make_parameters(vae, train, size, device)
        parameters = [p for p in vae.parameters() if p.requires_grad]
        maker, schedule = options.optimizer, options.scheduler
        if maker is None:
            optimizer = default_optimizer(parameter_groups(vae), options.lr)
        else:
            optimizer = check_optimizer(maker(parameters))
        self.schedule: LRScheduler | None = None if schedule is None else schedule(optimizer)
        self.state = State(vae, optimizer, options.epochs)
        steps = options.epochs * len(self.batches)
        self.step = Step(self.state, options.clip_norm, device, chosen_loss(vae, options.trace, steps))
        self.callbacks: list[Callback] = list(options.callbacks)
        self.started = time.perf_counter()

    def _split(self, ds: MultimodalDataset) -> tuple[MultimodalDataset, MultimodalDataset | None]:
        held_out = self.options.validation
        if held_out is None or isinstance(held_out, MultimodalDataset):
            return ds, held_out
        train, rest = ds.split(1 - held_out, seed=self.number)
        return train, rest

    def run(self) -> None:
        state, vae = self.state, self.state.vae
        self.emit("train_start")
        self.emit("stage")
        try:
            while state.epoch < state.epochs and not state.stop and not self.out_of_patience:
                vae.train()
                self.epoch()
        except KeyboardInterrupt:
            self.best.restore(vae)
            raise
        finally:
            state.optimizer.zero_grad()
        self.best.restore(vae)
        self.emit("end")

    @property
    def out_of_patience(self) -> bool:
        patience = self.options.patience
        return patience is not None and self.best.waited >= patience

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
        if self.options.checkpoint is not None:
            self.save(Path(self.options.checkpoint))

    def validate(self) -> None:
        state = self.state
        if self.valid is None:
            return
        state.val_loss = validation_loss(state, self.valid, seed=self.number, device=self.device)
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

    def settings(self) -> dict[str, Any]:
        """What a run must share with the one it resumes."""
        return {
            "seed": self.options.seed,
            "batch_size": self.options.batch_size,
            "rows": self.batches.num_rows,
            "validation rows": None if self.valid is None else self.valid.num_rows,
            "optimizer": type(self.state.optimizer).__name__,
            "scheduler": None if self.schedule is None else type(self.schedule).__name__,
        }

    def save(self, path: Path) -> None:
        state = self.state
        checkpoints.write(path, {
            "settings": self.settings(),
            "seed": self.number,
            "weights": state.vae.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scheduler": None if self.schedule is None else self.schedule.state_dict(),
            "random": get_states(self.device),
            "shuffle": self.shuffle.get_state(),
            "epoch": state.epoch,
            "step": state.step,
            "seconds": time.perf_counter() - self.started,
            "history": dict(state.history),
            "best": vars(self.best),
        })  # fmt: skip

    def load(self, path: Path, saved: dict[str, Any]) -> None:
        state = self.state
        checkpoints.refuse_other_run(path, saved, self.settings(), state.vae)
        state.optimizer.load_state_dict(saved["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["scheduler"])
        state.vae.load_state_dict(saved["weights"])
        self.shuffle.set_state(saved["shuffle"])
        set_states(saved["random"], self.device)
        state.epoch, state.step = saved["epoch"], saved["step"]
        self.started -= saved["seconds"]
        self.best = Best(**saved["best"])
        state.history.update(saved["history"])
        state.history.best_epoch = self.best.epoch
