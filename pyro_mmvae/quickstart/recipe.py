"""What completes a table without being told more than the table: a method, its networks, how long to train.

Layer: quickstart.
"""

from __future__ import annotations

from typing import Any

import torch

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.models import MoPoE
from pyro_mmvae.training.rng import preserved
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["fit_options", "recipe"]

_FEW_ROWS = 1000  # below, for_data makes linear networks
_STEPS, _WARMUP = 4000, 400  # of 128 rows, for larger tables; in the first ones latents are not yet drawn to the prior


def recipe(ds: MultimodalDataset, *, seed: int = 0) -> MultimodalVAE:
    """
    An untrained MoPoE with default networks: every subset of what a row has learns to explain all that the row has.

    The latent has 16 dimensions, 32 from 1,000 rows on, and no more than there are columns.

    Example::

        >>> import pyro_mmvae as mm
        >>> ds = mm.datasets.MultimodalDataset({"a": torch.randn(40, 3), "b": torch.randn(40, 2)})
        >>> vae = recipe(ds)
        >>> history = mm.fit(vae, ds, **{**fit_options(ds), "epochs": 1})
        >>> type(vae).__name__, vae.posterior(ds).mean.shape
        ('MoPoE', torch.Size([40, 5]))

    :param ds: the rows to learn from, made from DataFrames or from tensors.
    :param seed: of the first weights; the global random state is left as found.
    """
    columns = sum(ds.data[m][0].numel() for m in ds.modalities)
    size = min(16 if len(ds) < _FEW_ROWS else 32, columns)
    with preserved(torch.device("cpu"), seed):
        return MoPoE.for_data(ds, latent_dim=size, prior_expert="always", warmup=0 if len(ds) < _FEW_ROWS else _WARMUP)


def fit_options(ds: MultimodalDataset, *, seed: int = 0) -> dict[str, Any]:
    """
    Options of :func:`pyro_mmvae.fit` for :func:`recipe`: 100 epochs of about eight steps for few rows, about 4,000
    steps (20 to 200 epochs) from 1,000 rows on.

    :param ds: the rows to learn from.
    :param seed: of the order of rows, of dropout and of draws.
    """
    if len(ds) < _FEW_ROWS:
        return {"epochs": 100, "lr": 2e-3, "progress": False, "seed": seed}
    epochs = max(20, min(200, _STEPS * 128 // len(ds)))
    return {"epochs": epochs, "lr": 1e-3, "progress": False, "seed": seed}
