"""Terms that equal a log-evidence with the exact guide; levels; covariates in likelihood and prior."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.objectives import Observed, Only
from tests.oracles.cases import make_case
from tests.oracles.linear_gaussian import LinearGaussian
from tests.oracles.products import product_of_experts
from tests.oracles.statistics import mean_and_se, within
from tests.oracles.terms import expected_log_likelihood, kl_full, term_value
from tests.stories.linear import (
    LinearExpert,
    experts,
    likelihood_encoders,
    linear_story,
    masks_of,
    sigma_points,
    subsets,
)

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]  # stock ELBOs register parameters

SETS = [s for s in subsets(("a", "b", "c")) if s]
SPLITS = [(t, o) for o in SETS for t in SETS if set(t) < set(o)]


def exact_programs() -> tuple[Any, Any, Any]:
    """All sets of three modalities as rows, and the exact posterior of every set as the guide."""
    case = make_case(3)
    model = mm.observe(linear_story(case.model), case.model.modalities)
    return case, model, mm.guides.Product(model, likelihood_encoders(case.model))


@pytest.mark.parametrize("source", SETS)
def test_source_to_source_is_the_log_evidence(source: tuple[str, ...]) -> None:
    case, model, guide = exact_programs()
    objective = mm.ELBO(mm.Terms([mm.Term(Only(source), target=None)]), kl="sampled")
    value = objective.per_sample(model, guide, case.data, case.obs_mask)
    expected = case.model.log_evidence(case.data, masks_of(source, case.obs_mask))
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)  # of every single draw


@pytest.mark.parametrize(("given", "observed"), SPLITS)
def test_the_rest_against_another_posterior_is_a_conditional(given: tuple[str, ...], observed: tuple[str, ...]) -> None:
    """T(O -> O without T || q_T) = log p(x_O | x_T), draw by draw; rows without any of T are no term."""
    case, model, guide = exact_programs()
    rest = tuple(m for m in observed if m not in given)
    objective = mm.ELBO(mm.Terms([mm.Term(Only(observed), Only(rest), prior=Only(given))]), kl="sampled")
    value = objective.per_sample(model, guide, case.data, case.obs_mask)
    target, known = (masks_of(s, case.obs_mask) for s in (rest, given))
    expected = case.model.conditional_log_evidence(case.data, target, known)
    valid = torch.stack([known[m] for m in given]).any(0)
    torch.testing.assert_close(value, torch.where(valid, expected, 0.0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_a_wrong_guide_gives_the_closed_form(kl: Any, per_feature: bool) -> None:
    case = make_case(3, latent_dim=2, per_feature=per_feature)
    model = mm.observe(linear_story(case.model), case.model.modalities)
    encoders = experts(case.model)
    guide = mm.guides.Product(model, encoders)
    terms = mm.Terms([mm.Term(Only(("a", "c")), Observed(), weight=0.7, beta=1.6, rescale={"b": 0.4})])
    eps = sigma_points({"z": 2}, middle=2)
    with mm.handlers.noise(eps):
        objective = mm.ELBO(terms, num_particles=len(eps["z"]), kl=kl)
        value = objective.per_sample(model, guide, case.data, case.obs_mask)
    seen = masks_of(("a", "c"), case.obs_mask)
    filled = {m: torch.where(mask.reshape(mask.shape + (1,) * (2 - mask.dim())), case.data[m], 0.0)
              for m, mask in case.obs_mask.items()}
    own = {m: (q.mean.detach(), q.stddev.detach()) for m, q in ((m, e(filled[m])) for m, e in encoders.items())}
    q = product_of_experts(own, seen, case.model.prior)
    expected = 0.7 * term_value(case.model, q, case.complete, case.obs_mask, rescale={"b": 0.4}, beta=1.6)
    valid = torch.stack([m.reshape(len(m), -1).any(-1) for m in seen.values()]).any(0)
    torch.testing.assert_close(value, torch.where(valid, expected, 0.0), rtol=1e-10, atol=1e-10)


L, B = 2, 5
MASKS = {"a": torch.tensor([1, 0, 1, 0, 0]).bool(), "b": torch.tensor([1, 1, 0, 0, 1]).bool()}


class Hierarchy:
    """z2 -> z1 -> a, b, everything linear, with experts at both levels."""

    def __init__(self) -> None:
        self.h, self.c = torch.randn(L, L), torch.randn(L)
        self.w = {m: torch.randn(3, L) for m in MASKS}
        self.data = {m: torch.randn(B, 3) for m in MASKS}

        def expert() -> LinearExpert:
            return LinearExpert(torch.randn(L, 3), torch.randn(L), 0.5 + torch.rand(L))

        self.encoders = {site: {m: expert() for m in MASKS} for site in ("z_2", "z_1")}
        self.model = mm.observe(self.story, tuple(MASKS))
        self.guide = mm.guides.Product(self.model, self.encoders)

    def story(self) -> None:
        z2 = pyro.sample("z_2", dist.Normal(torch.zeros(L), 1.0).to_event(1))
        z1 = pyro.sample("z_1", dist.Normal(z2 @ self.h.T + self.c, 0.5).to_event(1))
        for m, w in self.w.items():
            pyro.sample(m, dist.Normal(z1 @ w.T, 0.8).to_event(1))

    def exact(self) -> Tensor:  # shape: (B,)
        """The ELBO from the joint Gaussian q(z_2, z_1) = q(z_2) q(z_1 | z_2)."""
        own = {s: {m: e(self.data[m]) for m, e in of.items()} for s, of in self.encoders.items()}
        moments = {s: {m: (q.mean.detach(), q.stddev.detach()) for m, q in of.items()} for s, of in own.items()}
        loc2, scale2 = product_of_experts(moments["z_2"], MASKS, (torch.zeros(L), torch.ones(L)))
        values = []
        for n in range(B):
            tau0 = torch.full((L,), 0.5) ** -2
            tau = tau0 + sum(q[1][n] ** -2 for m, q in moments["z_1"].items() if MASKS[m][n])
            shift = sum(q[0][n] * q[1][n] ** -2 for m, q in moments["z_1"].items() if MASKS[m][n])
            gain = torch.diag(tau0 / tau) @ self.h  # E[z_1 | z_2] = gain z_2 + offset under q
            offset = (tau0 * self.c + shift) / tau
            cov2 = torch.diag(scale2[n] ** 2)
            loc1, cov1 = gain @ loc2[n] + offset, gain @ cov2 @ gain.T + torch.diag(1 / tau)
            joint = torch.cat([torch.cat([cov2, cov2 @ gain.T], 1), torch.cat([gain @ cov2, cov1], 1)])
            of_p = torch.cat([
                torch.cat([torch.eye(L), self.h.T], 1),
                torch.cat([self.h, self.h @ self.h.T + 0.25 * torch.eye(L)], 1),
            ])
            loc, loc_p = torch.cat([loc2[n], loc1]), torch.cat([torch.zeros(L), self.c])
            zero, noise = dict.fromkeys(MASKS, torch.zeros(3)), dict.fromkeys(MASKS, 0.8)
            likelihood = LinearGaussian(self.w, zero, noise, torch.zeros(L), torch.ones(L))
            row = {m: x[n : n + 1] for m, x in self.data.items()}
            mask = {m: x[n : n + 1] for m, x in MASKS.items()}
            scored = expected_log_likelihood(likelihood, loc1.unsqueeze(0), cov1.unsqueeze(0), row, mask)
            values.append(sum(scored.values()).squeeze(0) - kl_full(loc, joint, loc_p, of_p))
        return torch.stack(values)


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_levels(kl: Any) -> None:
    problem, eps = Hierarchy(), sigma_points({"z_2": L, "z_1": L}, middle=2)
    with mm.handlers.noise(eps):
        objective = mm.ELBO(num_particles=len(eps["z_1"]), kl=kl)
        value = objective.per_sample(problem.model, problem.guide, problem.data, MASKS)
    torch.testing.assert_close(value, problem.exact(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_levels_under_stock_elbos(elbo: Any) -> None:
    problem, eps = Hierarchy(), sigma_points({"z_2": L, "z_1": L})
    stock = elbo(num_particles=len(eps["z_1"]), vectorize_particles=True, max_plate_nesting=1)
    with mm.handlers.noise(eps):
        loss = stock.loss(problem.model, problem.guide, problem.data, MASKS)
    torch.testing.assert_close(torch.tensor(-loss), problem.exact().sum(), rtol=1e-10, atol=1e-10)


def test_covariates_in_likelihood_and_prior() -> None:
    """x = W z + b + age v + noise, z ~ N(mu + age u, .): the model of x - age v at a shifted prior."""
    case = make_case(2, latent_dim=2)
    oracle, rows = case.model, len(case.sets)
    age = torch.linspace(-1.0, 2.0, rows)
    slope = {m: torch.randn(w.shape[0]) for m, w in oracle.weights.items()}
    drift = torch.randn(2)

    def story(age: Tensor) -> None:
        extra = age.unsqueeze(-1)
        z = pyro.sample("z", dist.Normal(oracle.prior[0] + extra * drift, oracle.prior[1]).to_event(1))
        for m in oracle.modalities:
            loc = z @ oracle.weights[m].T + oracle.bias[m] + extra * slope[m]
            pyro.sample(m, dist.Normal(loc, oracle.noise[m]).to_event(1))

    model = mm.observe(story, oracle.modalities)
    encoders = experts(oracle)
    guide = mm.guides.Product(model, {"z": encoders})
    data = {**case.data, "age": age}
    eps = sigma_points({"z": 2}, middle=2)
    with mm.handlers.noise(eps):
        elbo = mm.ELBO(num_particles=len(eps["z"])).per_sample(model, guide, data, case.obs_mask)
    iwae = mm.IWAE(num_particles=3000)
    draws = torch.stack([iwae.per_sample(model, guide, data, case.obs_mask).detach() for _ in range(10)])
    for n in range(rows):
        prior = oracle.prior[0] + age[n] * drift
        at_row = LinearGaussian(oracle.weights, {m: b + age[n] * slope[m] for m, b in oracle.bias.items()},
                                oracle.noise, prior, oracle.prior[1])
        row = {m: x[n : n + 1] for m, x in case.complete.items()}
        mask = {m: x[n : n + 1] for m, x in case.obs_mask.items()}
        own = {m: (q.mean.detach(), q.stddev.detach()) for m, q in ((m, e(row[m])) for m, e in encoders.items())}
        q = product_of_experts(own, mask, at_row.prior)
        torch.testing.assert_close(elbo[n], term_value(at_row, q, row, mask)[0], rtol=1e-10, atol=1e-10)
        within(*mean_and_se(draws[:, n]), at_row.log_evidence(row, mask)[0], sigmas=5)
