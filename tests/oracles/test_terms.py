"""Exact terms against quadrature, Monte Carlo and identities."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from .cases import make_case
from .linear_gaussian import Gaussian
from .shared_private import SharedPrivate, random_shared_private
from .statistics import mean_and_se, within
from .terms import (
    cross_entropy,
    expected_log_likelihood,
    expected_log_mixture,
    kl_diag,
    kl_full,
    kl_to_prior,
    private_term_value,
    quadrature,
    term_value,
)

PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
MODALITIES = pytest.mark.parametrize("num_modalities", [1, 2, 3])
EXACT = {"rtol": 0.0, "atol": 1e-10}  # closed forms in float64


def wrong_posterior(batch: int, latent_dim: int, seed: int = 0) -> Gaussian:
    """A posterior that fits nothing."""
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(batch, latent_dim, generator=generator, dtype=torch.float64)
    return loc, 0.3 + torch.rand(batch, latent_dim, generator=generator, dtype=torch.float64)


def test_divergences_equal_torch() -> None:
    q, p = wrong_posterior(4, 3, 0), wrong_posterior(4, 3, 1)
    torch.testing.assert_close(kl_diag(q, p), kl_divergence(Normal(*q), Normal(*p)).sum(-1), **EXACT)
    factor, factor0 = torch.randn(2, 3, 3, dtype=torch.float64)
    cov, cov0 = (f @ f.T + torch.eye(3, dtype=torch.float64) for f in (factor, factor0))
    expected = kl_divergence(MultivariateNormal(q[0][0], cov), MultivariateNormal(p[0][0], cov0))
    torch.testing.assert_close(kl_full(q[0][0], cov, p[0][0], cov0), expected, **EXACT)
    torch.testing.assert_close(cross_entropy(q, p), cross_entropy(q, q) - kl_diag(q, p), **EXACT)


@PER_FEATURE
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_expected_log_likelihood_equals_quadrature(latent_dim: int, per_feature: bool) -> None:
    case = make_case(3, latent_dim, per_feature=per_feature)
    q = wrong_posterior(len(case.sets), latent_dim)
    value = expected_log_likelihood(case.model, *q, case.data, case.obs_mask)
    for row in range(len(case.sets)):
        node, weight = quadrature(q[0][row], q[1][row], points=201)
        data = {m: x[row : row + 1] for m, x in case.data.items()}
        mask = {m: a[row : row + 1] for m, a in case.obs_mask.items()}
        scored = case.model.log_likelihoods(node.unsqueeze(-2), data, mask)
        for name in case.model.modalities:
            torch.testing.assert_close(value[name][row], weight @ scored[name].squeeze(-1), **EXACT)


def test_expected_log_likelihood_under_a_full_covariance_equals_monte_carlo() -> None:
    case = make_case(2, 3)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    value = expected_log_likelihood(case.model, loc, cov, case.data, case.obs_mask)
    z = MultivariateNormal(loc, cov).sample((20000,))
    scored = case.model.log_likelihoods(z, case.data, case.obs_mask)
    for name in case.model.modalities:
        within(*mean_and_se(scored[name]), value[name], label=name)


@PER_FEATURE
@MODALITIES
def test_elbo_plus_divergence_to_the_posterior_is_the_evidence(num_modalities: int, per_feature: bool) -> None:
    case = make_case(num_modalities, 3, per_feature=per_feature)
    q = wrong_posterior(len(case.sets), 3)
    elbo = term_value(case.model, q, case.data, case.obs_mask)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    gap = torch.stack([kl_full(m, torch.diag(s**2), m0, c0) for m, s, m0, c0 in zip(*q, loc, cov, strict=True)])
    assert (gap > 0.1).all()
    torch.testing.assert_close(elbo + gap, case.model.log_evidence(case.data, case.obs_mask), **EXACT)


@PER_FEATURE
@MODALITIES
def test_exact_posterior_makes_a_term_the_evidence(num_modalities: int, per_feature: bool) -> None:
    case = make_case(num_modalities, 1, per_feature=per_feature)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    value = term_value(case.model, (loc, cov[..., 0].sqrt()), case.data, case.obs_mask)
    torch.testing.assert_close(value, case.model.log_evidence(case.data, case.obs_mask), **EXACT)


def test_posterior_of_a_part_as_prior_makes_a_term_the_conditional_evidence() -> None:
    case = make_case(3, 1)
    hidden = torch.zeros(len(case.sets), dtype=torch.bool)
    given = {**case.obs_mask, "a": hidden}
    target = {"a": case.obs_mask["a"], "b": hidden, "c": hidden}
    q, r = ((m, c[..., 0].sqrt()) for m, c in (case.model.posterior(case.data, s) for s in (case.obs_mask, given)))
    value = term_value(case.model, q, case.data, target, r=r)
    torch.testing.assert_close(value, case.model.conditional_log_evidence(case.data, target, given), **EXACT)


def test_weights_of_a_term_equal_monte_carlo_of_its_definition() -> None:
    case = make_case(3, 2, per_feature=True)
    q, r = wrong_posterior(8, 2), wrong_posterior(8, 2, 1)
    rescale, beta = {"a": 0.7, "b": torch.linspace(0.5, 2.0, 8, dtype=torch.float64)}, 2.5
    value = term_value(case.model, q, case.data, case.obs_mask, rescale=rescale, beta=beta, r=r)
    z = Normal(*q).sample((40000,))
    scored = case.model.log_likelihoods(z, case.data, case.obs_mask)
    ratio = (Normal(*r).log_prob(z) - Normal(*q).log_prob(z)).sum(-1)
    draws = 0.7 * scored["a"] + rescale["b"] * scored["b"] + scored["c"] + beta * ratio
    within(*mean_and_se(draws), value, resolution=0.05)


def test_divergence_to_the_prior_of_both_models() -> None:
    model = random_shared_private({"a": 2}, 2, 1)
    q = wrong_posterior(3, 2)
    expected = kl_divergence(Normal(*q), Normal(*model.prior)).sum(-1)
    torch.testing.assert_close(kl_to_prior(model, q), expected, **EXACT)


def private_case() -> tuple[SharedPrivate, dict[str, torch.Tensor], Gaussian, dict[str, Gaussian]]:
    """A model with private latents, four rows of data, and posteriors that fit nothing."""
    model = random_shared_private({"a": 2, "b": 3}, 2, 1)
    _, data = model.joint.sample(4, torch.Generator().manual_seed(0))
    return model, data, wrong_posterior(4, 2, 5), {"a": wrong_posterior(4, 1, 6), "b": wrong_posterior(4, 1, 7)}


@pytest.mark.parametrize("with_auxiliary", [False, True], ids=["prior", "auxiliary"])
def test_private_latents_equal_monte_carlo_of_their_definition(with_auxiliary: bool) -> None:
    model, data, q, private = private_case()
    inferred = {"a": torch.tensor([True, False, True, False]), "b": torch.tensor([True, True, False, False])}
    auxiliary = {"b": wrong_posterior(4, 1, 8)} if with_auxiliary else None
    target = {"a": torch.tensor([True, True, True, False]), "b": torch.tensor([False, True, True, True])}
    value = private_term_value(
        model, q, private, inferred, data, target, rescale={"b": 0.4}, beta=1.5, beta_private=0.6, auxiliary=auxiliary
    )
    draws = []
    for row in range(4):
        z = Normal(q[0][row], q[1][row]).sample((40000,))
        total = 1.5 * (Normal(*model.prior).log_prob(z) - Normal(q[0][row], q[1][row]).log_prob(z)).sum(-1)
        for name, weight in (("a", 1.0), ("b", 0.4)):
            prior = Normal(*model.private_prior[name])
            own = Normal(private[name][0][row], private[name][1][row])
            if inferred[name][row]:
                w = own.sample((40000,))
                total = total + 0.6 * (prior.log_prob(w) - own.log_prob(w)).sum(-1)
            elif auxiliary is not None and name in auxiliary:
                w = Normal(auxiliary[name][0][row], auxiliary[name][1][row]).sample((40000,))
            else:
                w = prior.sample((40000,))
            if target[name][row]:
                stacked = model.joint.weights[name]
                latent = stacked[:, model.slices[None]], stacked[:, model.slices[name]]
                mean = z @ latent[0].T + w @ latent[1].T + model.joint.bias[name]
                total = total + weight * Normal(mean, model.joint.noise[name]).log_prob(data[name][row]).sum(-1)
        draws.append(total)
    within(*mean_and_se(torch.stack(draws, -1)), value, resolution=0.05)


def test_elbo_with_private_latents_plus_divergence_is_the_evidence() -> None:
    model, data, q, private = private_case()
    every = {m: torch.ones(4, dtype=torch.bool) for m in data}
    elbo = private_term_value(model, q, private, every, data)
    stacked = model.stack(q, private)
    loc, cov = model.joint.posterior(data)
    gap = torch.stack([kl_full(m, torch.diag(s**2), m0, c0) for m, s, m0, c0 in zip(*stacked, loc, cov, strict=True)])
    torch.testing.assert_close(elbo + gap, model.log_evidence(data), **EXACT)


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize(("ratio", "tolerance"), [(4.0, 1e-10), (10.0, 1e-6)])
def test_mixture_quadrature_has_the_accuracy_it_states(latent_dim: int, ratio: float, tolerance: float) -> None:
    near, far = torch.zeros(latent_dim), torch.full((latent_dim,), 0.7)
    wide, narrow = torch.ones(latent_dim), torch.full((latent_dim,), 1 / ratio)
    parts = [(0.3, near.double(), wide.double()), (0.7, far.double(), narrow.double())]
    fine = {1: 40001, 2: 1201}[latent_dim]
    for _, loc, scale in parts:
        coarse_value, fine_value = (expected_log_mixture(loc, scale, parts, p) for p in (None, fine))
        torch.testing.assert_close(coarse_value, fine_value, rtol=0.0, atol=tolerance)


def test_mixture_quadrature_equals_monte_carlo_and_one_component_its_entropy() -> None:
    q, other = wrong_posterior(1, 2, 0), wrong_posterior(1, 2, 1)
    loc, scale = q[0][0], q[1][0]
    alone = expected_log_mixture(loc, scale, [(1.0, loc, scale)])
    torch.testing.assert_close(alone, cross_entropy((loc, scale), (loc, scale)), **EXACT)
    parts = [(0.25, loc, scale), (0.75, other[0][0], other[1][0])]
    z = Normal(loc, scale).sample((100000,))
    densities = [w * Normal(m, s).log_prob(z).sum(-1).exp() for w, m, s in parts]
    within(*mean_and_se(sum(densities).log()), expected_log_mixture(loc, scale, parts), resolution=0.05)


def test_mixture_quadrature_is_differentiable() -> None:
    loc, scale = torch.tensor([0.3]).double().requires_grad_(), torch.tensor([0.8]).double().requires_grad_()
    other = (0.6, torch.tensor([1.0]).double(), torch.tensor([0.5]).double())
    assert torch.autograd.gradcheck(lambda m, s: expected_log_mixture(m, s, [(0.4, m, s), other]), (loc, scale))


def test_quadrature_stops_at_two_dimensions() -> None:
    with pytest.raises(NotImplementedError, match="3 dimensions"):
        quadrature(torch.zeros(3), torch.ones(3))
