"""Parameters that are made when a program is first run.

Layer: training.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import nn

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.handlers.registration import unregistered
from pyro_mmvae.inference._batch import at_home
from pyro_mmvae.nn import modes_restored
from pyro_mmvae.training.rng import preserved

__all__ = ["make_parameters", "pending"]


def pending(program: object) -> bool:
    """Whether it holds an AutoGuide that was never run."""
    if not isinstance(program, nn.Module):
        return False
    return any(getattr(module, "prototype_trace", module) is None for module in program.modules())


def make_parameters(vae: Any, ds: MultimodalDataset, batch_size: int, device: torch.device) -> None:
    """
    Run the guide once on the first rows, if it holds an AutoGuide that was never run.

    AutoGuides look at a model's sites when they are first called; before, an optimizer would find nothing of them. The
    random state and the modes of modules stay as they were.
    """
    if not pending(vae.guide):
        return
    rows = ds[: min(batch_size, len(ds))]
    data, masks = ({name: x.to(device) for name, x in values.items()} for values in (rows.data, rows.obs_mask))
    with preserved(device), torch.no_grad(), modes_restored(vae.guide), unregistered(), poutine.block():
        vae.guide(at_home(data, vae), masks)
