"""Training until a budget of CPU seconds is used."""

from __future__ import annotations

import time
from typing import Any

import pyro_mmvae as mm

__all__ = ["BATCH", "CLIP", "LR", "Budget", "fit_within"]

#: CLIP: the largest 2-norm of the gradient of the loss per row, there to survive an accident
BATCH, LR, DECAY, CLIP = 128, 2e-3, 0.02, 1e3


class Budget:
    """
    A callback of ``fit`` that lowers the learning rate as the budget is used, and ends training when it is.

    :param seconds: CPU time of this process, from the construction on.
    :ivar used: the share used so far.
    :ivar steps: training steps so far.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.start, self.used, self.steps = seconds, time.process_time(), 0.0, 0

    def __call__(self, event: str, state: Any) -> None:
        if event == "step":
            state.stop = self.step(state.optimizer)

    def step(self, optimizer: Any) -> bool:
        """After a training step: the learning rate falls geometrically, to ``DECAY`` of it; whether to stop."""
        self.steps += 1
        self.used = (time.process_time() - self.start) / self.seconds
        for group in optimizer.param_groups:
            group["lr"] = LR * DECAY ** min(self.used, 1.0)
        return self.used >= 1

    @property
    def elapsed(self) -> float:
        """CPU seconds used."""
        return self.used * self.seconds


def fit_within(vae: mm.MultimodalVAE, train: mm.MultimodalDataset, seconds: float, seed: int) -> Budget:
    """Train with ``fit`` for so many CPU seconds; what making the batches and recording the step takes counts."""
    budget = Budget(seconds)
    mm.fit(
        vae, train, epochs=10**6, batch_size=BATCH, lr=LR, clip_norm=CLIP, callbacks=[budget], progress=False, seed=seed
    )
    vae.eval()
    return budget
