"""The validation loss, and the weights that had the best one.

Layer: training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.nn import modes_restored
from pyro_mmvae.training.batches import DoorBatches, PreparedBatches
from pyro_mmvae.training.diverged import Moment
from pyro_mmvae.training.history import State
from pyro_mmvae.training.rng import get_states, preserved
from pyro_mmvae.training.step import rows_stood_for

__all__ = ["Best", "annealed", "validation_loss"]


def validation_loss(
    run: State,
    batches: PreparedBatches | DoorBatches,
    *,
    seed: int,
    device: torch.device,
) -> float:
    """
    The loss per row, in nats: evaluation mode, no gradient, the same noise at every call.

    The global random state and the modes of the modules are left as found; the annealing clock stands still. An
    infinite loss (a held-out value without probability) is a loss.

    :raises TrainingDiverged: if it is NaN.
    """
    vae: Any = run.vae
    total = 0.0
    with modes_restored(vae), preserved(device, seed), torch.no_grad():
        vae.eval()
        for data, obs_mask in batches:
            moment = Moment(run, run.step, get_states(device), data, obs_mask, device)
            with moment.explained():
                loss = float(vae.objective.loss(vae.model, vae.guide, data, obs_mask))
            if math.isnan(loss) or loss == -math.inf:
                raise moment.diverged(f"the validation loss is {loss}")
            rows = next(iter(data.values())).shape[0]
            total += loss * rows / rows_stood_for(vae, data)
    return total / batches.num_rows


def annealed(objective: Any) -> bool:
    """Whether annealing is over: from then on the losses of different epochs can be compared."""
    step = getattr(objective, "step", None)
    return not isinstance(step, int) or step > getattr(objective, "annealing_steps", 0)


@dataclass
class Best:
    """
    The weights with the lowest validation loss since annealing was over.

    :ivar loss: that loss.
    :ivar epoch: its epoch, or None if there is none yet.
    :ivar weights: a copy of the ``state_dict``.
    :ivar waited: epochs since then.
    """

    loss: float = math.inf
    epoch: int | None = None
    weights: dict[str, Any] | None = None
    waited: int = 0

    def see(self, loss: float, epoch: int, vae: nn.Module) -> None:
        """Take note of an epoch."""
        if loss < self.loss:
            weights = {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in vae.state_dict().items()}
            self.loss, self.epoch, self.weights, self.waited = loss, epoch, weights, 0
        else:
            self.waited += 1

    def restore(self, vae: nn.Module) -> None:
        """Put the best weights back, if there are some. The annealing clock keeps the time: those steps were done."""
        if self.weights is None:
            return
        objective: Any = vae.objective
        done = getattr(objective, "step", None)
        vae.load_state_dict(self.weights)
        if isinstance(done, int) and hasattr(objective, "advance"):
            objective.advance(done - objective.step)
