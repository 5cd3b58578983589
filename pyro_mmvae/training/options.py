"""The options of a training run, checked.

Layer: training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.training.history import Callback
from pyro_mmvae.training.lazy import pending

__all__ = ["Options", "check_dataset", "check_optimizer", "check_vae"]


@dataclass(frozen=True)
class Options:
    """The keyword options of ``fit``, see there."""

    epochs: int
    batch_size: int
    lr: float
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None
    scheduler: Callable[[Any], LRScheduler] | None
    clip_norm: float | None
    validation: MultimodalDataset | float | None
    patience: int | None
    callbacks: Collection[Callback]
    progress: bool
    seed: int | None
    device: torch.device | str | None
    checkpoint: str | PathLike[str] | None
    resume: str | PathLike[str] | None
    trace: bool | None

    def __post_init__(self) -> None:
        _whole("epochs", self.epochs, least=0)
        _whole("batch_size", self.batch_size, least=1)
        _positive("lr", self.lr)
        if self.clip_norm is not None:
            _positive("clip_norm", self.clip_norm)
        if self.patience is not None:
            _whole("patience", self.patience, least=1)
            if self.validation is None:
                raise ValueError("patience: stopping early needs a validation loss. Fix: validation=0.1, or a dataset.")
        if self.seed is not None:
            _whole("seed", self.seed, least=0)
        self._check_validation()
        self._check_callables()
        if self.checkpoint is not None and not Path(self.checkpoint).parent.is_dir():
            raise ValueError(f"checkpoint: the folder of {str(self.checkpoint)!r} does not exist. Fix: create it.")

    def _check_validation(self) -> None:
        held_out = self.validation
        if held_out is None:
            return
        if isinstance(held_out, bool) or not isinstance(held_out, int | float):
            check_dataset("validation", held_out)
        elif not 0 < held_out < 1:
            raise ValueError(f"validation: expected a dataset or a fraction in (0, 1), got {held_out!r}.")

    def _check_callables(self) -> None:
        makers = {
            "optimizer": (self.optimizer, "lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"),
            "scheduler": (self.scheduler, "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10)"),
        }
        for name, (maker, example) in makers.items():
            if maker is not None and not callable(maker):
                raise TypeError(f"{name}: expected a function, got {type(maker).__name__}. Fix: {example}.")
        if callable(self.callbacks) or not all(map(callable, self.callbacks)):
            raise TypeError(f"callbacks: expected a list of functions f(event, state), got {self.callbacks!r}.")


def check_vae(vae: object) -> None:
    """
    Refuse what is no module with ``model``, ``guide`` and ``objective``, or has nothing to train.

    :raises TypeError: for the former.
    :raises ValueError: for the latter.
    """
    lacking = [name for name in ("model", "guide", "objective") if not hasattr(vae, name)]
    if not isinstance(vae, nn.Module) or lacking:
        raise TypeError(
            f"vae: expected an nn.Module with model, guide and objective, got {type(vae).__name__}"
            f"{f' without {lacking}' if lacking else ''}. Fix: MultimodalVAE(model, guide, objective=objective)."
        )
    if not any(p.requires_grad for p in vae.parameters()) and not pending(vae.guide):
        raise ValueError("vae: it has no parameter that requires a gradient: nothing to train.")


def check_dataset(name: str, ds: object) -> None:
    """
    Refuse what is no dataset.

    :raises TypeError: with the way to one.
    """
    if not isinstance(ds, MultimodalDataset):
        raise TypeError(
            f"{name}: expected a MultimodalDataset, got {type(ds).__name__}. Fix: MultimodalDataset(data, obs_mask)."
        )


def check_optimizer(optimizer: object) -> Optimizer:
    """
    Refuse what is no torch optimizer.

    :raises TypeError: with the way to one.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer: expected a function that returns a torch.optim.Optimizer, it returned "
            f"{type(optimizer).__name__}. Fix: lambda p: torch.optim.AdamW(p, lr=1e-3); Pyro's optimizers need SVI."
        )
    return optimizer


def _whole(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}.")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}.")


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {value!r}.")
    if not value > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value}.")
