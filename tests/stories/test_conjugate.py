"""Latents that are no real vectors: Gamma-Poisson and Dirichlet-Categorical stories against conjugate closed forms."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_mmvae as mm
from tests.oracles.conjugate import DirichletCategorical, GammaPoisson
from tests.oracles.statistics import mean_and_se, repeat, within

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

SEEN = {"a": torch.tensor([1, 1, 0, 0, 1]).bool(), "b": torch.tensor([1, 0, 1, 0, 1]).bool()}
EXPOSURE = {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([0.7, 1.3, 0.4])}


class CountExpert(nn.Module):
    """log z near log((1 + sum x) / sum e), of fixed width: a crude expert in unconstrained space."""

    def __init__(self, exposure: Tensor) -> None:
        super().__init__()
        self.total = float(exposure.sum())
        self.scale = nn.Parameter(torch.tensor(0.6))

    def forward(self, x: Tensor) -> Any:
        loc = ((1.0 + x.sum(-1, keepdim=True)) / (1.0 + self.total)).log()
        return dist.Normal(loc, self.scale).to_event(1)


def gamma_poisson() -> tuple[GammaPoisson, Any, Any, dict[str, Tensor]]:
    oracle = GammaPoisson(2.3, 1.1, EXPOSURE)

    def story() -> None:
        z = pyro.sample("rate", dist.Gamma(2.3, 1.1))
        for m, e in EXPOSURE.items():
            pyro.sample(m, dist.Poisson(z.unsqueeze(-1) * e).to_event(1))

    model = mm.observe(story, tuple(EXPOSURE))
    guide = mm.guides.Product(model, {m: CountExpert(e) for m, e in EXPOSURE.items()})
    counts = {m: torch.poisson(3.0 * e.expand(5, -1)) for m, e in EXPOSURE.items()}
    return oracle, model, guide, {m: torch.where(SEEN[m].unsqueeze(-1), x, torch.nan) for m, x in counts.items()}


ALPHA = torch.tensor([2.5, 4.0, 3.2], dtype=torch.float64)  # light tails: a Gaussian proposal covers them
SIZES = {"a": 2, "b": 4}


class LabelExpert(nn.Module):
    """The unconstrained image of smoothed class frequencies, of fixed width."""

    def forward(self, x: Tensor) -> Any:
        counts = nn.functional.one_hot(x.clamp(min=0), 3).double().sum(-2)
        frequency = (ALPHA + counts) / (ALPHA + counts).sum(-1, keepdim=True)
        loc = dist.transforms.StickBreakingTransform().inv(frequency)
        return dist.Normal(loc, 1.3).to_event(1)


def dirichlet_categorical() -> tuple[DirichletCategorical, Any, Any, dict[str, Tensor]]:
    oracle = DirichletCategorical(ALPHA, SIZES)

    def story() -> None:
        z = pyro.sample("share", dist.Dirichlet(ALPHA))
        for m, size in SIZES.items():
            pyro.sample(m, dist.Categorical(z.unsqueeze(-2).expand((*z.shape[:-1], size, 3))).to_event(1))

    model = mm.observe(story, tuple(SIZES))
    guide = mm.guides.Product(model, {m: LabelExpert() for m in SIZES}, prior_expert="never")
    labels = {m: torch.randint(0, 3, (5, size)) for m, size in SIZES.items()}
    return oracle, model, guide, {m: torch.where(SEEN[m].unsqueeze(-1), x, -1) for m, x in labels.items()}


STORIES = [gamma_poisson, dirichlet_categorical]


@pytest.mark.parametrize("make", STORIES)
def test_importance_sampling_reaches_the_closed_form(make: Any) -> None:
    oracle, model, guide, data = make()
    objective = mm.IWAE(num_particles=2000)
    draws = repeat(lambda: objective.per_sample(model, guide, data, SEEN), 20)
    mean, se = mean_and_se(draws)
    observed = SEEN["a"] | SEEN["b"]
    within(mean, se, oracle.log_evidence(data, SEEN), sigmas=4.5)
    assert (se[observed] < 0.01).all() and (se[observed] > 0).all()
    assert (mean[~observed] == 0).all() and (~observed).sum() == 1


@pytest.mark.parametrize("make", STORIES)
def test_the_elbo_is_a_bound_that_tightens(make: Any) -> None:
    oracle, model, guide, data = make()
    evidence, observed = oracle.log_evidence(data, SEEN), SEEN["a"] | SEEN["b"]
    elbo = repeat(lambda: mm.ELBO(num_particles=200).per_sample(model, guide, data, SEEN), 10)
    iwae = repeat(lambda: mm.IWAE(num_particles=20).per_sample(model, guide, data, SEEN), 100)
    (low, se_low), (high, se_high) = mean_and_se(elbo), mean_and_se(iwae)
    assert (low + 4 * se_low < high - 4 * se_high)[observed].all()
    assert (high - 4 * se_high < evidence)[observed].all()


def test_per_feature_masks() -> None:
    oracle, model, guide, _ = gamma_poisson()
    data = {m: torch.poisson(2.0 * e.expand(5, -1)) for m, e in EXPOSURE.items()}
    seen = {m: torch.rand(x.shape) < 0.6 for m, x in data.items()}
    objective = mm.IWAE(num_particles=2000)
    draws = repeat(lambda: objective.per_sample(model, guide, data, seen), 20)
    within(*mean_and_se(draws), oracle.log_evidence(data, seen), sigmas=4.5)


@pytest.mark.parametrize(("make", "site"), [(gamma_poisson, "rate"), (dirichlet_categorical, "share")])
def test_missing_rows_keep_the_prior_exactly(make: Any, site: str) -> None:
    _, _, guide, data = make()
    prior = dist.Gamma(torch.tensor(2.3), torch.tensor(1.1)) if site == "rate" else dist.Dirichlet(ALPHA)
    q = poutine.trace(guide).get_trace(data, SEEN).nodes[site]["fn"]
    draws = q.sample((4000,))
    empty = int((~(SEEN["a"] | SEEN["b"])).nonzero())
    values = prior.sample((7, 5))
    assert (q.log_prob(values)[:, empty] == prior.log_prob(values)[:, empty]).all()
    assert (q.log_prob(values)[:, 0] != prior.log_prob(values)[:, 0]).any()
    within(*mean_and_se(draws[:, empty]), prior.mean)


@pytest.mark.parametrize("make", STORIES)
def test_stock_trace_elbo_agrees(make: Any) -> None:
    _, model, guide, data = make()
    ours = repeat(lambda: mm.ELBO(num_particles=500).per_sample(model, guide, data, SEEN).sum(), 10)
    stock = pyro.infer.Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    theirs = repeat(lambda: torch.tensor(-stock.loss(model, guide, data, SEEN)), 10)
    (mean, se), (exact, own) = mean_and_se(ours), mean_and_se(theirs)
    within(mean, (se**2 + own**2).sqrt(), exact)
