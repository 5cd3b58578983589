"""Consensus of dependent experts: explicit inverses, limits, weights that are never negative.

Test layer; the laws of all rules are in test_laws.py.
"""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mmvae import fusion
from pyro_mmvae.fusion import ConsensusOfDependentExperts, Experts
from tests.fusion.rules import dependent, parameters

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # an inverse of at most 5 x 5 in float64


def fused(rule: fusion.Fusion, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """All experts observed; loc and scale of shape (k, B, D)."""
    names = tuple("abcde"[: len(loc)])
    experts = Experts(names, tuple(dist.Normal(a, b).to_event(1) for a, b in zip(loc, scale, strict=True)))
    prior = dist.Normal(loc.new_zeros(loc.shape[-1]), loc.new_ones(())).to_event(1)
    return parameters(rule(prior, experts, torch.ones(loc.shape[:2], dtype=torch.bool)))


@pytest.mark.parametrize("nonnegative", ["rho", "weights"])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.02, 1.0], ids=["inside", "clipped"])
def test_equals_the_explicit_inverse(count: int, nonnegative: str, spread: float) -> None:
    loc, scale = torch.randn(count, 4, 3), (spread * torch.randn(count, 4, 3)).exp()
    found = fused(ConsensusOfDependentExperts(0.7, nonnegative=nonnegative), loc, scale)
    signs = []
    for n in range(4):
        for d in range(3):
            args = loc[:, n, d], scale[:, n, d], 0.7
            plain, clipped = dependent(*args, None), dependent(*args, nonnegative)
            signs.append(torch.allclose(torch.stack(plain), torch.stack(clipped), rtol=1e-12, atol=1e-12))
            torch.testing.assert_close(torch.stack([f[n, d] for f in found]), torch.stack(clipped), **EXACT)
    assert all(signs) if spread == 0.02 else not all(signs)  # the case is what its name says


@pytest.mark.parametrize("nonnegative", ["rho", "weights"])
def test_no_correlation_is_the_product_without_prior(nonnegative: str) -> None:
    loc, scale = torch.randn(3, 4, 2), torch.randn(3, 4, 2).exp()
    found = fused(ConsensusOfDependentExperts(0.0, nonnegative=nonnegative), loc, scale)
    for a, b in zip(found, fused(fusion.Product(prior_expert="never"), loc, scale), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_correlation_of_equal_scales_is_the_average(dtype: torch.dtype) -> None:
    loc = torch.randn(3, 4, 2, dtype=dtype)
    rho = 1 - 1e-6 if dtype is torch.float32 else 1 - 1e-12
    found, scale = fused(ConsensusOfDependentExperts(rho), loc, torch.full_like(loc, 0.3))
    tight = {"rtol": 1e-6 if dtype is torch.float32 else 1e-11, "atol": 1e-6 if dtype is torch.float32 else 1e-11}
    torch.testing.assert_close(found, loc.mean(0), **tight)
    torch.testing.assert_close(scale, torch.full_like(scale, 0.3), **tight)


@pytest.mark.parametrize("nonnegative", ["rho", "weights"])
def test_stays_inside_where_plain_consensus_leaves_the_range(nonnegative: str) -> None:
    loc, scale = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([2.0, 1.0, 0.5])
    assert dependent(loc, scale, 0.9, None)[0] > 2  # outside
    rule = ConsensusOfDependentExperts(0.9, nonnegative=nonnegative)
    mean, _ = fused(rule, loc.reshape(3, 1, 1), scale.reshape(3, 1, 1))
    assert -1 <= float(mean) <= 2


@pytest.mark.parametrize("nonnegative", ["rho", "weights"])
@pytest.mark.parametrize("rho", [0.0, 0.4, 0.95])
def test_weights_are_non_negative_and_sum_to_one(rho: float, nonnegative: str) -> None:
    scale, mask = (2 * torch.randn(5, 6, 40, 3)).exp(), torch.rand(5, 6, 40) < 0.6
    weights, used = ConsensusOfDependentExperts(rho, nonnegative=nonnegative).weights(scale, mask)
    some = mask.any(0)
    assert not some.all()
    assert (weights >= 0).all()
    assert (weights[~mask] == 0).all()
    torch.testing.assert_close(weights.sum(0)[some], torch.ones(int(some.sum()), 3), **EXACT)
    assert (torch.as_tensor(used) <= rho).all() and (torch.as_tensor(used) >= 0).all()
    spread = weights * scale
    variance = (1 - used) * spread.square().sum(0) + used * spread.sum(0).square()
    widest = torch.where(mask.unsqueeze(-1), scale, 0.0).amax(0).square()
    assert (variance[some] <= widest[some] * (1 + 1e-12)).all()


@pytest.mark.parametrize("nonnegative", ["rho", "weights"])
def test_gradients_are_finite_where_weights_are_clipped(nonnegative: str) -> None:
    loc = torch.randn(3, 50, 2, requires_grad=True)
    raw = (2 * torch.randn(3, 50, 2)).requires_grad_()
    found = fused(ConsensusOfDependentExperts(0.9, nonnegative=nonnegative), loc, raw.exp())
    for g in torch.autograd.grad(found[0].sum() + found[1].log().sum(), [loc, raw]):
        assert g.isfinite().all()
    inputs = loc[:, :3].detach().requires_grad_(), raw[:, :3].detach().requires_grad_()
    rule = ConsensusOfDependentExperts(0.9, nonnegative=nonnegative)
    assert torch.autograd.gradcheck(lambda a, b: fused(rule, a, b.exp()), inputs)


@pytest.mark.parametrize("rho", [-0.1, 1.0, 1.5, float("nan")])
def test_other_correlations_are_refused(rho: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        ConsensusOfDependentExperts(rho)


def test_other_ways_are_refused() -> None:
    with pytest.raises(ValueError, match="'rho' or 'weights', got 'clip'"):
        ConsensusOfDependentExperts(nonnegative="clip")  # type: ignore[arg-type]
