"""Mixtures of experts and of products: density and draws by definition, components, absent ones.

Test layer.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_mmvae import fusion
from pyro_mmvae.fusion import Experts
from tests.fusion.rules import case_of, experts_of, mask_of, parameters, prior_of
from tests.oracles.products import mixture_components, mopoe_components
from tests.oracles.terms import log_mixture

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # a handful of sums and products in float64
CHOSEN = [("a",), ("b",), ("a", "b"), ("b", "c")]
TABLE = torch.tensor([[m in s for m in "abc"] for s in CHOSEN])


def test_density_of_a_mixture_of_experts() -> None:
    case = case_of()
    q = fusion.Mixture()(prior_of(case), experts_of(case, fill=1e30), mask_of(case))
    z = torch.randn(5, 8, 2)
    found = q.log_prob(z)
    assert torch.equal(found[:, 0], prior_of(case).log_prob(z[:, 0]))
    for n in range(1, 8):
        torch.testing.assert_close(
            found[:, n], log_mixture(z[:, n], mixture_components(case.experts, case.obs_mask, n)), **EXACT
        )


@pytest.mark.parametrize("prior_expert", ["full_only", "never", "always"])
@pytest.mark.parametrize("chosen", [False, True], ids=["powerset", "chosen"])
def test_density_of_a_mixture_of_products(prior_expert: str, chosen: bool) -> None:
    case = case_of()
    rule = fusion.MixtureOfProducts(prior_expert=prior_expert, subsets=TABLE if chosen else None)
    q = rule(prior_of(case), experts_of(case), mask_of(case))
    z = torch.randn(5, 8, 2)
    found = q.log_prob(z)
    for n in range(8):
        parts = mopoe_components(
            case.experts,
            case.obs_mask,
            n,
            case.model.prior,
            prior_expert=prior_expert,
            subsets=CHOSEN if chosen else None,
        )
        expected = log_mixture(z[:, n], parts) if parts else prior_of(case).log_prob(z[:, n])
        torch.testing.assert_close(found[:, n], expected, **EXACT)


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
def test_one_observed_expert_is_itself(family: type) -> None:
    case = case_of()
    made = tuple(family(q.base_dist.loc, q.base_dist.scale).to_event(1) for q in experts_of(case).dists)
    experts = Experts(("a", "b", "c"), made)
    mask = mask_of(case)
    z = torch.randn(8, 2)
    both = [rule(prior_of(case), experts, mask).log_prob(z) for rule in (fusion.Mixture(), fusion.Mixture().component)]
    for n, names in enumerate(case.sets):
        if len(names) == 1:
            expected = made["abc".index(names[0])].log_prob(z)[n]
            for found in both:
                torch.testing.assert_close(found[n], expected, **EXACT)


def test_components_of_products_are_products() -> None:
    case = case_of()
    args = prior_of(case), experts_of(case), mask_of(case)
    product = fusion.Product(prior_expert="full_only")(*args)
    for a, b in zip(parameters(fusion.MixtureOfProducts().component(*args)), parameters(product), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", [fusion.Mixture(), fusion.MixtureOfProducts()], ids=["experts", "products"])
def test_leading_dimensions_of_masks_equal_a_loop(rule: fusion.Fusion) -> None:
    case = case_of()
    masks = (torch.rand(3, 4, 1, 8) < 0.6) & mask_of(case)[:, None, None]
    z = torch.randn(4, 1, 8, 2)
    together = rule(prior_of(case), experts_of(case), masks).log_prob(z)
    assert together.shape == (4, 1, 8)
    for j in range(4):
        alone = rule(prior_of(case), experts_of(case), masks[:, j, 0]).log_prob(z[j, 0])
        torch.testing.assert_close(together[j, 0], alone, **EXACT)


@pytest.mark.parametrize("rule", [fusion.Mixture(), fusion.MixtureOfProducts()], ids=["experts", "products"])
def test_gradients_are_finite_with_missing_experts(rule: fusion.Fusion) -> None:
    case = case_of()
    leaves = [(q.base_dist.loc.clone(), q.base_dist.scale.clone()) for q in experts_of(case).dists]
    for pair in leaves:
        for leaf in pair:
            leaf.requires_grad_()
    experts = Experts(("a", "b", "c"), tuple(dist.Normal(*pair).to_event(1) for pair in leaves))
    q = rule(prior_of(case), experts, mask_of(case))
    (q.log_prob(q.rsample()).sum() + q.mean.sum()).backward()
    for m, pair in zip("abc", leaves, strict=True):
        for leaf in pair:
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()
            assert (leaf.grad[~case.obs_mask[m]] == 0).all()


def test_weights_are_equal_over_what_is_observed() -> None:
    case = case_of()
    far = Experts(tuple("abc"), tuple(dist.Normal(torch.full((8, 1), x), 0.01).to_event(1) for x in (-50.0, 0.0, 50.0)))
    prior = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    q = fusion.Mixture()(prior, far, mask_of(case))
    draws = q.sample((4000,)).squeeze(-1)
    for n, names in enumerate(case.sets):
        if names:
            share = [(draws[:, n] - x).abs().lt(1).double().mean() for x in (-50.0, 0.0, 50.0)]
            for m, found in zip("abc", share, strict=True):
                p = (m in names) / len(names)
                # four standard errors of a share of 4000 draws
                assert abs(found - p) <= 4 * math.sqrt(p * (1 - p) / 4000)


def test_component_of_a_row_that_observes_several_is_the_first() -> None:
    case = case_of()
    z = torch.randn(8, 2)
    found = fusion.Mixture().component(prior_of(case), experts_of(case), mask_of(case)).log_prob(z)
    for n, names in enumerate(case.sets[1:], start=1):
        first = dist.Normal(*(p[n] for p in case.experts[names[0]])).to_event(1)
        torch.testing.assert_close(found[n], first.log_prob(z[n]), **EXACT)
