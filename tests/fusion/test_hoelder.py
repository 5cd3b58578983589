"""Hoelder pooling: densities by numerical normalization, limits, weights, gradients of draws.

Test layer; the laws of all rules, with moments over a grid, are in test_laws.py.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mmvae import fusion
from pyro_mmvae.distributions import Mixture, unwrap
from pyro_mmvae.fusion import Experts, Hoelder
from tests.fusion.rules import case_of, experts_of, mask_of, parameters, prior_of

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {"rtol": 1e-11, "atol": 1e-11}  # log-densities down to -100, from sums over a grid in float64
WEIGHTS = (0.5, 2.0, 1.0)


def log_pooled(z: Tensor, experts: list[tuple[Tensor, Tensor]], weights: list[float]) -> Tensor:  # z: (N, D)
    """log (sum_i w_i sqrt q_i(z))^2 of vectors, normalized by a sum over a grid, exact for such smooth densities."""

    def unnormalized(z: Tensor) -> Tensor:
        halves = [math.log(w) + 0.5 * dist.Normal(*q).log_prob(z).sum(-1)
                  for w, q in zip(weights, experts, strict=True)]  # fmt: skip
        return 2 * torch.stack(halves).logsumexp(0)

    loc, scale = (torch.stack([q[i] for q in experts]) for i in (0, 1))
    step = scale.amin(0) / 3
    low, high = (loc - 12 * scale).amin(0), (loc + 12 * scale).amax(0)
    axes = [torch.arange(*limits) for limits in torch.stack([low, high, step], -1).tolist()]
    grid = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    return unnormalized(z) - unnormalized(grid).logsumexp(0) - step.log().sum()


@pytest.mark.parametrize("bc", ["dim", "joint"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_density_is_the_normalized_square(bc: str, weights: tuple[float, ...] | None) -> None:
    case = case_of()
    q = Hoelder("mixture", bc, weights)(prior_of(case), experts_of(case, fill=1e30), mask_of(case))
    z = torch.randn(5, 8, 2)
    found = q.log_prob(z)
    assert torch.equal(found[:, 0], prior_of(case).log_prob(z[:, 0]))
    for n, names in enumerate(case.sets[1:], start=1):
        own = [(case.experts[m][0][n], case.experts[m][1][n]) for m in names]
        shares = [1.0 if weights is None else weights["abc".index(m)] for m in names]
        if bc == "joint":
            expected = log_pooled(z[:, n], own, shares)
        else:
            expected = sum(
                log_pooled(z[:, n, d : d + 1], [(a[d : d + 1], b[d : d + 1]) for a, b in own], shares) for d in (0, 1)
            )
        torch.testing.assert_close(found[:, n], expected, **EXACT)


def test_components_are_the_experts_and_their_pairs() -> None:
    case = case_of()
    q = Hoelder("mixture", "joint")(prior_of(case), experts_of(case), mask_of(case))
    assert isinstance(q.first, Mixture)
    assert q.first.components.batch_shape == (6, 8)
    present = (q.first.log_weights > -torch.inf).sum(0)
    assert present.tolist() == [6 if not s else len(s) * (len(s) + 1) // 2 for s in case.sets]
    by_dim = Hoelder("mixture", "dim")(prior_of(case), experts_of(case), mask_of(case))
    assert unwrap(by_dim.first).components.batch_shape == (6, 8, 2)
    assert by_dim.event_shape == (2,)


@pytest.mark.parametrize("form", ["moment", "mixture"])
@pytest.mark.parametrize("bc", ["dim", "joint"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_experts_far_apart_are_a_mixture_with_squared_weights(
    form: str, bc: str, weights: tuple[float, ...] | None
) -> None:
    places = (-80.0, 0.0, 120.0)
    experts = Experts(tuple("abc"), tuple(dist.Normal(torch.full((1, 2), x), 1.0).to_event(1) for x in places))
    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    q = Hoelder(form, bc, weights)(prior, experts, torch.ones(3, 1, dtype=torch.bool))
    squares = torch.tensor(weights if weights is not None else (1.0, 1.0, 1.0)).square()
    share, at = squares / squares.sum(), torch.tensor(places)
    mean = share @ at
    expected = mean.expand(1, 2), (1 + share @ (at - mean).square()).sqrt().expand(1, 2)
    for a, b in zip(parameters(q), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    if form == "mixture":
        found = q.log_prob(at.reshape(3, 1, 1).expand(3, 1, 2)).squeeze(1)
        height = share.log() - 0.5 * math.log(2 * math.pi)
        both = height - 0.5 * math.log(2 * math.pi) if bc == "joint" else 2 * height
        torch.testing.assert_close(found, both, **EXACT)


def test_moment_form_has_the_moments_of_the_mixture() -> None:
    case = case_of()
    args = prior_of(case), experts_of(case), mask_of(case)
    for bc in ("dim", "joint"):
        for weights in (None, WEIGHTS):
            pair = [parameters(Hoelder(form, bc, weights)(*args)) for form in ("moment", "mixture")]
            for a, b in zip(*pair, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_weights_move_with_their_experts() -> None:
    case, order = case_of(), ("c", "a", "b")
    straight = Hoelder(weights=WEIGHTS)(prior_of(case), experts_of(case), mask_of(case))
    turned = Hoelder(weights=(1.0, 0.5, 2.0))(prior_of(case), experts_of(case, order=order), mask_of(case, order))
    for a, b in zip(parameters(straight), parameters(turned), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bc", ["dim", "joint"])
def test_draws_are_from_the_mixture_and_carry_its_gradient(bc: str) -> None:
    loc = torch.tensor([[-0.6, 0.3], [0.8, -0.5]], requires_grad=True)
    scale = torch.tensor([[0.7, 1.0], [1.1, 0.8]], requires_grad=True)
    experts = Experts(("a", "b"), tuple(dist.Normal(a[None], b[None]).to_event(1) for a, b in zip(loc, scale)))  # noqa: B905
    q = Hoelder("mixture", bc)(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), experts, torch.ones(2, 1, dtype=torch.bool)
    )
    count = 20_000
    z = q.rsample((count,)).squeeze(1)
    scores = z + z.square()  # per draw and dimension; the mean is known from the moments
    found = torch.autograd.grad(scores.mean(0).sum(), [loc, scale], retain_graph=True)
    exact = torch.autograd.grad((q.mean + q.variance + q.mean.square()).sum(), [loc, scale], retain_graph=True)
    halves = [torch.autograd.grad(part.mean(0).sum(), [loc, scale], retain_graph=True) for part in scores.split(1000)]
    for i in range(2):
        error = torch.stack([h[i] for h in halves]).std(0) / len(halves) ** 0.5
        assert ((found[i] - exact[i]).abs() < 4.5 * error).all()  # standard errors, from 20 blocks of draws
        assert (error < 0.1).all()
    spread = (z.detach().var(0) / count).sqrt()
    assert ((z.detach().mean(0) - q.mean.squeeze(0)).abs() < 4 * spread).all()


def test_leading_dimensions_of_the_mixture_density_equal_a_loop() -> None:
    case = case_of()
    masks = (torch.rand(3, 4, 1, 8) < 0.6) & mask_of(case)[:, None, None]
    z = torch.randn(5, 4, 1, 8, 2)
    for bc in ("dim", "joint"):
        rule = Hoelder("mixture", bc, WEIGHTS)
        q = rule(prior_of(case), experts_of(case), masks)
        assert q.rsample((5,)).shape == z.shape
        together = q.log_prob(z)
        for j in range(4):
            alone = rule(prior_of(case), experts_of(case), masks[:, j, 0]).log_prob(z[:, j, 0])
            torch.testing.assert_close(together[:, j, 0], alone, rtol=1e-12, atol=1e-12)


def test_other_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="'moment' or 'mixture', got 'mean'"):
        Hoelder("mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'dim' or 'joint', got 'all'"):
        Hoelder(bc="all")  # type: ignore[arg-type]
    case = case_of()
    laplace = Experts(("a",), (dist.Laplace(torch.zeros(8, 2), 1.0).to_event(1),))
    with pytest.raises(ValueError, match="Hoelder needs Normal experts, got Laplace"):
        fusion.Hoelder("mixture")(prior_of(case), laplace, mask_of(case)[:1])
