"""Law 9: commutative, one expert alone, nothing observed, leading dimensions, gradients; equal to naive products.

Test layer.
"""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_mmvae import fusion
from pyro_mmvae.fusion import Experts
from tests.fusion.rules import RULES, Rule, case_of, experts_of, mask_of, parameters, prior_of

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # a handful of sums and products in float64
ALL = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


@ALL
def test_equals_the_naive_product(rule: Rule) -> None:
    case = case_of()
    found = parameters(rule.make()(prior_of(case), experts_of(case), mask_of(case)))
    for a, b in zip(found, rule.oracle(case), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@ALL
def test_is_commutative(rule: Rule) -> None:
    if rule.name in ("generalized", "geometric"):
        return  # their weights belong to positions: turned around below
    case, order = case_of(), ("c", "a", "b")
    straight = parameters(rule.make()(prior_of(case), experts_of(case), mask_of(case)))
    turned = parameters(rule.make()(prior_of(case), experts_of(case, order=order), mask_of(case, order)))
    for a, b in zip(straight, turned, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_weighted_rules_are_commutative_with_their_weights() -> None:
    case, order = case_of(), ("c", "a", "b")
    index = [2, 0, 1]
    straight, turned = (next(r for r in RULES if r.name == "generalized").make() for _ in range(2))
    turned.logits.data.copy_(straight.logits.data[index])
    pairs = [
        (straight, turned),
        (fusion.GeometricMean((0.5, 1.0, 2.0, 0.25)), fusion.GeometricMean((0.5, 0.25, 1.0, 2.0))),
    ]
    for one, other in pairs:
        first = parameters(one(prior_of(case), experts_of(case), mask_of(case)))
        second = parameters(other(prior_of(case), experts_of(case, order=order), mask_of(case, order)))
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


@ALL
def test_one_expert_without_prior_is_itself(rule: Rule) -> None:
    case = case_of()
    loc, scale = parameters(rule.make()(prior_of(case), experts_of(case), mask_of(case)))
    rows = {m: n for n, s in enumerate(case.sets) if len(s) == 1 for m in s}
    for m, n in rows.items():
        equal = torch.allclose(loc[n], case.experts[m][0][n], rtol=0, atol=1e-12)
        assert equal == rule.one_is_itself
        assert torch.allclose(scale[n], case.experts[m][1][n], rtol=0, atol=1e-12) == rule.one_is_itself


@ALL
def test_nothing_observed_is_exactly_the_prior(rule: Rule) -> None:
    case = case_of()
    prior = prior_of(case)
    q = rule.make()(prior, experts_of(case), mask_of(case))
    loc, scale = parameters(q)
    torch.testing.assert_close(loc[0], case.model.prior[0], rtol=0, atol=1e-15)
    torch.testing.assert_close(scale[0], case.model.prior[1], rtol=1e-15, atol=0)
    laplace = dist.Laplace(*case.model.prior).to_event(1)
    z = torch.randn(8, 2)
    found = rule.make()(laplace, experts_of(case), mask_of(case)).log_prob(z)[0]
    assert found == laplace.log_prob(z[0])


@ALL
def test_leading_dimensions_of_masks_equal_a_loop(rule: Rule) -> None:
    case, fuse = case_of(), rule.make()
    masks = torch.rand(3, 4, 1, 8, generator=torch.Generator().manual_seed(0)) < 0.6
    masks = masks & mask_of(case)[:, None, None]
    together = parameters(fuse(prior_of(case), experts_of(case), masks))
    assert together[0].shape == (4, 1, 8, 2)
    for j in range(4):
        alone = parameters(fuse(prior_of(case), experts_of(case), masks[:, j, 0]))
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[j, 0], b, **EXACT)


@ALL
def test_missing_experts_never_matter_and_get_no_gradient(rule: Rule) -> None:
    case, found = case_of(), []
    for fill in (0.0, 1e30):
        fuse = rule.make()
        leaves = {m: (q.base_dist.loc.clone(), q.base_dist.scale.clone()) for m, q in _named(experts_of(case, fill))}
        for pair in leaves.values():
            for leaf in pair:
                leaf.requires_grad_()
        experts = Experts(tuple(leaves), tuple(dist.Normal(*pair).to_event(1) for pair in leaves.values()))
        loc, scale = parameters(fuse(prior_of(case), experts, mask_of(case)))
        (loc.sum() + scale.log().sum()).backward()
        gradients = {m: (a.grad, b.grad) for m, (a, b) in leaves.items()}
        for m, pair in gradients.items():
            seen = case.obs_mask[m]
            for g in pair:
                assert g is not None
                assert g.isfinite().all()
                assert (g[~seen] == 0).all()
                assert (g[seen] != 0).any()
        found.append((loc, scale, *(g for pair in gradients.values() for g in pair)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def _named(experts: Experts) -> list[tuple[str, dist.Independent]]:
    return list(zip(experts.names, experts.dists, strict=True))


@ALL
def test_component_of_a_product_is_the_product(rule: Rule) -> None:
    case, fuse = case_of(), rule.make()
    args = prior_of(case), experts_of(case), mask_of(case)
    for a, b in zip(parameters(fuse.component(*args)), parameters(fuse(*args)), strict=True):
        assert torch.equal(a, b)


@ALL
def test_other_families_are_refused(rule: Rule) -> None:
    case = case_of()
    laplace = Experts(("a",), (dist.Laplace(torch.zeros(8, 2), 1.0).to_event(1),))
    with pytest.raises(ValueError, match="Normal experts, got Laplace"):
        rule.make()(prior_of(case), laplace, mask_of(case)[:1])


def test_equal_experts_are_one_under_the_generalized_product() -> None:
    case = case_of()
    same = experts_of(case).dists[0]
    experts = Experts(("a", "b", "c"), (same, same, same))
    everything = torch.ones(3, 8, dtype=torch.bool)
    rule = next(r for r in RULES if r.name == "generalized").make()
    for a, b in zip(parameters(rule(prior_of(case), experts, everything)), parameters(same), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_geometric_mean_without_weight_of_the_prior_and_one_expert_is_that_expert() -> None:
    case = case_of()
    rule = fusion.GeometricMean((1e-12, 1.0, 1.0, 1.0))
    loc, scale = parameters(rule(prior_of(case), experts_of(case), mask_of(case)))
    torch.testing.assert_close(loc[1], case.experts["a"][0][1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scale[1], case.experts["a"][1][1], rtol=1e-9, atol=1e-9)
