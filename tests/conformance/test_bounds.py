"""Law 4: one term is log p less a divergence; importance weighting climbs from there to log p and no further.

Test layer.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import pyro_mmvae as mm
from tests.conformance.cases import Case
from tests.conformance.evaluate import by_draws, by_sigma_points, value
from tests.conformance.problems import Problem
from tests.oracles.statistics import mean_and_se, within
from tests.oracles.terms import kl_full

EXACT = {"rtol": 1e-10, "atol": 1e-9}  # closed forms in float64, sums of dozens of terms of order ten
PLAIN = {"beta": 1.0, "rescale": None}  # makes the terms of a mixture one bound
PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])


def gap(case: Case, p: Problem) -> torch.Tensor:  # shape: (B,)
    """KL(q(z | x_O) || p(z | x_O)) of the case's wrong guide."""
    loc, scale = case.posterior(p)
    exact = zip(loc, scale, *p.stacked.posterior(p.data, p.obs_mask), strict=True)
    return torch.stack([kl_full(m, torch.diag(s**2), m0, c0) for m, s, m0, c0 in exact])


def bound(case: Case, vae: mm.MultimodalVAE, particles: int) -> mm.IWAE:
    """The importance-weighted bound on log p(x_O) that belongs to the case's guide; "looser" ones stay below it."""
    if not case.is_mixture:
        return mm.IWAE(num_particles=particles)
    return mm.IWAE(vae.objective.terms, num_particles=particles, bound="tight", density="mixture")


def evidence(case: Case, p: Problem) -> torch.Tensor:  # shape: (B,)
    """log p(x_O); under a Laplace prior by the trapezoidal rule, its kinks on the grid (error below 1e-4)."""
    if p.family == "normal":
        parts = case.prior_parts(p)
        each = [math.log(w) + p.under(*q).log_evidence(p.data, p.obs_mask) for w, *q in parts]
        return torch.stack(each).logsumexp(0)
    t = torch.linspace(-12, 12, 601)
    z = p.model.prior[0] + torch.cartesian_prod(t, t).unsqueeze(1)
    scored = p.stacked.log_likelihoods(z.expand(-1, len(p.sets), -1), p.data, p.obs_mask)
    prior = torch.distributions.Laplace(*p.model.prior).log_prob(z).sum(-1)
    return (sum(scored.values()) + prior).logsumexp(0) + 2 * (t[1] - t[0]).log()


@pytest.mark.law("single term")
@PER_FEATURE
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_one_term_is_the_evidence_less_the_divergence(case: Case, kl: str, per_feature: bool) -> None:
    p = case.make(per_feature=per_feature)
    found = by_sigma_points(case.vae(p), p, mm.ELBO(kl=kl))
    distance = gap(case, p)
    assert (distance[1:] > 0.05).all()
    torch.testing.assert_close(found, p.stacked.log_evidence(p.data, p.obs_mask) - distance, **EXACT)


@pytest.mark.law("single term")
def test_importance_weighting_with_one_particle_is_the_elbo(case: Case) -> None:
    p = case.make()
    vae, eps = case.vae(p), p.noise()
    one = value(vae, p.data, p.obs_mask, eps, objective=mm.IWAE(num_particles=1))
    torch.testing.assert_close(one, value(vae, p.data, p.obs_mask, eps, objective=mm.ELBO(kl="sampled")), **EXACT)


@pytest.mark.law("bounds")
def test_more_particles_climb_towards_the_evidence(case: Case) -> None:
    p = case.make(max(2, case.minimum))
    vae = case.vae(p, **PLAIN)
    found = [by_draws(vae, p, 800, objective=bound(case, vae, k), seed=k).sum(-1) for k in (1, 2, 10)]
    steps = [mean_and_se(draws) for draws in found] + [(evidence(case, p).sum(), torch.tensor(0.0))]
    for (low, low_se), (high, high_se) in itertools.pairwise(steps):
        assert high - low > 4 * (low_se**2 + high_se**2).sqrt(), f"{low} +- {low_se}, {high} +- {high_se}"


@pytest.mark.law("bounds")
def test_many_particles_reach_the_evidence(case: Case) -> None:
    p = case.make(max(2, case.minimum), per_feature=True)
    vae = case.vae(p, **PLAIN)
    total = 10_000 if case.is_mixture else 50_000
    found = by_draws(vae, p, copies=1, objective=bound(case, vae, total))[0]
    parts = by_draws(vae, p, copies=20, objective=bound(case, vae, total // 20))
    relative = (parts - found).exp()  # p(x_O) of parts of the draws, over that of all of them
    within(found[1:], relative.std(0)[1:] / 20**0.5, evidence(case, p)[1:], label=case.name)
    assert found[0] == 0
