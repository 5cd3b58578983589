"""The references of the benchmark: against draws from the stories' own programs, and against second derivations."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from benchmarks.auto_guides.quadrature import log_integral
from benchmarks.auto_guides.references import EXACT, log_evidence
from pyro_mmvae.handlers import observe
from tests.oracles.statistics import mean_and_se, within
from tests.stories.examples.annealed import annealed_log_weights
from tests.stories.examples.cases import ALL, LOCAL, made, prior_log_weights, rows_of

pytestmark = pytest.mark.usefixtures("float64")


def test_every_story_has_a_reference() -> None:
    assert set(EXACT) == set(ALL)


@pytest.mark.parametrize("name", LOCAL)
def test_the_mean_likelihood_under_the_prior_is_the_evidence(name: str) -> None:
    """Brute force: the story is run under Pyro at draws from its prior, p(x_O) is the mean of p(x_O | z)."""
    data, obs_mask = rows_of(name)
    story = made(name)
    exact = log_evidence(story, data, obs_mask)
    ratios = torch.cat([(prior_log_weights(story, data, obs_mask, 10_000) - exact).exp() for _ in range(10)])
    within(*mean_and_se(ratios[:, :-1]), torch.ones(len(exact) - 1), sigmas=4.5)
    assert exact[-1] == 0 and (ratios[:, -1] == 1).all()  # nothing observed
    _, se = mean_and_se(ratios)
    assert se[:-1].median() < 0.05  # so that 5 % could be seen


def test_annealed_chains_agree_with_the_quadrature_of_zinb() -> None:
    """A second method for the story with three latents, from the program's own densities and gradients."""
    data, obs_mask = rows_of("ZINB", 6)
    story = made("ZINB")

    def log_likelihood(t: Tensor) -> Tensor:
        values = {"z": t[..., :2], "library": (story.library_loc + story.library_scale * t[..., 2]).exp()}
        with poutine.trace() as tracer, pyro.plate("chains", len(t), dim=-2), pyro.plate("data", 6, dim=-1):
            with observe(data, obs_mask, story.modalities):
                poutine.condition(story, values)(batch=data["batch"])
        tracer.trace.compute_log_prob()
        return sum(tracer.trace.nodes[m]["log_prob"] for m in story.modalities).expand(t.shape[:2])  # type: ignore

    with pyro.validation_enabled(False):
        log_w = annealed_log_weights(log_likelihood, (400, 6, 3))
    exact = log_evidence(story, data, obs_mask)
    mean, se = mean_and_se((log_w - exact).exp())
    within(mean, se, torch.ones(6), sigmas=4.5)
    assert se.max() < 0.1


def test_hospitals_one_by_one_equals_the_dense_normal() -> None:
    """The chain rule over rows against one normal of all cells, its covariance written down directly."""
    story = made("Hospitals")
    data, obs_mask = rows_of("Hospitals", 12)
    hospital = data["hospital"]
    effects = 1.0 + story.between**2 * (hospital.unsqueeze(-1) == hospital).double()  # shape: (B, B)
    own = story.weights @ story.weights.mT + story.noise.square().diag()
    covariance = torch.kron(effects, torch.outer(story.slope, story.slope)) + torch.kron(torch.eye(12), own)
    x = torch.cat([data[m] for m in story.modalities], -1)
    keep = ~x.isnan().reshape(-1)
    loc = story.bias.repeat(12)[keep]
    dense = torch.distributions.MultivariateNormal(loc, covariance[keep][:, keep]).log_prob(x.reshape(-1)[keep])
    torch.testing.assert_close(log_evidence(story, data, obs_mask).sum(), dense, rtol=1e-10, atol=1e-10)


def test_the_program_of_hospitals_has_the_dense_moments() -> None:
    story = made("Hospitals")
    hospital = torch.tensor([0, 0, 1])
    with poutine.trace() as tracer, pyro.plate("draws", 40_000, dim=-2), poutine.mask(mask=False):
        story({"hospital": hospital})
    x = torch.cat([tracer.trace.nodes[m]["value"] for m in story.modalities], -1) - story.bias  # shape: (K, 3, 6)
    within(*mean_and_se(x), torch.zeros(3, 6), sigmas=4.5)
    effects = 1.0 + story.between**2 * (hospital.unsqueeze(-1) == hospital).double()
    own = story.weights @ story.weights.mT + story.noise.square().diag()
    exact = torch.kron(effects, torch.outer(story.slope, story.slope)) + torch.kron(torch.eye(3), own)
    flat = x.flatten(1)
    within(*mean_and_se(flat.unsqueeze(-1) * flat.unsqueeze(-2)), exact, sigmas=5)


@pytest.mark.parametrize(("name", "rows", "tolerance"), [("MixedTable", 60, 1e-6), ("ZINB", 16, 1e-5)])
def test_quadrature_has_converged(name: str, rows: int, tolerance: float) -> None:
    data, obs_mask = rows_of(name, rows)
    found = [log_evidence(made(name), data, obs_mask, points=p) for p in (33, 41)]
    assert (found[0] - found[1]).abs().max() < tolerance


def test_quadrature_of_normals() -> None:
    """Narrow, correlated and away from the origin; what the first lattices miss for good is said."""
    tril = torch.tensor([[[0.1, 0.0], [0.2, 0.1]], [[0.8, 0.0], [-0.5, 0.4]]])
    loc = torch.tensor([[2.5, -1.3], [0.2, 0.1]]).unsqueeze(1)
    normal = torch.distributions.MultivariateNormal(loc, scale_tril=tril.unsqueeze(1))
    assert log_integral(normal.log_prob, 2, 2).abs().max() < 1e-9
    needle = torch.distributions.MultivariateNormal(loc[:1], scale_tril=torch.tensor([[0.02, 0.0], [0.3, 0.1]]))
    with pytest.raises(ArithmeticError, match=r"rows \[0\] not found"):
        log_integral(needle.log_prob, 1, 2)


@pytest.mark.parametrize("name", ALL)
def test_masks(name: str) -> None:
    """What lies under the mask does not matter; no mask is a mask of ones; single rows give the same."""
    story = made(name)
    data, obs_mask = rows_of(name, 5)
    other = dict(data)
    for m, mask in obs_mask.items():
        cells = mask.reshape(mask.shape + (1,) * (data[m].dim() - mask.dim())).expand_as(data[m])
        other[m] = torch.where(cells, data[m], 1)
    exact = log_evidence(story, data, obs_mask)
    assert torch.equal(log_evidence(story, other, obs_mask), exact)
    complete = story.simulate(4, seed=5, rate=0.0)
    ones = {m: torch.ones(4, dtype=torch.bool) for m in story.modalities}
    assert torch.equal(log_evidence(story, complete.data), log_evidence(story, complete.data, ones))
    if name in LOCAL:
        first = log_evidence(story, {m: x[:1] for m, x in data.items()}, {m: x[:1] for m, x in obs_mask.items()})
        torch.testing.assert_close(first, exact[:1], rtol=1e-9, atol=1e-9)
