"""Gradient references against each other: quadrature, reparametrized draws, written-out coefficients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .cases import make_case
from .gradients import Estimator, bound_value, estimator_draws, exact_gradient, mixture_dreg_coefficients, plain_draws
from .methods import exact_mmvae
from .statistics import mean_and_se, within, z_scores

SHIFT = torch.tensor([2.5, -2.0], dtype=torch.float64)  # far from the experts: gradients well above their noise


def log_joint(z: Tensor) -> Tensor:
    """An unnormalized target that no Gaussian fits."""
    return (-0.5 * (z - SHIFT[: z.shape[-1]]) ** 2 - 0.3 * (2 * z).sin() - 0.05 * z**4).sum(-1)


def experts(num: int, latent_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Locations, scales and unequal weights of overlapping experts."""
    index = torch.arange(num * latent_dim, dtype=torch.float64).reshape(num, latent_dim)
    weights = torch.linspace(1.0, 2.0, num, dtype=torch.float64)
    return 0.9 * index.cos(), 0.6 + 0.3 * (1.7 * index).sin(), weights / weights.sum()


def noise(draws: int, num: int, particles: int, latent_dim: int) -> Tensor:
    """Standard normal noise, shape (N, M, K, L)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(draws, num, particles, latent_dim, generator=generator, dtype=torch.float64)


def scores(estimator: Estimator, num: int, particles: int, draws: int = 40000) -> Tensor:
    """z-scores of an estimator's mean against quadrature, locations and scales together; one latent dimension."""
    problem = (log_joint, *experts(num, 1))
    estimates = torch.cat(estimator_draws(*problem, noise(draws, num, particles, 1), estimator), -1)
    _, by_loc, by_scale = exact_gradient(*problem, num_particles=particles)
    return z_scores(*mean_and_se(estimates), torch.cat([by_loc, by_scale], -1))


@pytest.mark.parametrize(("num", "latent_dim", "particles"), [(1, 1, 2), (3, 1, 1), (2, 2, 1), (3, 1, 2), (2, 1, 3)])
def test_reparametrized_draws_equal_quadrature(num: int, latent_dim: int, particles: int) -> None:
    problem = (log_joint, *experts(num, latent_dim))
    eps = noise(40000, num, particles, latent_dim)
    value, by_loc, by_scale = exact_gradient(*problem, num_particles=particles)
    within(*mean_and_se(bound_value(*problem, eps)), value, label="value")
    drawn = torch.cat(plain_draws(*problem, eps), -1)
    within(*mean_and_se(drawn), torch.cat([by_loc, by_scale], -1), resolution=0.06, label="gradient")


def test_quadrature_of_one_particle_is_the_exact_objective() -> None:
    case = make_case(3)
    row = len(case.sets) - 1
    loc, scale = (torch.stack([q[i][row] for q in case.experts.values()]) for i in range(2))

    def joint(z: Tensor) -> Tensor:
        data, mask = ({m: t[row : row + 1] for m, t in d.items()} for d in (case.data, case.obs_mask))
        scored = case.model.log_likelihoods(z.unsqueeze(-2), data, mask)
        return sum(scored.values()).squeeze(-1) + case.model.log_prior(z)

    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    leaves = loc.requires_grad_(), scale.requires_grad_()
    own = {m: (leaves[0][i : i + 1], leaves[1][i : i + 1]) for i, m in enumerate(case.experts)}
    data, mask = ({m: t[row : row + 1] for m, t in d.items()} for d in (case.data, case.obs_mask))
    objective = exact_mmvae(case.model, own, data, mask).sum()
    value, by_loc, by_scale = exact_gradient(joint, loc, scale, third)
    expected = torch.autograd.grad(objective, leaves)
    # both integrate analytic functions on grids far finer than any scale
    torch.testing.assert_close(value, objective.detach(), rtol=0.0, atol=1e-8)
    torch.testing.assert_close(by_loc, expected[0], rtol=0.0, atol=1e-8)
    torch.testing.assert_close(by_scale, expected[1], rtol=0.0, atol=1e-8)


@pytest.mark.parametrize(("num", "particles"), [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (2, 3)])
def test_mixture_dreg_is_unbiased(num: int, particles: int) -> None:
    assert scores("mixture_dreg", num, particles).abs().max() < 4


def test_published_estimators_are_unbiased_where_they_should_be() -> None:
    assert scores("dreg", 1, 3).abs().max() < 4
    assert scores("dreg", 3, 1).abs().max() < 4
    assert scores("stl", 3, 1).abs().max() < 4


def test_published_estimators_are_biased_where_they_are() -> None:
    assert scores("dreg", 3, 2).abs().max() > 8
    assert scores("stl", 1, 3).abs().max() > 8
    assert scores("stl", 3, 2).abs().max() > 8


def test_mixture_dreg_has_less_variance_than_plain_draws() -> None:
    problem = (log_joint, *experts(3, 1))
    eps = noise(10000, 3, 4, 1)
    plain = torch.cat(plain_draws(*problem, eps), -1).var(0).sum()
    doubly = torch.cat(estimator_draws(*problem, eps, "mixture_dreg"), -1).var(0).sum()
    assert doubly < plain


def test_mixture_dreg_in_two_dimensions_equals_reparametrized_draws() -> None:
    problem = (log_joint, *experts(3, 2))
    eps = noise(40000, 3, 3, 2)
    for plain, doubly in zip(plain_draws(*problem, eps), estimator_draws(*problem, eps, "mixture_dreg"), strict=True):
        mean, se = mean_and_se(plain - doubly)  # same noise: compare pairs
        within(mean, se, torch.zeros_like(mean))


def test_coefficients_have_the_limits_of_the_formula() -> None:
    log_w = torch.randn(5, 3, 4, dtype=torch.float64)
    log_rho = torch.randn(5, 3, 4, 3, dtype=torch.float64).log_softmax(-1)
    one, _ = mixture_dreg_coefficients(log_w[:, :1], torch.zeros(5, 1, 4, 1, dtype=torch.float64))
    torch.testing.assert_close(one, log_w[:, :1].softmax(-1) ** 2)
    a, b = mixture_dreg_coefficients(log_w[..., :1], log_rho[..., :1, :])
    torch.testing.assert_close(a, torch.ones_like(a))
    torch.testing.assert_close(b, log_rho[..., :1, :].exp())


def test_generative_gradient_is_that_of_the_value() -> None:
    loc, scale, weights = experts(2, 1)
    eps = noise(40000, 2, 2, 1)
    theta = torch.tensor(0.3, dtype=torch.float64)

    def moved(z: Tensor, by: Tensor) -> Tensor:
        return log_joint(z - by.reshape(-1, *[1] * (z.ndim - 1)) if by.ndim else z - by)

    each = theta.expand(40000).clone().requires_grad_()
    value = bound_value(lambda z: moved(z, each), loc, scale, weights, eps)
    (drawn,) = torch.autograd.grad(value.sum(), each)
    step = 1e-4  # central difference of an exact value: error of order 1e-8
    high, low = (exact_gradient(lambda z, t=theta + d: moved(z, t), loc, scale, weights, 2)[0] for d in (step, -step))
    within(*mean_and_se(drawn), (high - low) / (2 * step), resolution=0.1)


def test_tight_bound_lies_above_the_looser_one_draw_by_draw() -> None:
    problem = (log_joint, *experts(3, 1))
    eps = noise(100, 3, 2, 1)
    assert (bound_value(*problem, eps, "tight") >= bound_value(*problem, eps)).all()
    assert plain_draws(*problem, eps, "tight")[0].shape == (100, 3, 1)


def test_limits_are_told() -> None:
    with pytest.raises(NotImplementedError, match="4 axes"):
        exact_gradient(log_joint, *experts(1, 2), num_particles=2)
    loc, scale, weights = experts(2, 1)
    with pytest.raises(ValueError, match="too coarse"):
        exact_gradient(log_joint, loc, scale * torch.tensor([[0.1], [1.0]]), weights, num_particles=3)
    with pytest.raises(ValueError, match="estimator"):
        estimator_draws(log_joint, *experts(1, 1), noise(2, 1, 1, 1), "magic")  # type: ignore[arg-type]
