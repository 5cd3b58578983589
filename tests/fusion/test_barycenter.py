"""Wasserstein barycenter: it minimizes the weighted distance, weights over what is observed, bad weights.

Test layer; the laws of all rules are in test_laws.py.
"""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_mmvae import fusion
from tests.fusion.rules import case_of, experts_of, mask_of, parameters, prior_of

WEIGHTS = (0.5, 2.0, 1.0)


@pytest.mark.usefixtures("float64")
def test_no_other_gaussian_is_nearer() -> None:
    case = case_of()
    loc, scale = parameters(fusion.WassersteinBarycenter(WEIGHTS)(prior_of(case), experts_of(case), mask_of(case)))
    grid = (torch.arange(100_000) + 0.5) / 100_000  # of probabilities: W2 is the L2 distance of quantile functions
    standard = dist.Normal(0.0, 1.0).icdf(grid)
    for n, names in enumerate(case.sets[1:], start=1):
        mu, sigma = loc[n].clone().requires_grad_(), scale[n].clone().requires_grad_()
        total = torch.zeros(())
        for m in names:
            a, b = (p[n] for p in case.experts[m])
            apart = mu + sigma * standard[:, None] - (a + b * standard[:, None])
            total = total + WEIGHTS["abc".index(m)] * apart.square().mean(0).sum()
        for g in torch.autograd.grad(total, [mu, sigma]):
            assert g.abs().max() < 1e-11  # sums of 1e5 numbers of order one in float64


@pytest.mark.usefixtures("float64")
def test_weights_move_with_their_experts() -> None:
    case, order = case_of(), ("c", "a", "b")
    straight = fusion.WassersteinBarycenter(WEIGHTS)(prior_of(case), experts_of(case), mask_of(case))
    turned = fusion.WassersteinBarycenter((1.0, 0.5, 2.0))(
        prior_of(case), experts_of(case, order=order), mask_of(case, order)
    )
    for a, b in zip(parameters(straight), parameters(turned), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [fusion.WassersteinBarycenter, lambda w: fusion.Hoelder(weights=w)])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (float("inf"), 1.0), ()])
def test_weights_that_are_not_positive_are_refused(rule: type[fusion.Fusion], weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights must be positive and finite"):
        rule(weights)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", [fusion.WassersteinBarycenter((1, 2)), fusion.Hoelder(weights=(1, 2))], ids=["b", "h"])
def test_number_of_weights_is_that_of_the_experts(rule: fusion.Fusion) -> None:
    case = case_of()
    with pytest.raises(ValueError, match=r"3 experts of \['a', 'b', 'c'\] need as many weights, got 2"):
        rule(prior_of(case), experts_of(case), mask_of(case))
