"""Importance-weighted bounds by definition: one logarithm per sample, scales, levels, global and factor sites."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.stories import data_plate
from tests.oracles.statistics import mean_and_se, within, z_scores

pytestmark = pytest.mark.usefixtures("float64")

B, K = 5, 4


class Pair(nn.Module):
    """A guide written by hand: q(z) = N(loc, scale), whatever the data."""

    def __init__(self, batch: int = B, size: int | None = None) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.linspace(-1.0, 1.0, batch))
        self.batch, self.size = batch, size

    def forward(self, data: Any, obs_mask: Any) -> None:
        with data_plate(self.batch, self.size):
            pyro.sample("z", dist.Normal(self.loc, 0.8))


def story() -> None:
    z = pyro.sample("z", dist.Normal(0.3, 1.2))
    pyro.sample("x", dist.Normal(1.5 * z, 0.7))


def log_weights(loc: Tensor, x: Tensor, eps: Tensor) -> Tensor:  # shape: (K, B)
    z = loc + 0.8 * eps
    joint = dist.Normal(0.3, 1.2).log_prob(z) + dist.Normal(1.5 * z, 0.7).log_prob(x)
    return joint - dist.Normal(loc, 0.8).log_prob(z)


@pytest.mark.parametrize("gradient", ["path", "stl", "dreg"])
def test_one_logarithm_per_sample(gradient: str) -> None:
    model, guide, x, eps = mm.observe(story, ("x",)), Pair(), torch.randn(B), torch.randn(K, B)
    expected = log_weights(guide.loc, x, eps).logsumexp(0) - math.log(K)
    with mm.handlers.noise({"z": eps.unsqueeze(1)}):
        value = mm.IWAE(num_particles=K, gradient=gradient).per_sample(model, guide, {"x": x})
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", [mm.IWAE(num_particles=K), mm.ELBO(num_particles=K)])
def test_the_scale_of_the_plate_stays_outside_the_logarithm(objective: Any) -> None:
    x, eps = torch.randn(B), torch.randn(K, 1, B)
    losses = []
    for size in (None, 10 * B):
        with mm.handlers.noise({"z": eps}):
            guide = Pair(size=size)
            loss = objective.differentiable_loss(mm.observe(story, ("x",), size=size), guide, {"x": x})
        losses.append((loss.detach(), torch.autograd.grad(loss, guide.loc)[0]))
    torch.testing.assert_close(losses[1][0], 10 * losses[0][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses[1][1], 10 * losses[0][1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("objective", [mm.IWAE(num_particles=2), mm.ELBO(), mm.ELBO(kl="sampled")])
@pytest.mark.parametrize(("of_model", "of_guide"), [(50, None), (None, 50), (50, 60)])
def test_scales_that_differ_are_refused(objective: Any, of_model: int | None, of_guide: int | None) -> None:
    model, guide = mm.observe(story, ("x",), size=of_model), Pair(size=of_guide)
    with pytest.raises(ValueError, match=r"plate 'data' has scale .* in the guide and .* in the model(.|\n)*Fix"):
        objective.loss(model, guide, {"x": torch.randn(B)})


def test_factors_and_deterministic_sites_stay_per_sample() -> None:
    def with_extras() -> None:
        z = pyro.sample("z", dist.Normal(0.3, 1.2))
        pyro.deterministic("double", 2 * z)
        pyro.factor("penalty", -0.3 * z**2)
        pyro.sample("x", dist.Normal(1.5 * z, 0.7))

    guide, x, eps = Pair(), torch.randn(B), torch.randn(K, B)
    z = guide.loc + 0.8 * eps
    expected = (log_weights(guide.loc, x, eps) - 0.3 * z**2).logsumexp(0) - math.log(K)
    with mm.handlers.noise({"z": eps.unsqueeze(1)}):
        value = mm.IWAE(num_particles=K).per_sample(mm.observe(with_extras, ("x",)), guide, {"x": x})
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_deterministic_and_factor_sites_outside_the_plate_change_no_weight() -> None:
    """Under RenyiELBO a global site silently turns per-sample weights into one weight for the batch."""
    x, eps, guide = torch.randn(B), torch.randn(K, B), Pair()

    def model(data: Any, obs_mask: Any) -> None:
        pyro.deterministic("unit", torch.ones(()))
        pyro.factor("constant", torch.tensor(-3.0))
        with pyro.plate("data", B), mm.handlers.observe(data, obs_mask, ("x",)):
            story()

    objective = mm.IWAE(num_particles=K)
    expected = log_weights(guide.loc, x, eps).logsumexp(0) - math.log(K)
    with mm.handlers.noise({"z": eps.unsqueeze(1)}):
        value = objective.per_sample(model, guide, {"x": x}, {})
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    with mm.handlers.noise({"z": eps.unsqueeze(1)}):
        loss = objective.differentiable_loss(model, guide, {"x": x}, {})
    torch.testing.assert_close(loss, -(expected.sum() - 3.0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["path", "stl", "dreg"])
def test_one_particle_is_the_elbo(gradient: str) -> None:
    model, guide, x, eps = mm.observe(story, ("x",)), Pair(), torch.randn(B), torch.randn(B)
    with mm.handlers.noise({"z": eps}):
        ours = mm.IWAE(num_particles=1, gradient=gradient).per_sample(model, guide, {"x": x})
        elbo = mm.ELBO(kl="sampled").per_sample(model, guide, {"x": x})
    torch.testing.assert_close(ours, elbo, rtol=1e-12, atol=1e-12)


class Levels(nn.Module):
    """Two levels, the lower one given the upper one in the guide too, a parameter per row."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.upper = nn.Parameter(torch.full((rows,), 0.2))
        self.slope = nn.Parameter(torch.full((rows,), 0.5))
        self.rows = rows

    def forward(self, data: Any, obs_mask: Any) -> None:
        with pyro.plate("data", self.rows):
            z2 = pyro.sample("z2", dist.Normal(self.upper, 0.4))
            pyro.sample("z1", dist.Normal(self.slope * z2, 0.3))


def levels() -> None:
    z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
    z1 = pyro.sample("z1", dist.Normal(0.7 * z2, 0.5))
    pyro.sample("x", dist.Normal(z1 + 0.2 * z2.sin(), 0.4))


def test_dreg_scales_dependent_latents_once() -> None:
    rows, found = 60_000, {}
    model, guide, data = mm.observe(levels, ("x",)), Levels(rows), {"x": torch.full((rows,), 1.8)}
    for gradient in ("path", "dreg", "stl"):
        value = mm.IWAE(num_particles=3, gradient=gradient).per_sample(model, guide, data).sum()
        found[gradient] = mean_and_se(torch.stack(torch.autograd.grad(value, [guide.upper, guide.slope]), -1))
    (exact, own), (mean, se) = found["path"], found["dreg"]
    error = (own**2 + se**2).sqrt()
    within(mean, error, exact, resolution=0.03)
    mean, se = found["stl"]
    assert z_scores(mean, (own**2 + se**2).sqrt(), exact).abs().max() > 8


def test_tight_lies_above_looser_and_below_the_evidence() -> None:
    model, x = mm.observe(two, ("a", "b")), {"a": torch.full((4000,), 1.0), "b": torch.full((4000,), 1.5)}
    guide = mm.guides.Product(model, {"a": Wide(), "b": Wide()}, prior_expert="never")
    each = mm.Terms([mm.Term(mm.objectives.Each(), weight=0.5)])
    values = {}
    for bound in ("looser", "tight"):
        objective = mm.IWAE(each, num_particles=3, bound=bound, density="mixture")
        values[bound] = mean_and_se(objective.per_sample(model, guide, x).detach())
    covariance = torch.tensor([[1.25, 1.0], [1.0, 1.25]])
    evidence = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(torch.tensor([1.0, 1.5]))
    assert values["looser"][0] + 4 * values["looser"][1] < values["tight"][0] - 4 * values["tight"][1]
    assert values["tight"][0] + 4 * values["tight"][1] < evidence
    many = mm.IWAE(each, num_particles=2000, bound="tight", density="mixture")
    few = {m: v[:50] for m, v in x.items()}
    within(*mean_and_se(many.per_sample(model, guide, few).detach()), evidence, sigmas=5)


def two() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("a", dist.Normal(z, 0.5))
    pyro.sample("b", dist.Normal(z, 0.5))


class Wide(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return dist.Normal(0.5 * x.unsqueeze(-1), 0.9).to_event(1)
