"""Tables from a linear-Gaussian model, in odd units, and the pair of library story and exact guide that fits them.

Test layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.columns import fitted
from pyro_mmvae.datasets.linear_gaussian import LinearGaussian as Vectorized
from tests.oracles.linear_gaussian import LinearGaussian

LATENT = 2
SIZES = {"lab": 3, "genes": 4}
UNITS = {"lab": [1e3, 1.0, 0.02], "genes": [5.0, 1.0, 20.0, 0.1]}  # of spread
ORIGINS = {"lab": [2e4, -3.0, 0.1], "genes": [0.0, 100.0, 7.0, 0.5]}


class ExactGuide(nn.Module):
    """The exact posterior, all rows at once."""

    def __init__(self, truth: Vectorized) -> None:
        super().__init__()
        self.truth = truth

    def forward(self, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        q = self.truth.posterior({m: data.get(m) for m in self.truth.weights}, dict(obs_mask))
        with pyro.plate("data", q.batch_shape[0], dim=-1):
            pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril))


@dataclass
class Linear:
    """
    A data set from tables, a model whose likelihood is ``nn.Columns``, and what it amounts to in the units of the data.

    :ivar truth: the oracle, with weights, biases and noise in these units.
    :ivar complete: the cells before any was hidden.
    """

    vae: mm.MultimodalVAE
    ds: mm.MultimodalDataset
    truth: LinearGaussian
    complete: dict[str, pd.DataFrame]


def linear_frames(rows: int, rate: float, seed: int = 0) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Tables with gaps, and the same without; one modality lacks the last rows, as a frame does."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, LATENT))
    index = pd.Index([f"p{i}" for i in range(rows)], name="patient")
    complete, frames = {}, {}
    for m, size in SIZES.items():
        x = z @ rng.normal(size=(LATENT, size)) + 0.6 * rng.normal(size=(rows, size))
        columns = [f"{m}_{i}" for i in range(size)]
        complete[m] = pd.DataFrame(np.array(ORIGINS[m]) + np.array(UNITS[m]) * x, index=index, columns=columns)
        frames[m] = complete[m].mask(rng.random((rows, size)) < rate)
    frames["genes"] = frames["genes"].iloc[: rows - rows // 5]
    return frames, complete


def linear_tables(rows: int = 30, rate: float = 0.3, seed: int = 0) -> Linear:
    """A model with random linear decoders, standardized to tables of these units, and its exact guide."""
    frames, complete = linear_frames(rows, rate, seed)
    ds = mm.MultimodalDataset.from_frames(frames)
    vae, truth = exact_pair(ds, seed)
    return Linear(vae, ds, truth, complete)


def exact_pair(ds: mm.MultimodalDataset, seed: int) -> tuple[mm.MultimodalVAE, LinearGaussian]:
    """Random linear decoders for the columns of a data set; the oracle is read off from their parameters."""
    pyro.set_rng_seed(seed)
    own = {m: fitted(c, ds.data[m], ds.obs_mask[m]) for m, c in ds.frames.columns.items()}
    decoders = {m: mm.nn.LinearDecoder(LATENT, len(c), likelihood=mm.nn.Columns(c)) for m, c in own.items()}
    parts: dict[str, dict[str, Any]] = {"weights": {}, "bias": {}, "noise": {}}
    for m, decoder in decoders.items():
        loc, scale = (torch.tensor([getattr(c, what) for c in own[m]]) for what in ("loc", "scale"))
        net, spread = decoder.net[0], decoder.likelihood.groups[0].spread
        with torch.no_grad():
            net.weight.copy_(torch.randn(net.weight.shape))
            spread.log.copy_(torch.linspace(-0.9, -0.2, len(own[m])))
            parts["weights"][m] = scale[:, None] * net.weight.clone()
            parts["bias"][m] = loc + scale * net.bias.clone()
            parts["noise"][m] = scale * (0.01 + spread.log.exp())
    truth = LinearGaussian(**parts, prior_loc=torch.zeros(LATENT), prior_scale=torch.ones(LATENT))
    model = mm.observe(mm.stories.Shared(decoders, mm.stories.NormalPrior(LATENT)), tuple(decoders))
    return mm.MultimodalVAE(model, ExactGuide(Vectorized(**parts))), truth


def simulated(truth: LinearGaussian, frames: Mapping[str, pd.DataFrame], seed: int) -> dict[str, pd.DataFrame]:
    """Fresh data of the model itself, in the form of these frames."""
    n = max(len(frame) for frame in frames.values())
    _, data = truth.sample(n, torch.Generator().manual_seed(seed))
    return {m: pd.DataFrame(x[: len(frames[m])].numpy(), frames[m].index, frames[m].columns) for m, x in data.items()}


def exact_cells(case: Linear, m: str) -> tuple[Tensor, Tensor, Tensor]:  # each shape: (N, P)
    """Mean, standard deviation of one cell given what is observed of its row, and that of its mean given z."""
    masks = {k: mask.reshape(len(mask), -1).expand_as(case.ds.data[k]) for k, mask in case.ds.obs_mask.items()}
    loc, cov = case.truth.posterior(case.ds.data, masks)
    weights = case.truth.weights[m]
    mean = loc @ weights.T + case.truth.bias[m]
    through = torch.einsum("pd,nde,pe->np", weights, cov, weights)
    return mean, (through + case.truth.noise[m] ** 2).sqrt(), through.sqrt()
