"""Likelihoods of classes, against Pyro where Pyro is sound."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_mmvae import nn as mmnn


@pytest.mark.parametrize("likelihood", [mmnn.Categorical, mmnn.OneHotCategorical, mmnn.Ordinal])
def test_at_least_two_classes(likelihood):
    with pytest.raises(ValueError, match="2 or more"):
        likelihood(1)


def test_one_hot_checks_the_event():
    with pytest.raises(ValueError, match=r"OneHotCategorical\(4\) got events of shape \(3,\)"):
        mmnn.OneHotCategorical(4).build(3)
    with pytest.raises(ValueError, match="1 or more dimensions"):
        mmnn.OneHotCategorical().build(())


def test_ordinal_equals_ordered_logistic_where_that_is_sound(float64):
    lik = mmnn.Ordinal(5).build(3)
    lik.cut_points.raw.data += torch.randn(3, 4) / 2
    raw = torch.randn(7, 3)
    reference = dist.OrderedLogistic(raw, lik.cut_points()).probs
    torch.testing.assert_close(lik(raw).base_dist.probs, reference)


def test_ordinal_gradient_survives_far_from_the_cut_points():
    lik = mmnn.Ordinal(5).build(())
    raw = torch.tensor([30.0, -30.0], requires_grad=True)
    (slope,) = torch.autograd.grad(lik(raw).log_prob(torch.tensor([1, 3])).sum(), raw)
    # log p(c | h) falls with slope 1 towards the far end
    torch.testing.assert_close(slope, torch.tensor([-1.0, 1.0]), rtol=1e-4, atol=0)


def test_ordinal_starts_with_equal_classes_and_ordered_points():
    lik = mmnn.Ordinal(6).build(2)
    torch.testing.assert_close(lik(torch.zeros(2)).base_dist.probs, torch.full((2, 6), 1 / 6))
    lik.cut_points.raw.data = 5 * torch.randn(2, 5)
    assert (lik.cut_points().diff() > 0).all()


def test_many_ordinal_classes_are_finite():
    lik = mmnn.Ordinal(10_000).build(())
    assert torch.isfinite(lik(torch.zeros(())).log_prob(torch.tensor(5000)))
