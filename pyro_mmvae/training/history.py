"""What a training run records, and what its callbacks see.

Layer: training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

__all__ = ["Callback", "Event", "History", "State"]

Event = Literal["train_start", "stage", "step", "validation", "epoch", "end"]


class History(dict[str, list[Any]]):
    """
    One list per quantity, one entry per epoch; plain numbers, so that ``json.dumps`` and ``pandas.DataFrame`` take it.

    Keys: ``epoch`` (from 1), ``loss`` (mean over the epoch's rows, nats per sample), ``val_loss`` (if there is
    validation data), ``seconds`` (since the start of training), ``lr`` (the rate the epoch was trained with).

    Example::

        >>> history = History()
        >>> history.add(epoch=1, loss=3.0, val_loss=3.5, seconds=0.1, lr=1e-3)
        >>> history["loss"], history.curves
        ([3.0], {'loss': [3.0], 'val_loss': [3.5]})

    :ivar best_epoch: the epoch with the lowest validation loss, or None: no validation, or annealing was never over.
    """

    best_epoch: int | None = None

    def add(self, **row: float) -> None:
        """Append one epoch."""
        for name, value in row.items():
            self.setdefault(name, []).append(value)

    @property
    def curves(self) -> dict[str, list[float]]:
        """The losses alone, for :func:`pyro_mmvae.plotting.history`."""
        return {name: self[name] for name in ("loss", "val_loss") if name in self}


@dataclass
class State:
    """
    The state of a training run, as callbacks see it.

    :ivar vae: what is trained.
    :ivar optimizer: the torch optimizer; its ``param_groups`` may be changed.
    :ivar epochs: epochs planned.
    :ivar history: all finished epochs.
    :ivar epoch: the current epoch, from 1; 0 before the first.
    :ivar step: training steps done.
    :ivar stage: index of the current stage of the objective.
    :ivar loss: nats per sample, of the last batch at "step", of the whole epoch at "validation", "epoch" and "end".
    :ivar val_loss: the last validation loss, nats per sample, or None.
    :ivar seconds: wall-clock time since the start of training.
    :ivar stop: set it to end training: at "step" the epoch is cut short, then validated as usual.
    """

    vae: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: int
    history: History = field(default_factory=History)
    epoch: int = 0
    step: int = 0
    stage: int = 0
    loss: float = float("nan")
    val_loss: float | None = None
    seconds: float = 0.0
    stop: bool = False

    @property
    def lr(self) -> float:
        """The current learning rate, of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])


Callback = Callable[[Event, State], None]
