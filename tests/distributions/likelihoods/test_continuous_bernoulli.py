"""The continuous Bernoulli, against quadrature and torch."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from pyro_mmvae.distributions.likelihoods import ContinuousBernoulli

LOGITS = (-80.0, -30.0, -3.0, -0.3, -0.24, -1e-3, 0.0, 1e-6, 0.2, 0.26, 1.0, 30.0, 80.0)


def moments(logit: float) -> tuple[float, float, float]:
    """log of the normalizer, mean and variance by quadrature of exp(l x), scaled so that it never overflows."""
    top = max(logit, 0.0)
    total, mean, square = (
        quad(lambda x, k=k: x**k * math.exp(logit * x - top), 0, 1, epsabs=0, epsrel=1e-12, limit=200)[0]
        for k in range(3)
    )
    return math.log(total) + top, mean / total, square / total - (mean / total) ** 2


@pytest.mark.parametrize("logit", LOGITS)
def test_normalizer_and_moments_equal_quadrature(logit):
    fn = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))
    log_normalizer, mean, variance = moments(logit)
    # 1e-9: the quadrature's error, and the cancellation in the variance near the series
    torch.testing.assert_close(fn.log_normalizer().item(), log_normalizer, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fn.mean.item(), mean, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(fn.variance.item(), variance, rtol=1e-8, atol=0.0)


def test_equals_torch_where_torch_is_right():
    logits = torch.linspace(-8, 8, 33, dtype=torch.float64)
    x = torch.rand(33, dtype=torch.float64)
    reference = torch.distributions.ContinuousBernoulli(logits=logits)
    # torch uses a two-term series within 0.002 of 1/2; elsewhere both are exact
    torch.testing.assert_close(ContinuousBernoulli(logits).log_prob(x), reference.log_prob(x), rtol=0, atol=1e-9)


def test_float32_at_30_is_normalized():
    value = ContinuousBernoulli(torch.tensor([30.0, -30.0])).log_prob(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(value, torch.full((2,), math.log(30.0)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("logit", LOGITS)
def test_quantile_inverts_the_distribution_function(logit):
    fn = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))
    u = torch.linspace(0.01, 0.99, 23, dtype=torch.float64)
    x = fn.icdf(u)
    if logit == 0:
        cdf = x
    else:  # expm1(l x) / expm1(l), divided through by exp(l) where l is large
        cdf = torch.expm1(logit * x) / math.expm1(logit)
    # 1e-8: the neglected cubic term of the series at |l| = 0.01 is below 1e-8
    torch.testing.assert_close(cdf, u, rtol=1e-7, atol=1e-8)


def test_pathwise_gradient_of_the_mean():
    logits = torch.tensor([-4.0, -0.5, 0.003, 2.0], dtype=torch.float64, requires_grad=True)
    u = (torch.arange(20000, dtype=torch.float64).unsqueeze(-1) + 0.5) / 20000  # midpoint rule over the noise
    (slope,) = torch.autograd.grad(ContinuousBernoulli(logits).icdf(u).mean(0).sum(), logits)
    # d mean / d l is the variance of an exponential family; 1e-5: the midpoint rule and the series
    torch.testing.assert_close(slope, ContinuousBernoulli(logits).variance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logit", [0.0, 1e-30, 0.25, 200.0, -200.0])
def test_gradients_are_finite(logit):
    logits = torch.tensor(logit, requires_grad=True)
    fn = ContinuousBernoulli(logits)
    (slope,) = torch.autograd.grad(fn.log_prob(torch.tensor(0.3)) + fn.mean + fn.variance, logits)
    assert torch.isfinite(slope)


def test_expand_and_validation():
    fn = ContinuousBernoulli(torch.zeros(3)).expand([2, 3])
    assert fn.sample((4,)).shape == (4, 2, 3)
    with pytest.raises(ValueError, match="support"):
        fn.log_prob(torch.tensor(1.5))
