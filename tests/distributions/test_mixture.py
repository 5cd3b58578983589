"""Mixtures of stacked components against torch's, their draws, and gradients against quadrature."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mmvae.distributions import Mixture, map_params
from tests.oracles.statistics import mean_and_se, within

pytestmark = pytest.mark.usefixtures("float64")

E, B, D = 3, 4, 2


def parameters() -> tuple[Tensor, Tensor, Tensor]:
    return 2 * torch.randn(E, B, D), 0.3 + torch.rand(E, B, D), torch.randn(E, B).log_softmax(0)


def reference(loc: Tensor, scale: Tensor, log_weights: Tensor) -> Any:
    components = dist.Normal(loc.movedim(0, 1), scale.movedim(0, 1)).to_event(1)
    return torch.distributions.MixtureSameFamily(dist.Categorical(logits=log_weights.movedim(0, 1)), components)


def test_density_and_moments() -> None:
    loc, scale, log_weights = parameters()
    ours, theirs = Mixture(dist.Normal(loc, scale).to_event(1), log_weights), reference(loc, scale, log_weights)
    assert ours.batch_shape == (B,) and ours.event_shape == (D,) and ours.has_rsample
    for z in (torch.randn(B, D), torch.randn(5, B, D), torch.randn(D)):
        torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z.expand(*z.shape[:-2], B, D)))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


def test_draws() -> None:
    loc, scale, log_weights = parameters()
    q = Mixture(dist.Normal(loc, scale).to_event(1), log_weights)
    draws = q.sample((20_000,))
    assert draws.shape == (20_000, B, D) and not draws.requires_grad
    within(*mean_and_se(draws), q.mean)
    within(*mean_and_se((draws - q.mean) ** 2), q.variance)
    within(*mean_and_se(q.log_prob(draws)), mean_and_se(reference(loc, scale, log_weights).log_prob(draws))[0])
    product = ((draws - q.mean)[..., 0] * (draws - q.mean)[..., 1])  # dimensions share the component
    second = (log_weights.exp() * (loc[..., 0] * loc[..., 1])).sum(0) - q.mean[:, 0] * q.mean[:, 1]
    within(*mean_and_se(product), second)


def test_rows_draw_components_of_their_own() -> None:
    """Another row's parameters must never leak in, with sample shapes or without."""
    loc = torch.arange(E * B, dtype=torch.float64).reshape(E, B, 1) * 100
    q = Mixture(dist.Normal(loc, 0.1).to_event(1), torch.zeros(E, B).log_softmax(0))
    for draws in (q.rsample((50,)), q.expand((50, B)).rsample(), q.sample((5, 10)).reshape(50, B, 1)):
        nearest = (draws / 100).round().squeeze(-1).long()
        assert (nearest % B == torch.arange(B)).all()
        assert all(len((nearest[:, b] // B).unique()) == E for b in range(B))
        assert len({tuple(row) for row in (nearest // B).tolist()}) > 10


def test_absent_components() -> None:
    loc, scale, _ = parameters()
    log_weights = torch.tensor([[0.5] * B, [0.5] * B, [0.0] * B]).log()
    q = Mixture(dist.Normal(loc, scale).to_event(1), log_weights)
    two = Mixture(dist.Normal(loc[:2], scale[:2]).to_event(1), log_weights[:2])
    z = torch.randn(B, D)
    torch.testing.assert_close(q.log_prob(z), two.log_prob(z))
    torch.testing.assert_close(q.mean, two.mean)
    loc = loc.clone().requires_grad_()
    value = Mixture(dist.Normal(loc, scale).to_event(1), log_weights).log_prob(z).sum()
    (slope,) = torch.autograd.grad(value, loc)
    assert slope.isfinite().all() and (slope[2] == 0).all()


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_expansion(shape: tuple[int, ...]) -> None:
    loc, scale, log_weights = parameters()
    q = Mixture(dist.Normal(loc, scale).to_event(1), log_weights)
    wide = q.expand(shape)
    z = torch.randn(*shape, D)
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
    assert wide.batch_shape == shape and wide.rsample().shape == (*shape, D) and wide.mean.shape == (*shape, D)
    one = Mixture(dist.Normal(loc[:, :1], scale[:, :1]).to_event(1), log_weights[:, :1])
    torch.testing.assert_close(one.expand((B,)).log_prob(z), one.log_prob(z))


def test_weights_of_fewer_dimensions() -> None:
    loc, scale, _ = parameters()
    weights = torch.tensor([0.2, 0.3, 0.5]).log()
    q = Mixture(dist.Normal(loc, scale).to_event(1), weights.unsqueeze(-1))
    full = Mixture(dist.Normal(loc, scale).to_event(1), weights.unsqueeze(-1).expand(E, B))
    torch.testing.assert_close(q.log_prob(torch.zeros(D)), full.log_prob(torch.zeros(D)))


def test_gradients_of_draws_equal_the_analytic_ones() -> None:
    """E f(z) = sum_e pi_e E f(loc_e + scale_e eps): f = cos gives exp(-scale^2 / 2) cos(loc)."""
    loc = torch.tensor([[0.3], [1.9], [-1.0]]).unsqueeze(-1)
    scale = torch.tensor([[0.4], [0.8], [0.6]]).unsqueeze(-1)
    weights = torch.tensor([0.2, 0.3, 0.5])
    count = 200_000
    locs, scales = (p.expand(E, count, 1).clone().requires_grad_() for p in (loc, scale))
    draws = Mixture(dist.Normal(locs, scales).to_event(1), weights.log().unsqueeze(-1).expand(E, count)).rsample()
    by_loc, by_scale = torch.autograd.grad(draws.cos().sum(), [locs, scales])
    damped = (-0.5 * scale**2).exp()
    for found, exact in ((by_loc, -damped * loc.sin()), (by_scale, -scale * damped * loc.cos())):
        within(*mean_and_se(found.squeeze(-1).T), weights * exact.squeeze(), resolution=0.05)


def test_high_dimensions_keep_finite_gradients_in_single_precision() -> None:
    loc = torch.randn(E, B, 200, dtype=torch.float32).requires_grad_()
    scale = torch.full((E, B, 200), 0.01, dtype=torch.float32, requires_grad=True)
    logits = torch.zeros(E, B, dtype=torch.float32, requires_grad=True)
    q = Mixture(dist.Normal(loc, scale).to_event(1), logits.log_softmax(0))
    gradients = torch.autograd.grad(q.log_prob(q.rsample()).sum(), [loc, scale, logits])
    assert all(g.isfinite().all() for g in gradients)


def test_other_families_and_events() -> None:
    rate = torch.rand(E, B) + 0.5
    q = Mixture(dist.Poisson(rate), torch.zeros(E, B).log_softmax(0))
    assert not q.has_rsample and q.sample((3,)).shape == (3, B)
    expected = dist.Poisson(rate).log_prob(torch.ones(B)).exp().mean(0).log()
    torch.testing.assert_close(q.log_prob(torch.ones(B)), expected)
    images = Mixture(dist.Normal(torch.zeros(E, B, 2, 3), 1.0).to_event(2), torch.zeros(E, B).log_softmax(0))
    assert images.rsample((7,)).shape == (7, B, 2, 3) and images.log_prob(torch.zeros(B, 2, 3)).shape == (B,)
    assert images.mean.shape == (B, 2, 3)


def test_parameters() -> None:
    loc, scale, log_weights = parameters()
    q = Mixture(dist.Normal(loc, scale).to_event(1), log_weights)
    picked = map_params(q, lambda p, constraint, k: p[:, torch.tensor([2, 0])])
    z = torch.randn(2, D)
    expected = Mixture(dist.Normal(loc[:, [2, 0]], scale[:, [2, 0]]).to_event(1), log_weights[:, [2, 0]]).log_prob(z)
    torch.testing.assert_close(picked.log_prob(z), expected)
