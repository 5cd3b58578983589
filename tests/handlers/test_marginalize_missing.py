"""Models with Pyro's own ``obs_mask``: trained as if masked, imputing in prediction."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.handlers import marginalize_missing

pytestmark = pytest.mark.usefixtures("float64")

B = 5
SEEN = torch.tensor([True, False, True, False, True])


class Problem:
    """A native model, its masked reference, and a guide over z alone."""

    def __init__(self) -> None:
        self.log_sigma = torch.tensor(-0.3, requires_grad=True)
        self.loc = torch.randn(B, requires_grad=True)
        self.complete = {"x": torch.randn(B, 2), "n": torch.randint(0, 4, (B,)).double()}
        self.shown = {
            "x": torch.where(SEEN.unsqueeze(-1), self.complete["x"], torch.nan),
            "n": torch.where(SEEN, self.complete["n"], -3.0),
        }

    def native(self, data: Any, obs_mask: Any) -> None:
        with pyro.plate("data", B):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            x = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), self.log_sigma.exp()).to_event(1)
            pyro.sample("x", x, obs=data["x"], obs_mask=obs_mask["x"])
            pyro.sample("n", dist.Poisson(z.exp()), obs=data["n"], obs_mask=obs_mask["n"])

    def masked(self, data: Any, obs_mask: Any) -> None:
        with pyro.plate("data", B):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            x = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), self.log_sigma.exp()).to_event(1)
            pyro.sample("x", x.mask(obs_mask["x"]), obs=data["x"])
            pyro.sample("n", dist.Poisson(z.exp()).mask(obs_mask["n"]), obs=data["n"])

    def guide(self, *args: Any) -> None:
        with pyro.plate("data", B):
            pyro.sample("z", dist.Normal(self.loc, 0.7))

    def loss(self, elbo: Any, model: Any, data: Any) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        loss = elbo.differentiable_loss(model, self.guide, data, {"x": SEEN, "n": SEEN})
        return (loss.detach(), *torch.autograd.grad(loss, [self.log_sigma, self.loc]))


ELBOS = [
    Trace_ELBO(),
    Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    TraceMeanField_ELBO(),
]


@pytest.mark.parametrize("elbo", ELBOS, ids=["trace", "particles", "mean field"])
def test_loss_and_gradients_equal_a_masked_model(elbo: Any) -> None:
    problem = Problem()
    ours = problem.loss(elbo, marginalize_missing(problem.native), problem.shown)
    theirs = problem.loss(elbo, problem.masked, problem.complete)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert all(t.isfinite().all() for t in ours)


def test_trace_graph_elbo() -> None:
    problem, losses = Problem(), []
    for model, data in ((marginalize_missing(problem.native), problem.shown), (problem.masked, problem.complete)):
        torch.manual_seed(1)
        losses.append(TraceGraph_ELBO().loss(model, problem.guide, data, {"x": SEEN, "n": SEEN}))
    assert abs(losses[0] - losses[1]) < 1e-10


def test_without_it_the_scale_gets_a_biased_gradient() -> None:
    """Positive control, trap 1: each imputed element adds 1 to the gradient of log sigma in expectation."""
    problem = Problem()
    elbo = Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    right = problem.loss(elbo, marginalize_missing(problem.native), problem.shown)[1]
    with pyro.validation_enabled(False):
        complete = {**problem.complete}
        wrong = problem.loss(elbo, problem.native, complete)[1]
    assert abs(wrong - right - 2 * (~SEEN).sum()) < 0.2


def test_terms_over_a_native_model() -> None:
    """Each modality as a target of its own: the sum of the single terms with the prior counted once."""
    problem, eps = Problem(), torch.randn(B)
    model, mask = marginalize_missing(problem.native), {"x": SEEN, "n": SEEN}
    selectors = {"x": mm.objectives.Only(("x",)), "n": mm.objectives.Only(("n",)), "both": mm.objectives.Observed()}
    values = {}
    for name, target in selectors.items():
        with mm.handlers.noise({"z": eps}):
            objective = mm.ELBO(mm.Terms([mm.Term(target=target)]), kl="sampled")
            values[name] = objective.per_sample(model, problem.guide, problem.shown, mask)
    z = problem.loc + 0.7 * eps
    kl = dist.Normal(problem.loc, 0.7).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
    n = torch.where(SEEN, dist.Poisson(z.exp()).log_prob(problem.complete["n"]) - kl, 0.0)
    torch.testing.assert_close(values["n"], n, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values["both"] + torch.where(SEEN, -kl, 0.0), values["x"] + values["n"])


def test_a_model_that_marks_no_modality_is_refused() -> None:
    problem = Problem()
    with pytest.raises(ValueError, match=r"marks no modality(.|\n)*marginalize_missing"):
        mm.ELBO().loss(problem.masked, problem.guide, problem.complete, {"x": SEEN, "n": SEEN})


def test_predictive_still_imputes() -> None:
    problem, mask = Problem(), {"x": SEEN, "n": SEEN}
    predictive = Predictive(marginalize_missing(problem.native), guide=problem.guide, num_samples=300, parallel=True)
    draws = predictive(problem.complete, mask)
    x = draws["x"].reshape(300, B, 2)
    assert (x[:, SEEN] == problem.complete["x"][SEEN]).all()
    assert (x[:, ~SEEN].std(0) > 0.1).all()
    spread = (0.49 + (2 * problem.log_sigma).exp()).sqrt() / 300**0.5
    assert ((x[:, ~SEEN].mean(0) - problem.loc[~SEEN].unsqueeze(-1)).abs() < 4.5 * spread).all()


def test_keep() -> None:
    problem = Problem()
    model = marginalize_missing(problem.native, keep=("x",))
    nodes = poutine.trace(model).get_trace(problem.shown, {"x": SEEN, "n": SEEN}).nodes
    assert "x_unobserved" in nodes and "n_unobserved" not in nodes


def test_the_site_shows_the_observed_values() -> None:
    problem = Problem()
    nodes = poutine.trace(marginalize_missing(problem.native)).get_trace(problem.shown, {"x": SEEN, "n": SEEN}).nodes
    assert torch.equal(nodes["x"]["value"][SEEN], problem.complete["x"][SEEN])
    assert not any(name.endswith("_unobserved") for name in nodes)
