"""Private latents: evidence and posterior against the closed form, with the library's story and guide."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.inference import decode, log_likelihood, posterior, predict
from tests.oracles.shared_private import SharedPrivate, random_shared_private

pytestmark = pytest.mark.usefixtures("float64")


class Story(nn.Module):
    """The oracle's model; the guide below knows z alone, or z and the private latents."""

    def __init__(self, truth: SharedPrivate) -> None:
        super().__init__()
        self.truth = truth

    def forward(self) -> None:
        parts = {None: pyro.sample("z", dist.Normal(*self.truth.prior).to_event(1))}
        for m, (loc, scale) in self.truth.private_prior.items():
            parts[m] = pyro.sample(f"z_{m}", dist.Normal(loc, scale).to_event(1))
        for m in self.truth.modalities:
            stacked = self.truth.joint.weights[m]
            loc = sum(parts[k] @ stacked[:, self.truth.slices[k]].T for k in (None, m)) + self.truth.joint.bias[m]
            pyro.sample(m, dist.Normal(loc, self.truth.joint.noise[m]).to_event(1))


class Expert(nn.Module):
    def __init__(self, size: int, wide: float) -> None:
        super().__init__()
        self.size, self.wide = size, wide

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(0.1 * x.mean(-1, keepdim=True).expand(-1, self.size), self.wide).to_event(1)


@pytest.mark.parametrize("inferred", [True, False], ids=["inferred", "from the prior"])
def test_evidence(inferred):
    truth = random_shared_private({"a": 2, "b": 2}, latent_dim=1, private_dim=1)
    model = mm.observe(Story(truth), ("a", "b"), private={"z_a": "a", "z_b": "b"})
    encoders = {"z": {m: Expert(1, 2.0) for m in ("a", "b")}}
    if inferred:
        encoders |= {"z_a": {"a": Expert(1, 2.0)}, "z_b": {"b": Expert(1, 2.0)}}
    guide = mm.guides.Fused(model, encoders, fusion=mm.fusion.Product())
    data = truth.joint.sample(4, torch.Generator().manual_seed(0))[1]
    masks = {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, False, True, False])}
    found = log_likelihood(model, guide, data, masks, num_particles=40_000, diagnostics=True)
    error = (found.value - truth.log_evidence(data, masks)).abs()
    assert (error <= 4 * found.standard_error + 1e-12).all() and found.standard_error.max() < 0.1
    assert posterior(model, guide, data, masks).event_shape == (1,)  # the shared one, not the private ones
    sites = posterior(model, guide, data, masks, latents="all")
    assert set(sites) == {"z", "z_a", "z_b"}
    loc, scale = truth.private_prior["a"]
    torch.testing.assert_close(sites["z_a"].mean[2:], loc.expand(2, 1))  # not observed: the prior
    drawn = predict(model, guide, data, masks, num_samples=3, return_latents=True, target=())
    assert {name: tuple(x.shape) for name, x in drawn.items()} == dict.fromkeys(("z", "z_a", "z_b"), (3, 4, 1))
    lik = decode(model, torch.zeros(2000, 4, 1))["a"]
    v = truth.joint.weights["a"][:, truth.slices["a"]]
    spread = (v.square() @ scale.square()).sqrt()  # private latents come from their prior
    torch.testing.assert_close(lik.mean.reshape(-1, 2).std(0), spread, rtol=0.05, atol=0)
