"""The progress bar of a training run.

Layer: training.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from pyro_mmvae.training.history import Event, State

__all__ = ["ProgressBar"]


class ProgressBar:
    """
    A callback, and a context manager that closes the bar: training steps, the loss, the validation loss.

    :param steps_per_epoch: batches of an epoch.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.bar: Any = None

    def __call__(self, event: Event, state: State) -> None:
        """Show what ``event`` brought."""
        if event == "train_start":
            from tqdm.auto import tqdm

            total = state.epochs * self.steps_per_epoch
            self.bar = tqdm(total=total, initial=min(state.step, total), unit="step", dynamic_ncols=True)
        elif event == "step":
            self.bar.set_description(f"epoch {state.epoch}/{state.epochs}", refresh=False)
            self._losses(state)
            self.bar.update()
        elif event in ("validation", "epoch"):
            self._losses(state)
            self.bar.refresh()

    def _losses(self, state: State) -> None:
        shown = {"loss": f"{state.loss:.4g}"}
        if state.val_loss is not None:
            shown["val_loss"] = f"{state.val_loss:.4g}"
        self.bar.set_postfix(shown, refresh=False)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()
