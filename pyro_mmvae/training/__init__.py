"""Training: the loop, what it records, and what it can be resumed from.

Layer: training, above objectives and datasets.
"""

from __future__ import annotations

from pyro_mmvae.training.batches import PreparedBatches
from pyro_mmvae.training.diverged import TrainingDiverged
from pyro_mmvae.training.fitting import fit
from pyro_mmvae.training.history import Event, History, State
from pyro_mmvae.training.step import loss_and_grads

__all__ = ["Event", "History", "PreparedBatches", "State", "TrainingDiverged", "fit", "loss_and_grads"]
