"""Scales of likelihoods of real numbers: fixed, learned, optimal."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_mmvae import nn as mmnn
from pyro_mmvae.distributions.likelihoods import OptimalNormal


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), True, "other"])
@pytest.mark.parametrize("likelihood", [mmnn.Normal, mmnn.Laplace])
def test_scale_must_be_positive_or_named(likelihood, scale):
    with pytest.raises(ValueError, match="scale must be a positive number"):
        likelihood(scale)


def test_learned_scale_starts_at_one_per_feature_and_keeps_its_floor():
    lik = mmnn.Normal("learned").build((2, 3))
    assert lik.scale.log.shape == (2, 3)
    torch.testing.assert_close(lik(torch.zeros(2, 3)).base_dist.scale, torch.ones(2, 3))
    lik.scale.log.data.fill_(-100.0)
    torch.testing.assert_close(lik(torch.zeros(2, 3)).base_dist.scale, torch.full((2, 3), 1e-3))


@pytest.mark.parametrize("floor", [-1e-3, 1.0])
def test_floor_lies_below_the_start(floor):
    with pytest.raises(ValueError, match="Normal: scale: floor must be at least 0 and below 1"):
        mmnn.Normal("learned", floor=floor)


def test_student_needs_a_mean():
    for df in (1.0, 0.5, "predicted"):
        with pytest.raises(ValueError, match="df must be a number above 1"):
            mmnn.StudentT(df)


def test_optimal_scale_is_of_the_batch_in_training_and_fixed_in_evaluation():
    lik = mmnn.Normal("optimal").build(3)
    raw, x = torch.zeros(4, 3, requires_grad=True), torch.full((4, 3), 2.0)
    fn = lik(raw)
    assert isinstance(fn.base_dist, OptimalNormal)
    torch.testing.assert_close(fn.log_prob(x), dist.Normal(0.0, 2.0).expand([4, 3]).to_event(1).log_prob(x))
    lik.eval()
    torch.testing.assert_close(lik(raw).base_dist.scale, torch.full((4, 3), 2.0))  # the first batch counts fully
    # a fixed scale: rows are independent of each other
    y = torch.randn(4, 3)
    rows = torch.stack([lik(raw[i]).log_prob(y[i]) for i in range(4)])
    torch.testing.assert_close(lik(raw).log_prob(y), rows)


def test_running_scale_averages_the_first_batches():
    lik = mmnn.Normal("optimal").build(1)
    for value in (1.0, 2.0, 3.0):
        lik(torch.zeros(5, 1)).log_prob(torch.full((5, 1), value))
    torch.testing.assert_close(lik.scale.variance, torch.tensor((1.0 + 4.0 + 9.0) / 3))
    with torch.no_grad():
        lik(torch.zeros(5, 1)).log_prob(torch.full((5, 1), 100.0))  # not a training step
    assert lik.scale.updates == 3
    assert set(lik.state_dict()) == {"scale.variance", "scale.updates"}


def test_running_scale_moves_while_a_graph_is_alive():
    lik = mmnn.Normal("optimal").build(1)
    raw = torch.zeros(5, 1, requires_grad=True)
    draw = lik(raw).rsample()
    lik(raw).log_prob(torch.ones(5, 1)).sum().backward()
    draw.sum().backward()
    torch.testing.assert_close(raw.grad, torch.full((5, 1), 2.0))


def test_nothing_scored_leaves_the_running_scale():
    lik = mmnn.Normal("optimal").build(1)
    fn = lik(torch.zeros(5, 1)).base_dist.mask(torch.zeros(5, 1, dtype=torch.bool))
    assert fn.log_prob(torch.ones(5, 1)).abs().sum() == 0
    assert lik.scale.updates == 0 and lik.scale.variance == 1.0
