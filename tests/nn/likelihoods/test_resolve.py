"""Likelihoods by name, and expected values through wrappers."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_mmvae import nn as mmnn
from pyro_mmvae.distributions import Lazy, Scored
from pyro_mmvae.nn import expected, resolve


@pytest.mark.parametrize(
    ("name", "likelihood", "option"),
    [
        ("normal", mmnn.Normal, 1.0),
        ("normal_learned", mmnn.Normal, "learned"),
        ("normal_predicted", mmnn.Normal, "predicted"),
        ("normal_optimal", mmnn.Normal, "optimal"),
        ("laplace", mmnn.Laplace, 1.0),
        ("laplace_learned", mmnn.Laplace, "learned"),
        ("laplace_predicted", mmnn.Laplace, "predicted"),
        ("student_t", mmnn.StudentT, "learned"),
        ("bernoulli", mmnn.Bernoulli, None),
        ("continuous_bernoulli", mmnn.ContinuousBernoulli, None),
        ("relaxed_bernoulli", mmnn.RelaxedBernoulli, None),
        ("beta", mmnn.Beta, None),
        ("log_normal", mmnn.LogNormal, "learned"),
        ("poisson", mmnn.Poisson, None),
        ("negative_binomial", mmnn.NegativeBinomial, None),
        ("zero_inflated_negative_binomial", mmnn.ZeroInflatedNegativeBinomial, None),
        ("one_hot_categorical", mmnn.OneHotCategorical, None),
    ],
)
def test_names(name, likelihood, option):
    made = resolve(name)
    assert type(made) is likelihood and made.config.get("scale") == option
    assert resolve(name) is not made and resolve(made) is made


@pytest.mark.parametrize(
    ("name", "fix"),
    [("binomial", r"Binomial\(total_count\)"), ("categorical", r"Categorical\(num_classes\)"), ("ordinal", "Ordinal")],
)
def test_names_that_need_an_option(name, fix):
    with pytest.raises(ValueError, match=fix):
        resolve(name)


def test_unknown_names_and_kinds():
    with pytest.raises(ValueError, match=r"Unknown likelihood 'gaussian'. Known: bernoulli, beta, binomial"):
        resolve("gaussian")
    with pytest.raises(TypeError, match="FromCallable"):
        resolve(lambda raw: dist.Normal(raw, 1.0))
    with pytest.raises(TypeError, match="got int"):
        resolve(3)


def test_expected_sees_through_wrappers():
    logits = torch.randn(5, 2, 4)
    base, probs = dist.Categorical(logits=logits), logits.softmax(-1)
    fn = base.to_event(1)
    support = constraints.independent(constraints.integer_interval(0, 3), 1)
    lazy = Lazy(lambda z: fn, torch.zeros(5, 1), event_shape=(2,), support=support)
    scored = Scored(lazy, torch.zeros(5, 2), torch.zeros(5))
    masked = dist.MaskedDistribution(base, torch.ones(5, 2, dtype=torch.bool)).to_event(1)
    for wrapped in (fn, lazy, scored, masked, fn.mask(torch.ones(5, dtype=torch.bool))):
        torch.testing.assert_close(expected(wrapped), probs)
    torch.testing.assert_close(expected(lazy.expand([3, 5])), probs.expand(3, 5, 2, 4))
    expanded = dist.torch_distribution.ExpandedDistribution(base, torch.Size([3, 5, 2]))
    torch.testing.assert_close(expected(expanded), probs.expand(3, 5, 2, 4))


def test_expected_of_others():
    logits = torch.randn(5, 2, 4)
    torch.testing.assert_close(expected(dist.OneHotCategorical(logits=logits).to_event(1)), logits.softmax(-1))
    points = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(expected(dist.OrderedLogistic(logits, points)).sum(-1), torch.ones(5, 2, 4))
    torch.testing.assert_close(expected(dist.Normal(logits, 1.0).to_event(2)), logits)
