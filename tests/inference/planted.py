"""Stories with planted clusters, and experts that see them.

Test layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.stories import MixturePrior, Shared

MAPS = {"a": [[2.0, 0.0], [1.0, 1.0]], "b": [[0.0, 1.0], [-1.0, 0.5]], "c": [[1.0, 0.5], [0.0, 3.0]]}
#: clusters 1, 4, 6 are real; 2 and 5 lie near two of them, the others where no data are
CENTERS = [[30.0, 30.0], [9.0, 0.0], [9.5, 0.4], [-30.0, 9.0], [-9.0, 0.0], [-9.3, -0.5], [0.0, 12.0], [0.0, -40.0]]
REAL = (1, 4, 6)


class Linear(nn.Module):
    """A square map, as decoder x = z A with a little noise, or as the expert z = x / A, almost a point."""

    def __init__(self, matrix: list[list[float]], scale: float, *, inverse: bool = False) -> None:
        super().__init__()
        matrix = torch.tensor(matrix)
        self.register_buffer("matrix", matrix.inverse() if inverse else matrix)
        self.scale = scale

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(x @ self.matrix, self.scale).to_event(1)


def prior_at(centers: list[list[float]], family: str = "normal") -> MixturePrior:
    prior = MixturePrior(2, len(centers), family=family)
    with torch.no_grad():
        prior.loc.copy_(torch.tensor(centers))
    return prior


def planted(
    prior: nn.Module, names: str = "abc", scale: float = 1e-3
) -> tuple[mm.stories.ObservedModel, mm.guides.Fused]:
    """A linear story, and experts that see through it."""
    model = mm.observe(Shared({m: Linear(MAPS[m], 0.1) for m in names}, prior), tuple(names))
    experts = {m: Linear(MAPS[m], scale, inverse=True) for m in names}
    return model, mm.guides.Fused(model, experts, fusion=mm.fusion.Mixture())


def seen_from(z: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Data that the experts read as these latents."""
    return {m: x @ torch.tensor(MAPS[m]) for m, x in z.items()}


def samples(n: int = 60) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of the three real clusters, the same latent in all modalities, and where they come from."""
    labels = torch.arange(n) % 3
    z = torch.tensor([CENTERS[c] for c in REAL])[labels] + torch.randn(n, 2)
    return seen_from(dict.fromkeys(MAPS, z)), torch.tensor(REAL)[labels]


LINE = [[0.0, 0.0], [4.0, 0.0], [8.0, 0.0]]


def on_line(*positions: float) -> Tensor:
    return torch.tensor([[x, 0.0] for x in positions])


def cmvae_like() -> mm.MultimodalVAE:
    encoders = {m: mm.nn.MLPEncoder(2, 2, hidden=(), family="laplace") for m in MAPS}
    decoders = {m: mm.nn.MLPDecoder(2, 2, hidden=()) for m in MAPS}
    return mm.MMVAE(encoders, decoders, latent_dim=2, num_particles=2, prior=MixturePrior(2, 6, init_range=3.0))
