"""Naive fusion against densities on a grid, exact posteriors and the limits of each rule."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from .cases import likelihood_experts, make_case
from .linear_gaussian import LinearGaussian
from .products import (
    bayes_product,
    generalized_product,
    geometric_mean,
    log_normalizer,
    mixture_components,
    mopoe_components,
    nonempty_subsets,
    pool,
    product_of_experts,
    row_product,
)

EXACT = {"rtol": 0.0, "atol": 1e-10}  # closed forms in float64
FACTORS = [(-0.4, 0.2, 2.0), (0.7, -1.0, 0.5), (1.3, 0.8, 0.9)]  # weight, loc, scale of three experts


def test_pool_and_its_normalizer_equal_grid_integration() -> None:
    factors = [(w, torch.tensor([m]), torch.tensor([s])) for w, m, s in FACTORS]
    loc, scale = pool(factors)
    z = torch.linspace(-15, 15, 60001, dtype=torch.float64)
    log_density = sum(w * Normal(m.double(), s.double()).log_prob(z) for w, m, s in factors)
    step = z[1] - z[0]
    torch.testing.assert_close(log_normalizer(factors), torch.logsumexp(log_density, 0) + step.log(), **EXACT)
    weight = torch.softmax(log_density, 0)
    torch.testing.assert_close(loc, (weight @ z).reshape(1), **EXACT)
    torch.testing.assert_close(scale**2, (weight @ (z - loc) ** 2).reshape(1), **EXACT)


def test_pool_refuses_an_improper_product() -> None:
    with pytest.raises(ValueError, match="positive total precision"):
        pool([(1.0, torch.zeros(2), torch.tensor([1.0, 3.0])), (-1.0, torch.zeros(2), torch.tensor([2.0, 2.0]))])
    with pytest.raises(ValueError, match="positive total precision"):
        pool([])


def test_product_with_prior_of_likelihoods_is_the_exact_posterior_for_every_set() -> None:
    case = make_case(3)
    loc, scale = product_of_experts(likelihood_experts(case.model, case.data), case.obs_mask, case.model.prior)
    expected, cov = case.model.posterior(case.data, case.obs_mask)
    torch.testing.assert_close(loc, expected, **EXACT)
    torch.testing.assert_close(scale, cov[..., 0].sqrt(), **EXACT)


def test_bayes_product_of_posteriors_is_the_exact_posterior_for_every_set() -> None:
    case = make_case(3)
    loc, scale = bayes_product(case.model.experts(case.data), case.obs_mask, case.model.prior)
    expected, cov = case.model.posterior(case.data, case.obs_mask)
    torch.testing.assert_close(loc, expected, **EXACT)
    torch.testing.assert_close(scale, cov[..., 0].sqrt(), **EXACT)


def test_plain_product_counts_the_prior_once_per_expert() -> None:
    # weights whose squares add up to 8.071, unit noise, prior N(0, 1): true precision 9.071
    weights = {"a": 2.0, "b": 3.0**0.5, "c": 1.071**0.5}
    model = LinearGaussian(
        {m: torch.tensor([[w]], dtype=torch.float64) for m, w in weights.items()},
        {m: torch.zeros(1) for m in weights},
        dict.fromkeys(weights, 1.0),
        torch.zeros(1),
        torch.ones(1),
    )
    _, data = model.sample(1, torch.Generator().manual_seed(0))
    mask = {m: torch.ones(1, dtype=torch.bool) for m in weights}
    experts = model.experts(data)
    exact = model.posterior(data, mask)[1][0, 0, 0] ** -1
    right, plain = (
        q[1].squeeze() ** -2 for q in (bayes_product(experts, mask, model.prior), product_of_experts(experts, mask))
    )
    torch.testing.assert_close(exact, torch.tensor(9.071, dtype=torch.float64))
    torch.testing.assert_close(right, torch.tensor(9.071, dtype=torch.float64))
    torch.testing.assert_close(plain, torch.tensor(11.071, dtype=torch.float64))


def test_empty_products() -> None:
    case = make_case(2, 2)
    prior = case.model.prior
    with pytest.raises(ValueError, match="positive total precision"):
        product_of_experts(case.experts, case.obs_mask)
    for q in (
        product_of_experts(case.experts, case.obs_mask, prior),
        product_of_experts(case.experts, case.obs_mask, empty=prior),
        geometric_mean(case.experts, case.obs_mask, prior),
        bayes_product(case.experts, case.obs_mask, prior),
    ):
        torch.testing.assert_close(q[0][0], prior[0], **EXACT)
        torch.testing.assert_close(q[1][0], prior[1], **EXACT)


def test_limits_of_the_generalized_product() -> None:
    case = make_case(3, 2)
    mask = {m: a[1:] for m, a in case.obs_mask.items()}
    experts = {m: (loc[1:], scale[1:]) for m, (loc, scale) in case.experts.items()}
    weights = {m: torch.tensor([0.2 + i, 1.7 - 0.5 * i], dtype=torch.float64) for i, m in enumerate(mask)}
    pooled = generalized_product(experts, mask, weights)
    for row, names in enumerate(case.sets[1:]):
        if len(names) == 1:  # one expert is itself, whatever its weight
            torch.testing.assert_close(pooled[0][row], experts[names[0]][0][row], **EXACT)
            torch.testing.assert_close(pooled[1][row], experts[names[0]][1][row], **EXACT)
    total = sum(weights.values())
    by_hand = [(weights[m] / total, experts[m][0][-1], experts[m][1][-1]) for m in mask]
    torch.testing.assert_close(pooled[0][-1], pool(by_hand)[0], **EXACT)
    same = dict.fromkeys(mask, (case.model.prior[0].expand(7, 2), case.model.prior[1].expand(7, 2)))
    torch.testing.assert_close(
        generalized_product(same, mask, weights)[1], same["a"][1], **EXACT
    )  # copies do not sharpen


def test_geometric_mean_weights_add_up_to_one() -> None:
    case = make_case(3, 2)
    prior = case.model.prior
    same = dict.fromkeys(case.obs_mask, (prior[0].expand(8, 2), prior[1].expand(8, 2)))
    for weight in (None, 0.3):
        torch.testing.assert_close(geometric_mean(same, case.obs_mask, prior, weight)[1], same["a"][1], **EXACT)
    q = geometric_mean(case.experts, case.obs_mask, prior)
    by_hand = row_product(case.experts, case.sets[-1], 7, prior, 0.25, dict.fromkeys(case.sets[-1], 0.25))
    torch.testing.assert_close(q[0][-1], by_hand[0], **EXACT)


def test_mixtures_hold_what_is_observed() -> None:
    case = make_case(3, 2)
    for row, names in enumerate(case.sets):
        parts = mixture_components(case.experts, case.obs_mask, row)
        assert [w for w, _, _ in parts] == [1 / len(names)] * len(names) if names else parts == []
        for (_, loc, scale), name in zip(parts, names, strict=True):
            assert torch.equal(loc, case.experts[name][0][row])
            assert torch.equal(scale, case.experts[name][1][row])


@pytest.mark.parametrize("prior_expert", ["full_only", "never", "always"])
def test_mixture_of_products_has_the_prior_where_it_says(prior_expert: str) -> None:
    case = make_case(3, 2)
    for row, names in enumerate(case.sets):
        parts = mopoe_components(case.experts, case.obs_mask, row, case.model.prior, prior_expert=prior_expert)
        subsets = nonempty_subsets(names)
        assert len(parts) == 2 ** len(names) - 1
        assert abs(sum(w for w, _, _ in parts) - (1 if names else 0)) < 1e-12
        for (_, _, scale), subset in zip(parts, subsets, strict=True):
            precision = sum(case.experts[m][1][row] ** -2 for m in subset)
            if prior_expert == "always" or (prior_expert == "full_only" and len(subset) == 3):
                precision = precision + case.model.prior[1] ** -2
            torch.testing.assert_close(scale**-2, precision, **EXACT)


def test_mixture_of_given_products() -> None:
    case = make_case(3)
    parts = mopoe_components(case.experts, case.obs_mask, 7, case.model.prior, subsets=[("a",), ("b", "c")])
    assert [w for w, _, _ in parts] == [0.5, 0.5]
    assert mopoe_components(case.experts, case.obs_mask, 2, case.model.prior, subsets=[("a",)]) == []
    with pytest.raises(ValueError, match="prior_expert"):
        mopoe_components(case.experts, case.obs_mask, 7, case.model.prior, prior_expert="sometimes")  # type: ignore[arg-type]
