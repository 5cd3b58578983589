"""Row-wise choice between two distributions: densities, draws, moments and divergences of the branches."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mmvae.distributions import Mixture, Where, map_params
from tests.oracles.statistics import mean_and_se, within

pytestmark = pytest.mark.usefixtures("float64")

ROWS = torch.tensor([True, False, True, False])


def normal(loc: float, scale: float) -> dist.TorchDistribution:
    return dist.Normal(torch.full((4, 2), loc), scale).to_event(1)


def pair() -> tuple[Where, dist.TorchDistribution, dist.TorchDistribution]:
    first, second = normal(3.0, 0.5), dist.Laplace(torch.zeros(2), 2.0).to_event(1)
    return Where(ROWS, first, second), first, second.expand((4,))


def chosen(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first[n] if ROWS[n] else second[n] for n in range(4)])


def test_densities_are_those_of_the_branches_bit_for_bit() -> None:
    q, first, second = pair()
    z = torch.randn(4, 2)
    assert torch.equal(q.log_prob(z), chosen(first.log_prob(z), second.log_prob(z)))
    assert q.log_prob(torch.randn(7, 4, 2)).shape == (7, 4)
    assert torch.equal(q.mean, chosen(first.mean, second.mean))
    assert torch.equal(q.variance, chosen(first.variance, second.variance))
    assert q.batch_shape == (4,) and q.event_shape == (2,) and q.support.event_dim == 1


def test_draws_follow_the_branches_and_carry_their_gradients() -> None:
    loc = torch.full((4, 2), 3.0, requires_grad=True)
    q = Where(ROWS, dist.Normal(loc, 0.5).to_event(1), normal(0.0, 2.0))
    draws = q.rsample((4000,))
    within(*mean_and_se(draws.detach()), q.mean)
    within(*mean_and_se((draws.detach() - q.mean.detach()) ** 2), q.variance)
    (slope,) = torch.autograd.grad(draws.sum(), loc)
    assert torch.equal(slope, torch.where(ROWS.unsqueeze(-1), 4000.0, 0.0).expand(4, 2))
    assert not q.sample().requires_grad


def test_a_branch_without_reparametrized_draws_is_sampled() -> None:
    components = dist.Normal(torch.zeros(4, 2, 2), 1.0).to_event(1)
    first, second = normal(3.0, 0.5), dist.MixtureSameFamily(dist.Categorical(torch.ones(4, 2)), components)
    assert not second.has_rsample
    q, z = Where(ROWS, first, second), torch.ones(4, 2)
    assert q.has_rsample and q.rsample((5,)).shape == (5, 4, 2)
    torch.testing.assert_close(q.log_prob(z), chosen(first.log_prob(z), second.log_prob(z)))


def test_divergence_row_by_row() -> None:
    p, q = normal(0.5, 1.3), Where(ROWS, normal(3.0, 0.5), normal(0.5, 1.3))
    expected = torch.where(ROWS, kl_divergence(normal(3.0, 0.5), p), 0.0)
    torch.testing.assert_close(kl_divergence(q, p), expected)
    assert (kl_divergence(q, p)[~ROWS] == 0).all()
    with pytest.raises(NotImplementedError):
        kl_divergence(Where(ROWS, normal(0.0, 1.0), Mixture(normal(0.0, 1.0).expand((2, 4)), torch.zeros(2, 4))), p)


def test_the_other_branch_gives_no_gradient() -> None:
    locs = [torch.zeros(4, 2, requires_grad=True) for _ in range(2)]
    q = Where(ROWS, *(dist.Normal(loc, 1.0).to_event(1) for loc in locs))
    slopes = torch.autograd.grad(q.log_prob(torch.ones(4, 2)).sum(), locs)
    assert torch.equal(slopes[0], ROWS.double().unsqueeze(-1).expand(4, 2))
    assert torch.equal(slopes[1], (~ROWS).double().unsqueeze(-1).expand(4, 2))


def test_broadcasting_and_expansion() -> None:
    rows = torch.tensor([[True], [False], [True]])  # terms over rows
    q = Where(rows, normal(3.0, 0.5), dist.Normal(torch.zeros(2), 1.0).to_event(1))
    assert q.batch_shape == (3, 4)
    wide = q.expand((5, 3, 4))
    assert wide.sample().shape == (5, 3, 4, 2) and wide.log_prob(torch.zeros(4, 2)).shape == (5, 3, 4)
    torch.testing.assert_close(wide.log_prob(torch.zeros(4, 2))[2], q.log_prob(torch.zeros(4, 2)))


def test_parameters_and_their_rows() -> None:
    q, first, second = pair()
    picked = map_params(q, lambda p, constraint, k: p[torch.tensor([3, 0])] if p.dim() > k else p)
    z = torch.randn(2, 2)
    expected = torch.stack([second.log_prob(z[0].expand(4, 2))[3], first.log_prob(z[1].expand(4, 2))[0]])
    torch.testing.assert_close(picked.log_prob(z), expected)


def test_spaces_must_agree() -> None:
    with pytest.raises(ValueError, match=r"event shapes \(2,\) and \(3,\) differ"):
        Where(ROWS, normal(0.0, 1.0), dist.Normal(torch.zeros(3), 1.0).to_event(1))


def test_divergence_between_two_choices_is_that_of_the_branches() -> None:
    q, first, second = pair()
    other = torch.tensor([True, True, False, False])
    third = normal(-1.0, 2.0)
    found = kl_divergence(q, Where(other, third, second))
    rows = [(first, third), (second, third), (first, second), (second, second)]  # by row of the two conditions
    expected = torch.stack([kl_divergence(a, b)[i] for i, (a, b) in enumerate(rows)])
    torch.testing.assert_close(found, expected)
    assert found[3] == 0
