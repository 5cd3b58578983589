"""A model with five kinds of modality, good data for it, and every way in that takes a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyro_mmvae as mm

SHAPES = {"image": (2, 3), "bits": (4,), "count": (2,), "label": (), "vector": (3,)}
LIKELIHOODS = {"image": "normal", "bits": "bernoulli", "count": "poisson", "label": mm.nn.Categorical(10)}
B = 4
NAN, INF = float("nan"), float("inf")
TRUE = torch.ones(B, dtype=torch.bool)


class Joint(nn.Module):
    """A likelihood that does not factorize over its features."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 3)

    def forward(self, z: Tensor) -> Any:
        return dist.MultivariateNormal(self.net(z), torch.eye(3))


def encoder(m: str, latent_dim: int = 2) -> nn.Module:
    if m == "label":
        return mm.nn.EmbeddingEncoder(10, latent_dim, hidden=())
    return mm.nn.MLPEncoder(SHAPES[m], latent_dim, hidden=())


def decoder(m: str) -> nn.Module:
    if m == "vector":
        return Joint()
    return mm.nn.MLPDecoder(2, SHAPES[m], likelihood=LIKELIHOODS[m], hidden=())


def networks(names: Any = tuple(SHAPES)) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    return {m: encoder(m) for m in names}, {m: decoder(m) for m in names}


def good() -> dict[str, Any]:
    return {
        "image": torch.randn(B, 2, 3),
        "bits": torch.tensor([0.0, 1.0]).repeat(B, 2),
        "count": torch.arange(2.0 * B).reshape(B, 2),
        "label": torch.arange(B),
        "vector": torch.randn(B, 3),
    }


# Every way in that takes a batch.
DOORS: dict[str, Callable[..., Any]] = {
    "differentiable_loss": lambda v, *batch: v.objective.differentiable_loss(v.model, v.guide, *batch),
    "stock loss": lambda v, *batch: Trace_ELBO().loss(v.model, v.guide, *batch),
    "posterior": lambda v, *batch: v.posterior(*batch),
    "predict": lambda v, *batch: v.predict(*batch, num_samples=1),
    "impute": lambda v, *batch: v.impute(*batch, num_samples=1),
    "log_likelihood": lambda v, *batch: v.log_likelihood(*batch, num_particles=1),
    "to_inference_data": lambda v, *batch: v.to_inference_data(*batch, num_samples=1),
}
