"""Joint: which network answers which subset, the Bayes-consistent product, the order of modalities.

Test layer.
"""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_mmvae import fusion
from pyro_mmvae.fusion import Experts
from pyro_mmvae.nn import JointEncoder
from pyro_mmvae.objectives import known_kl
from tests.fusion.rules import case_of, experts_of, mask_of, parameters, prior_of
from tests.oracles.cases import make_case
from tests.oracles.products import bayes_product, product_of_experts

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # networks and products in float64


def joint_of(subsets: str = "joint") -> fusion.Joint:
    """A joint encoder of three modalities."""
    torch.manual_seed(1)
    return fusion.Joint(JointEncoder({"a": 2, "b": 3, "c": 1}, 2, hidden=(8,), features=(4,)), subsets=subsets)


def fused(rule: fusion.Joint, case: object, order: tuple[str, ...] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Location and scale of q(z | x_S)."""
    experts = experts_of(case, order=order)
    experts.features = rule.encoder.features({m: x.where(~x.isnan(), torch.zeros(())) for m, x in case.data.items()})
    return parameters(rule(prior_of(case), experts, mask_of(case, order)))


@pytest.mark.parametrize("subsets", ["joint", "product", "bayes"])
def test_who_answers(subsets: str) -> None:
    case = make_case(3, 2, stretch=0.8)
    rule = joint_of(subsets)
    loc, scale = fused(rule, case)
    features = rule.encoder.features({m: x.where(~x.isnan(), torch.zeros(())) for m, x in case.data.items()})
    head = rule.encoder.head(features, mask_of(case).t()).base_dist
    product = product_of_experts(case.experts, case.obs_mask, empty=case.model.prior)
    bayes = bayes_product(case.experts, case.obs_mask, case.model.prior)
    for n, names in enumerate(case.sets):
        if len(names) == 3 or (len(names) == 2 and subsets == "joint"):
            expected = head.loc[n], head.scale[n]
        elif subsets == "bayes":
            expected = bayes[0][n], bayes[1][n]
        else:
            expected = product[0][n], product[1][n]
        torch.testing.assert_close(loc[n], expected[0], **EXACT)
        torch.testing.assert_close(scale[n], expected[1], **EXACT)


def test_bayes_of_exact_experts_is_the_exact_posterior() -> None:
    case = make_case(3, 1, shift=0.0, stretch=1.0)
    exact = case.model.experts({m: x.where(~x.isnan(), torch.zeros(())) for m, x in case.data.items()})
    experts = Experts(tuple(exact), tuple(dist.Normal(*q).to_event(1) for q in exact.values()))
    encoder = JointEncoder({"a": 2, "b": 3, "c": 1}, 1, hidden=(), features=(2,))
    experts.features = encoder.features(case.complete)
    loc, scale = parameters(fusion.Joint(encoder, subsets="bayes")(prior_of(case), experts, mask_of(case)))
    mean, cov = case.model.posterior(case.data, case.obs_mask)
    torch.testing.assert_close(loc[:-1], mean[:-1], **EXACT)
    torch.testing.assert_close(scale[:-1], cov[:-1, :, 0].sqrt(), **EXACT)


def test_bayes_without_positive_precision_is_the_plain_product() -> None:
    case = make_case(3, 2, stretch=4.0)  # each expert is vaguer than the prior
    loc, scale = fused(joint_of("bayes"), case)
    plain = product_of_experts(case.experts, case.obs_mask, empty=case.model.prior)
    pairs = [n for n, s in enumerate(case.sets) if len(s) == 2]
    tau = torch.stack([(plain[1][n] ** -2) - case.model.prior[1] ** -2 for n in pairs])
    assert (tau < 0).any()
    for row, n in enumerate(pairs):
        bad = tau[row] <= 0
        torch.testing.assert_close(loc[n][bad], plain[0][n][bad], **EXACT)
        torch.testing.assert_close(scale[n][bad], plain[1][n][bad], **EXACT)
    assert scale.isfinite().all()


@pytest.mark.parametrize("subsets", ["joint", "product", "bayes"])
def test_experts_may_come_in_another_order_than_the_joint_encoder_s(subsets: str) -> None:
    case = case_of()
    straight, turned = fused(joint_of(subsets), case), fused(joint_of(subsets), case, order=("c", "a", "b"))
    for a, b in zip(straight, turned, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_leading_dimensions_of_masks_equal_a_loop() -> None:
    case, rule = case_of(), joint_of()
    experts = experts_of(case)
    experts.features = rule.encoder.features({m: x.where(~x.isnan(), torch.zeros(())) for m, x in case.data.items()})
    masks = (torch.rand(3, 4, 1, 8) < 0.7) & mask_of(case)[:, None, None]
    together = parameters(rule(prior_of(case), experts, masks))
    for j in range(4):
        for a, b in zip(together, parameters(rule(prior_of(case), experts, masks[:, j, 0])), strict=True):
            torch.testing.assert_close(a[j, 0], b, **EXACT)


def test_unknown_subsets_are_refused() -> None:
    with pytest.raises(ValueError, match="'joint', 'product' or 'bayes', got 'mean'"):
        fusion.Joint(torch.nn.Identity(), subsets="mean")


@pytest.mark.parametrize("subsets", ["joint", "product", "bayes"])
def test_divergences_between_two_answers_have_a_closed_form(subsets: str) -> None:
    case = make_case(3, 2)
    rule = joint_of(subsets)
    experts = experts_of(case)
    experts.features = rule.encoder.features({m: x.where(~x.isnan(), torch.zeros(())) for m, x in case.data.items()})
    mask = mask_of(case)
    alone = mask & torch.tensor([True, False, False]).unsqueeze(-1)
    q, r = (rule(prior_of(case), experts, shown) for shown in (mask, alone))
    found = known_kl(q, r)
    assert found is not None
    (loc, scale), (other, width) = parameters(q), parameters(r)
    expected = ((width / scale).log() + (scale**2 + (loc - other) ** 2) / (2 * width**2) - 0.5).sum(-1)
    torch.testing.assert_close(found, expected, **EXACT)
