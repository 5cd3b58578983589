"""Doubly reparametrized gradients of private latents alone: the same in expectation as the path's, with less noise."""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from tests.oracles.statistics import within

NAMES = ("a", "b")
CHUNKS, ROWS = 60, 1500


class Expert(nn.Module):
    """A location and a log-scale, whatever it sees."""

    def __init__(self, loc: float, log_scale: float) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.tensor([loc])), nn.Parameter(torch.tensor([log_scale]))

    def forward(self, x: Tensor) -> Any:
        shape = (len(x), 1)
        return dist.Normal(self.loc.expand(shape), self.log_scale.exp().expand(shape)).to_event(1)


class Bent(nn.Module):
    """A likelihood that no Gaussian posterior fits."""

    def forward(self, z: Tensor) -> Any:
        return dist.Normal(z[..., :1] + 0.7 * z[..., 1:] + 0.2 * z[..., :1] * z[..., 1:], 0.7).to_event(1)


def model(gradient: Literal["path", "dreg", "dreg_private"]) -> mm.MMVAEPlus:
    return mm.MMVAEPlus(
        {"a": Expert(0.3, -0.9), "b": Expert(-0.2, -0.6)},
        {m: Bent() for m in NAMES},
        latent_dim=1,
        private_encoders={"a": Expert(0.2, -0.4), "b": Expert(0.5, -0.8)},
        private_dims={"a": 1, "b": 1},
        private_prior="normal",
        prior="normal",
        num_particles=4,
        gradient=gradient,
    ).double()


def gradients(gradient: Literal["path", "dreg", "dreg_private"]) -> dict[str, Tensor]:  # {name: (CHUNKS,)}
    """Gradients per sample, from many batches."""
    vae = model(gradient)
    data = {"a": torch.full((ROWS, 1), 1.4), "b": torch.full((ROWS, 1), -0.6)}
    found: dict[str, list[Tensor]] = {name: [] for name, p in vae.named_parameters() if p.requires_grad}
    for _ in range(CHUNKS):
        vae.zero_grad()
        (vae.objective.differentiable_loss(vae.model, vae.guide, data) / ROWS).backward()
        for name, p in vae.named_parameters():
            found[name].append(p.grad.sum())
    return {name: torch.stack(values) for name, values in found.items()}


@pytest.fixture
def both(float64: None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return gradients("path"), gradients("dreg_private")


def test_agrees_with_the_path_and_is_less_noisy(both: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    path, private = both
    own = [name for name in path if "encoders" in name and "z_" in name]
    auxiliary = [name for name in path if "auxiliary" in name]
    assert own and auxiliary
    scale = torch.stack([g.mean() for g in path.values()]).norm()
    for name, reference in path.items():
        difference = private[name].mean() - reference.mean()
        se = ((private[name].var() + reference.var()) / CHUNKS).sqrt()
        assert 4 * se < 0.1 * scale, name  # otherwise the comparison could not fail
        within(difference, se, torch.zeros(()), label=name)
    quieter = [bool(private[name].std() < path[name].std()) for name in own]
    assert sum(quieter) >= len(quieter) / 2


def test_the_published_form_is_another(float64: None) -> None:
    """It treats the mixture over z as a single proposal: biased, which this comparison would see."""
    path, published = gradients("path"), gradients("dreg")
    distances = []
    for name, reference in path.items():
        se = ((published[name].var() + reference.var()) / CHUNKS).sqrt()
        distances.append(((published[name].mean() - reference.mean()) / se).abs())
    assert max(distances) > 6
