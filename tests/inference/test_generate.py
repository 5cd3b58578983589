"""generate and decode: moments, priors that replace the story's, shapes, networks run in time."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.inference import decode, generate
from tests.inference.programs import LinearStory
from tests.oracles.cases import make_case

pytestmark = pytest.mark.usefixtures("float64")


def linear(latent_dim: int = 2) -> tuple[LinearStory, mm.stories.ObservedModel]:
    story = LinearStory(make_case(3, latent_dim).model)
    return story, mm.observe(story, story.truth.modalities)


def test_moments_of_the_prior_predictive():
    story, model = linear()
    found = generate(model, None, 40_000)
    for m, w in story.truth.weights.items():
        loc = w @ story.truth.prior[0] + story.truth.bias[m]
        variance = (w**2) @ (story.truth.prior[1] ** 2) + story.truth.noise[m] ** 2
        assert found[m].shape == (40_000, len(w))
        assert ((found[m].mean(0) - loc).abs() <= 4.5 * (variance / 40_000).sqrt()).all()
        assert ((found[m].var(0) - variance).abs() <= 4.5 * variance * (2 / 40_000) ** 0.5).all()


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(torch.full((2,), 3.0), 1e-9).to_event(1),
        {"z": dist.Normal(torch.full((2,), 3.0), 1e-9).to_event(1)},
        {"z": dist.Normal(torch.full((5, 2), 3.0), 1e-9).to_event(1)},
        lambda n: torch.full((n, 2), 3.0),
        lambda n: {"z": torch.full((n, 2), 3.0)},
    ],
    ids=["distribution", "by site", "per row", "function", "function by site"],
)
def test_priors(prior):
    story, model = linear()
    found = generate(model, None, 5, prior=prior, noise=False, return_latents=True)
    assert found["z"].shape == (5, 2)
    for m, w in story.truth.weights.items():
        exact = (w @ torch.full((2,), 3.0).double() + story.truth.bias[m]).expand(5, -1)
        torch.testing.assert_close(found[m], exact, atol=1e-6, rtol=0)


def test_targets():
    story, model = linear()
    assert set(generate(model, None, 4, target={"b"})) == {"b"}
    assert story.calls == {"a": 0, "b": 1, "c": 0}
    decode(model, torch.zeros(3, 2), target={"c"})
    assert story.calls == {"a": 0, "b": 1, "c": 1}


@pytest.mark.parametrize("lead", [(), (7,), (4, 3)])
def test_decode(lead):
    story, model = linear()
    z = torch.randn(*lead, 5, 2)
    lik = decode(model, z)
    for m, w in story.truth.weights.items():
        assert lik[m].batch_shape == (*lead, 5) and lik[m].event_shape == (len(w),)
        torch.testing.assert_close(lik[m].mean, z @ w.T + story.truth.bias[m])
    by_site = decode(model, {"z": z}, target={"a"})
    torch.testing.assert_close(by_site["a"].mean, lik["a"].mean)


def test_decode_forces_networks_in_evaluation_mode():
    dec = mm.nn.MLPDecoder(2, 3, hidden=(64,), dropout=0.5)

    def story():
        z = pyro.sample("z", dist.Normal(dec.net[0].weight.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dec(z))

    model = mm.observe(story, ("x",), modules={"dec": dec})
    z = torch.randn(4, 2)
    a, b = decode(model, z)["x"], decode(model, z)["x"]
    assert not isinstance(a, mm.distributions.Lazy) and dec.training
    assert torch.equal(a.mean, b.mean) and not a.mean.requires_grad


class Conditional(nn.Module):
    """A covariate, a private latent, a plate inside."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, dose) -> None:
        z = pyro.sample("z", dist.Normal(dose, self.one))
        w = pyro.sample("w", dist.Normal(torch.zeros(2), self.one).to_event(1))
        with pyro.plate("times", 4, dim=-2):
            t = pyro.sample("t", dist.Normal(z, 1e-6))
        loc = z + t.mean(-2, keepdim=True)
        x = torch.cat([loc.unsqueeze(-1), w.expand(*loc.shape, 2)], -1)
        pyro.sample("x", dist.Normal(x, 1e-6).to_event(1))


def test_covariates_private_latents_and_plates():
    model = mm.observe(Conditional(), ("x",), private={"w": "x", "t": "x"})
    dose = torch.tensor([0.0, 100.0, 200.0])
    found = generate(model, None, 3, data={"dose": dose}, return_latents=True)
    assert found["x"].shape == (3, 3) and found["t"].shape == (4, 3) and found["w"].shape == (3, 2)
    torch.testing.assert_close(found["x"][:, 0], 2 * found["z"], atol=1e-4, rtol=0)
    z = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    lik = decode(model, z, data={"dose": dose})["x"]
    assert lik.batch_shape == (2, 3)
    torch.testing.assert_close(lik.mean[..., 0], 2 * z, atol=1e-4, rtol=0)
    assert lik.mean[..., 1].std() > 0.1  # the private latent is drawn
    t = torch.zeros(2, 4, 3)
    lik = decode(model, {"t": t, "z": torch.ones(2, 3)}, data={"dose": dose})["x"]
    torch.testing.assert_close(lik.mean[..., 0], torch.ones(2, 3))
    with pytest.raises(ValueError, match="covariate"):
        generate(model, None, 3)


def test_errors():
    _, model = linear()
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        generate(model, None, 0)
    with pytest.raises(ValueError, match=r"expected \(5, 2\)"):
        generate(model, None, 5, prior=lambda n: torch.zeros(n, 3))
    with pytest.raises(ValueError, match=r"prior: \['y'\] are no latents"):
        generate(model, None, 5, prior={"y": dist.Normal(0.0, 1.0)})
    with pytest.raises(ValueError, match=r"z: site 'z': expected shape"):
        decode(model, torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"z: \['y'\] are no latents"):
        decode(model, {"y": torch.zeros(5, 3)})
    with pytest.raises(TypeError, match="z: expected a Tensor"):
        decode(model, [1.0])
    with pytest.raises(TypeError, match="prior: expected"):
        generate(model, None, 5, prior=3)
    with pytest.raises(NotImplementedError, match=r"pyro_mmvae\.observe"):
        generate(lambda data, obs_mask: None, None, 5)
