"""Models of every kind, by name, for tests that save and load them, here or in another process."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_mmvae as mm

SHAPES = {"image": (2, 3), "count": (2,)}


class MyEncoder(nn.Module):
    """A network of a user's, without a config."""

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.net = nn.Linear(size, 4)

    def forward(self, x: Tensor) -> Any:
        loc, raw = self.net(x.flatten(1)).chunk(2, -1)
        return dist.Normal(loc, raw.exp()).to_event(1)


class Cells(nn.Module):
    """Counts and proteins of a cell, with a covariate."""

    def __init__(self) -> None:
        super().__init__()
        self.log_total = nn.Parameter(torch.zeros(4))
        self.rna, self.protein = nn.Linear(3, 4), nn.Linear(2, 3)

    def forward(self, batch_label: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        inputs = torch.cat([z, batch_label.unsqueeze(-1).expand((*z.shape[:-1], 1))], -1)
        pyro.sample("rna", dist.NegativeBinomial(self.log_total.exp(), logits=self.rna(inputs)).to_event(1))
        pyro.sample("protein", dist.Normal(self.protein(z), 1.0).to_event(1))


def networks() -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    likelihoods = {"image": "normal_learned", "count": "poisson"}
    encoders = {m: mm.nn.MLPEncoder(s, 2, hidden=(5,)) for m, s in SHAPES.items()}
    decoders = {m: mm.nn.MLPDecoder(2, s, likelihood=likelihoods[m], hidden=(5,)) for m, s in SHAPES.items()}
    return encoders, decoders


def mmvae() -> mm.MultimodalVAE:
    _, decoders = networks()
    encoders = {m: mm.nn.MLPEncoder(s, 2, hidden=(5,), family="laplace") for m, s in SHAPES.items()}
    return mm.MMVAE(encoders, decoders, latent_dim=2, num_particles=3)


def mopoe() -> mm.MultimodalVAE:
    encoders, decoders = networks()
    decoders["image"] = mm.nn.MLPDecoder(3, SHAPES["image"], hidden=(5,))
    own = {"image": mm.nn.MLPEncoder(SHAPES["image"], 1, hidden=())}
    return mm.MoPoE(encoders, decoders, latent_dim=2, private_encoders=own, private_dims={"image": 1})


def cells() -> mm.MultimodalVAE:
    return mm.MultimodalVAE(*cells_programs(), objective=mm.IWAE(num_particles=2))


def cells_programs() -> tuple[Any, Any]:
    model = mm.observe(Cells(), modalities=("rna", "protein"))
    encoders = {m: mm.nn.MLPEncoder(size, 2, hidden=(5,)) for m, size in (("rna", 4), ("protein", 3))}
    return model, mm.guides.Product(model, {"z": encoders})


MODELS = {
    "MVAE": lambda: mm.MVAE(*networks(), latent_dim=2, warmup=10),
    "MMVAE": mmvae,
    "MoPoE": mopoe,
    "MVTCAE": lambda: mm.MVTCAE(*networks(), latent_dim=2),
    "JMVAE": lambda: mm.JMVAE(*networks(), latent_dim=2),
    "cells": cells,
}


def batch(name: str) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    if name == "cells":
        counts = torch.poisson(torch.full((5, 4), 3.0), generator=rng)
        return {"rna": counts, "protein": torch.randn(5, 3, generator=rng), "batch_label": torch.arange(5) % 2.0}
    return {
        "image": torch.randn(5, 2, 3, generator=rng),
        "count": torch.poisson(torch.full((5, 2), 3.0), generator=rng),
    }


def train(vae: mm.MultimodalVAE, data: dict[str, Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        vae.objective.differentiable_loss(vae.model, vae.guide, data).backward()
        optimizer.step()
        vae.objective.advance()


def outputs(vae: mm.MultimodalVAE, name: str) -> dict[str, Tensor]:
    """What a user would compare: a posterior mean, seeded draws, a seeded likelihood, the objective's clock."""
    data = batch(name)
    out = {"mean": vae.posterior(data).mean}
    pyro.set_rng_seed(3)
    out |= {f"draw {m}": x for m, x in vae.predict(data, num_samples=2).items()}
    pyro.set_rng_seed(4)
    out["log_likelihood"] = vae.log_likelihood(data, num_particles=7)
    out["step"] = torch.tensor(vae.objective.step)
    return {key: x.detach().clone().contiguous() for key, x in out.items()}
