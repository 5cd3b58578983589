"""Cross-entropy on [0, 1], against torch and the Bernoulli it is at the ends."""

from __future__ import annotations

import pytest
import torch

from pyro_mmvae.distributions.likelihoods import BernoulliCrossEntropy


def test_equals_cross_entropy_and_is_no_density(float64):
    logits = torch.tensor([-30.0, -1.0, 0.0, 2.0, 30.0])
    x = torch.tensor([0.0, 0.3, 0.5, 1.0, 0.9])
    reference = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    torch.testing.assert_close(BernoulliCrossEntropy(logits).log_prob(x), reference)
    grid = torch.linspace(0, 1, 10001)
    mass = torch.trapezoid(BernoulliCrossEntropy(torch.tensor(0.7)).log_prob(grid).exp(), grid)
    assert mass < 0.99
    assert BernoulliCrossEntropy.is_density is False


def test_at_the_ends_it_is_a_bernoulli():
    logits, x = torch.randn(7), torch.tensor([0.0, 1, 0, 1, 0, 1, 1])
    torch.testing.assert_close(
        BernoulliCrossEntropy(logits).log_prob(x), torch.distributions.Bernoulli(logits=logits).log_prob(x)
    )


def test_draws_are_bits_of_the_mean():
    fn = BernoulliCrossEntropy(torch.tensor([-1.0, 2.0])).expand([3, 2])
    draws = fn.sample((5000,))
    assert draws.shape == (5000, 3, 2) and set(draws.unique().tolist()) == {0.0, 1.0}
    error = (fn.variance / 5000).sqrt()
    assert ((draws.mean(0) - fn.mean).abs() < 4 * error).all()


def test_validation():
    with pytest.raises(ValueError, match="support"):
        BernoulliCrossEntropy(torch.zeros(2)).log_prob(torch.tensor([0.5, -0.1]))
