"""Mean of parameters: by hand, equal experts, content of hidden entries in single precision.

Test layer; the laws of all rules are in test_laws.py.
"""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_mmvae import fusion
from pyro_mmvae.distributions import unwrap
from pyro_mmvae.fusion import Experts
from tests.fusion.rules import case_of, parameters

PRIOR = dist.Normal(torch.zeros(1), 1.0).to_event(1)
AVERAGES = [
    fusion.MeanOfParameters(),
    fusion.WassersteinBarycenter(),
    fusion.WassersteinBarycenter((0.3, 2.0, 1.0)),
    fusion.ConsensusOfDependentExperts(0.6),
    fusion.ConsensusOfDependentExperts(0.6, nonnegative="weights"),
    fusion.Hoelder("moment", "dim"),
    fusion.Hoelder("moment", "joint", (0.3, 2.0, 1.0)),
    fusion.Hoelder("mixture", "dim", (0.3, 2.0, 1.0)),
    fusion.Hoelder("mixture", "joint"),
]
NAMES = [f"{type(rule).__name__}-{i}" for i, rule in enumerate(AVERAGES)]
EVERY = pytest.mark.parametrize("rule", AVERAGES, ids=NAMES)


def three(*pairs: tuple[float, float]) -> Experts:
    """Experts of one sample and one dimension."""
    dists = (dist.Normal(torch.full((1, 1), a), torch.full((1, 1), b)).to_event(1) for a, b in pairs)
    return Experts(("a", "b", "c")[: len(pairs)], tuple(dists))


def test_locations_have_the_arithmetic_and_scales_the_geometric_mean() -> None:
    q = fusion.MeanOfParameters()(PRIOR, three((0.0, 1.0), (3.0, 8.0), (6.0, 27.0)), torch.ones(3, 1).bool())
    assert float(q.mean) == pytest.approx(3.0)
    assert float(q.stddev) == pytest.approx(6.0)  # the cube root of 216
    prior = dist.Normal(torch.full((1,), 7.0), 256.0).to_event(1)
    rule = fusion.MeanOfParameters(prior_expert=True)
    q = rule(prior, three((0.0, 1.0), (3.0, 8.0), (6.0, 27.0)), torch.tensor([[True], [False], [False]]))
    assert float(q.mean) == pytest.approx(3.5)
    assert float(q.stddev) == pytest.approx(16.0)


@EVERY
def test_leading_row_of_a_single_expert_equals_its_mask(rule: fusion.Fusion) -> None:
    experts = three((0.2, 1.0), (3.0, 0.4), (-1.0, 2.0))
    assert rule.takes_single_rows
    found = parameters(rule(PRIOR, experts.only([1]), torch.ones(1, 1).bool()))
    expected = parameters(rule(PRIOR, experts, torch.tensor([[False], [True], [False]])))
    rows = parameters(rule(PRIOR, experts.only([2, 1]), torch.tensor([[[True], [True]]])))
    for i in range(2):
        torch.testing.assert_close(found[i], expected[i])
        torch.testing.assert_close(rows[i][1], expected[i])


@EVERY
@pytest.mark.parametrize("content", [torch.nan, torch.inf, 1e30])
def test_single_precision_is_kept_and_hidden_content_never_matters(rule: fusion.Fusion, content: float) -> None:
    mask = torch.tensor([[True], [False], [True]])
    found = []
    for loc, scale in ((0.0, 1.0), (content, abs(content))):
        experts = three((0.2, 1.0), (5.0, 1.0), (-1.0, 2.0))
        experts.__dict__["loc"] = torch.tensor([0.2, loc, -1.0]).reshape(3, 1, 1).requires_grad_()
        experts.__dict__["scale"] = torch.tensor([1.0, scale, 2.0]).reshape(3, 1, 1).requires_grad_()
        q = rule(PRIOR, experts, mask)
        torch.manual_seed(0)
        z = q.rsample()
        assert z.dtype == torch.float32
        value = q.log_prob(z).sum() + q.mean.sum()
        found.append((z, value, *torch.autograd.grad(value, [experts.loc, experts.scale])))
        assert all(t.isfinite().all() for t in found[-1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.usefixtures("float64")
@EVERY
def test_equal_experts_are_one(rule: fusion.Fusion) -> None:
    case = case_of()
    loc, scale = (p[-1].expand(8, 2) for p in case.experts["b"])
    same = dist.Normal(loc, scale).to_event(1)
    experts = Experts(("a", "b", "c"), (same, same, same))
    prior = dist.Normal(*case.model.prior).to_event(1)
    found = parameters(rule(prior, experts, torch.ones(3, 8, dtype=torch.bool)))
    correlated = isinstance(rule, fusion.ConsensusOfDependentExperts)
    factor = (0.6 + 0.4 / 3) ** 0.5 if correlated else 1.0  # the mean of three correlated errors is a little better
    torch.testing.assert_close(found[0], loc, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], factor * scale, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("float64")
@EVERY
def test_type_and_device_are_those_of_the_experts(rule: fusion.Fusion) -> None:
    experts = three((0.2, 1.0), (3.0, 0.4), (-1.0, 2.0))
    for name in ("loc", "scale"):
        experts.__dict__[name] = getattr(experts, name).float()
    prior = dist.Normal(torch.zeros(1, dtype=torch.float32), torch.ones(1, dtype=torch.float32)).to_event(1)
    mask = torch.tensor([[True], [False], [True]])
    with torch.device("meta"):  # a default device that is not the experts'
        q = rule(prior, experts, mask)
        assert q.rsample().device.type == "cpu"
    assert q.rsample().dtype == q.mean.dtype == q.log_prob(q.rsample()).dtype == torch.float32


@EVERY
def test_options_are_plain_and_make_the_rule_again(rule: fusion.Fusion) -> None:
    again = type(rule)(**rule.options())
    assert again.options() == rule.options()
    assert repr(again) == repr(rule)


@EVERY
def test_gaussian_rules_give_a_normal_for_a_gaussian_prior(rule: fusion.Fusion) -> None:
    q = rule(PRIOR, three((0.2, 1.0), (3.0, 0.4), (-1.0, 2.0)), torch.tensor([[True], [False], [True]]))
    assert isinstance(unwrap(q), dist.Normal) == (getattr(rule, "form", None) != "mixture")
