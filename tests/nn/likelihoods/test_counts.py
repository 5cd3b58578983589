"""Likelihoods of counts: the moments and mass they promise."""

from __future__ import annotations

import pytest
import torch

from pyro_mmvae import nn as mmnn


def test_negative_binomial_has_the_mean_and_variance_it_says(float64):
    raw = torch.tensor([-1.0, 0.0, 3.0])
    fn = mmnn.NegativeBinomial(2.5).build(3)(raw)
    torch.testing.assert_close(fn.mean, raw.exp())
    torch.testing.assert_close(fn.variance, raw.exp() + raw.exp() ** 2 / 2.5)


def test_zero_inflated_sums_to_one(float64):
    fn = mmnn.ZeroInflatedNegativeBinomial(1.5).build(())(torch.tensor([0.5, -0.3]))
    counts = torch.arange(400.0)
    mass = torch.stack([fn.log_prob(c) for c in counts]).exp()
    torch.testing.assert_close(mass.sum(), torch.tensor(1.0))
    torch.testing.assert_close((mass * counts).sum(), fn.mean)


def test_zero_inflated_passes_validation_at_large_logits_in_float32():
    fn = mmnn.ZeroInflatedNegativeBinomial().build(2)(torch.tensor([[25.0, 0.0], [-25.0, 0.0]]))
    assert torch.isfinite(fn.log_prob(torch.tensor([3.0, 0.0])))


@pytest.mark.parametrize("total", [0, -1, 2.5, True])
def test_total_count_is_a_positive_integer(total):
    with pytest.raises(ValueError, match="total_count must be a positive integer"):
        mmnn.Binomial(total)
