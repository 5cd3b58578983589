"""What every likelihood must do: its density, mean, gradients, shapes, support."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import constraints

from pyro_mmvae import nn as mmnn
from pyro_mmvae.distributions import factorized_dims, fill_value
from pyro_mmvae.nn import expected

from .cases import CASES, NAMES, Case

BOUNDED = [case for case in CASES if case.make().feature_support is not constraints.real]
each = pytest.mark.parametrize("case", CASES, ids=NAMES)


def raw_and_value(case: Case, lik: mmnn.Likelihood, batch: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    raw = torch.as_tensor(rng.normal(size=batch + tuple(lik.raw_shape())))
    return raw, torch.as_tensor(case.draw(rng, batch + case.event))


@each
def test_density_equals_an_independent_formula(case):
    lik = case.build()
    raw, x = raw_and_value(case, lik, (7,))
    reference = case.logpdf(x.numpy(), raw.numpy(), **case.parameters(lik)).reshape(7, -1).sum(-1)
    assert np.isfinite(reference).all()
    torch.testing.assert_close(lik(raw).log_prob(x).detach().numpy(), reference, rtol=1e-9, atol=1e-9)


@each
def test_draws_agree_with_the_mean(case):
    lik = case.build()
    raw, _ = raw_and_value(case, lik, (2,))
    fn = lik(raw)
    with torch.no_grad():
        draws, mean = fn.sample((4000,)), expected(fn)
    assert lik.support().check(draws).all()
    if not draws.is_floating_point() or case.name == "ordinal":  # class numbers: their frequencies
        draws = torch.nn.functional.one_hot(draws.long(), mean.shape[-1])
    draws = draws.to(mean.dtype)
    # four standard errors, taken from the draws; a variance of 0 means that all agree
    assert ((draws.mean(0) - mean).abs() <= 4 * draws.std(0) / 4000**0.5).all()


@each
def test_leading_dimensions_and_event(case):
    lik = case.build()
    raw, x = raw_and_value(case, lik, (3, 2, 5))
    fn = lik(raw)
    assert fn.batch_shape == (3, 2, 5) and fn.event_shape == case.event
    assert expected(fn).shape[: 3 + len(case.event)] == (3, 2, 5, *case.event)
    flat = lik(raw.flatten(0, 2)).log_prob(x.flatten(0, 2))
    torch.testing.assert_close(fn.log_prob(x), flat.reshape(3, 2, 5))
    torch.testing.assert_close(fn.log_prob(x[0, 0]), lik(raw).log_prob(x[:1, :1].expand(x.shape)))


@each
def test_support_is_known_without_a_network_and_holds_a_fill(case):
    lik = case.build()
    _, x = raw_and_value(case, lik, (4,))
    support = lik.support()
    assert support.event_dim == len(case.event)
    assert support.check(x).shape == (4,) and support.check(x).all()
    fill = fill_value(support, torch.Size(case.event)).to(x.dtype).expand(case.event)
    assert support.check(fill).all()
    raw = torch.zeros(lik.raw_shape(), dtype=torch.float64)
    assert torch.isfinite(lik(raw).log_prob(fill))


@each
def test_says_over_which_dimensions_it_factorizes(case):
    lik = case.build()
    fn = lik(torch.zeros(2, *lik.raw_shape(), dtype=torch.float64))
    assert factorized_dims(fn) == len(case.event) - lik.joint_dims
    assert lik.factorizes == (lik.joint_dims == 0)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [-30.0, 0.0, 30.0])
def test_densities_and_gradients_are_finite_far_out(case, dtype, size):
    lik = case.build().to(dtype)
    _, x = raw_and_value(case, lik, (6,))
    x = x.to(dtype) if x.is_floating_point() else x
    raw = torch.full((6, *lik.raw_shape()), size, dtype=dtype)
    raw = torch.cat([raw, raw * torch.linspace(-1, 1, raw.shape[-1], dtype=dtype)]).requires_grad_()
    scores = lik(raw).log_prob(torch.cat([x, x]))
    assert torch.isfinite(scores).all() and scores.dtype == dtype
    slopes = torch.autograd.grad(scores.sum(), [raw, *lik.parameters()])
    assert all(torch.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("case", BOUNDED, ids=[case.name for case in BOUNDED])
def test_values_outside_the_support_are_refused(case):
    lik = case.build()
    raw, x = raw_and_value(case, lik, (4,))
    bad = x.clone().to(torch.float64)
    bad[(0, *([0] * (bad.dim() - 1)))] = -1.0
    with pytest.raises(ValueError, match="support"):
        lik(raw).log_prob(bad)
    assert lik.support().check(bad).tolist() == [False, True, True, True]


@each
def test_config_rebuilds_it(case):
    lik = case.build()
    again = mmnn.from_config(lik.config).build(case.event).double()
    again.load_state_dict(lik.state_dict())
    raw, x = raw_and_value(case, lik, (4,))
    assert torch.equal(again(raw).log_prob(x), lik(raw).log_prob(x))


@each
def test_half_precision_outputs_are_scored_in_single(case):
    lik = case.build().float()
    _, x = raw_and_value(case, lik, (4,))
    raw = torch.zeros(4, *lik.raw_shape(), dtype=torch.bfloat16)
    assert lik(raw).log_prob(x.float() if x.is_floating_point() else x).dtype == torch.float32


@each
def test_stays_sound_after_expand(case):
    lik = case.build()
    raw, x = raw_and_value(case, lik, (5,))
    fn = lik(raw).expand([3, 5])
    torch.testing.assert_close(fn.log_prob(x), lik(raw).log_prob(x).expand(3, 5))
    assert fn.sample().shape == (3, 5, *case.event)


def test_only_cross_entropy_is_no_density():
    assert [case.name for case in CASES if not case.make().is_density] == ["relaxed_bernoulli"]


def test_raw_outputs_of_another_shape():
    with pytest.raises(ValueError, match=r"expected raw outputs \(\*batch, \*\(3, 2\)\), got \(5, 3\)"):
        mmnn.Beta().build(3)(torch.zeros(5, 3))


def test_one_object_serves_one_shape():
    lik = mmnn.Normal("learned").build(3)
    before = lik.scale.log
    assert lik.build((3,)).scale.log is before
    with pytest.raises(ValueError, match="one likelihood object per decoder"):
        lik.build(4)
    with pytest.raises(ValueError, match="build"):
        mmnn.Bernoulli().support()


def test_subclass_must_say_its_distribution():
    class Nothing(mmnn.Likelihood):
        pass

    with pytest.raises(NotImplementedError, match="distribution"):
        Nothing().build(2)(torch.zeros(2))
