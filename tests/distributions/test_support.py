"""What a support says: constants inside it, rows outside it, features that can be masked, parameters to map."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_mmvae.distributions import (
    SharedScaleNormal,
    base_support,
    bounds,
    factorized_dims,
    fill_value,
    map_params,
    mask_event,
    outside,
    unwrap,
)
from pyro_mmvae.distributions.likelihoods import ContinuousBernoulli

pytestmark = pytest.mark.usefixtures("float64")

ONES = torch.ones(3)
# a distribution over one event, a value inside its support, one outside it (None: there is none)
FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "Normal": (dist.Normal(0 * ONES, 1.0).to_event(1), ONES, None),
    "Laplace": (dist.Laplace(0 * ONES, 1.0).to_event(1), ONES, None),
    "StudentT": (dist.StudentT(4.0, 0 * ONES, 1.0).to_event(1), ONES, None),
    "LogNormal": (dist.LogNormal(0 * ONES, 1.0).to_event(1), ONES, -ONES),
    "Gamma": (dist.Gamma(2 * ONES, 1.0).to_event(1), ONES, -ONES),
    "HalfNormal": (dist.HalfNormal(ONES).to_event(1), ONES, -ONES),
    "Exponential": (dist.Exponential(ONES).to_event(1), ONES, -ONES),
    "Pareto": (dist.Pareto(2.0 * ONES, 3.0).to_event(1), 3 * ONES, ONES),
    "Uniform": (dist.Uniform(2 * ONES, 5.0).to_event(1), 3 * ONES, ONES),
    "Beta": (dist.Beta(2 * ONES, 2.0).to_event(1), 0.3 * ONES, 2 * ONES),
    "Bernoulli": (dist.Bernoulli(logits=0 * ONES).to_event(1), ONES, 0.5 * ONES),
    "ContinuousBernoulli": (ContinuousBernoulli(logits=0 * ONES).to_event(1), 0.5 * ONES, 2 * ONES),
    "RelaxedBernoulli": (dist.RelaxedBernoulli(torch.tensor(0.5), logits=0 * ONES).to_event(1), 0.4 * ONES, 2 * ONES),
    "Poisson": (dist.Poisson(ONES).to_event(1), ONES, -ONES),
    "NegativeBinomial": (dist.NegativeBinomial(2.0, logits=0 * ONES).to_event(1), ONES, 0.5 * ONES),
    "ZeroInflatedPoisson": (dist.ZeroInflatedPoisson(ONES, gate=0.3 * ONES).to_event(1), ONES, -ONES),
    "Geometric": (dist.Geometric(0.5 * ONES).to_event(1), ONES, -ONES),
    "Binomial": (dist.Binomial(16, logits=0 * ONES).to_event(1), 16 * ONES, 17 * ONES),
    "Categorical": (dist.Categorical(torch.ones(3, 10)).to_event(1), 9 * ONES, 10 * ONES),
    "OneHotCategorical": (dist.OneHotCategorical(torch.ones(3)), torch.eye(3)[1], ONES),
    "Dirichlet": (dist.Dirichlet(ONES), ONES / 3, ONES),
    "MultivariateNormal": (dist.MultivariateNormal(0 * ONES, torch.eye(3)), ONES, None),
    "Delta": (dist.Delta(ONES, event_dim=1), ONES, None),
    "OrderedLogistic": (dist.OrderedLogistic(0 * ONES, torch.tensor([-1.0, 1.0])).to_event(1), 2 * ONES, 3 * ONES),
    "VonMises": (dist.VonMises(0 * ONES, 1.0).to_event(1), ONES, None),
    "MixtureSameFamily": (
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2, 3), 1.0).to_event(1)),
        ONES,
        -ONES,
    ),
    "LKJ": (dist.LKJCholesky(3), torch.eye(3), None),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fill_constant_lies_inside(name: str) -> None:
    fn, _, _ = FAMILIES[name]
    if name == "LKJ":
        with pytest.raises(NotImplementedError, match=r"No constant inside the support(.|\n)*Fix"):
            fill_value(fn.support, fn.event_shape)
        return
    constant = fill_value(fn.support, fn.event_shape).expand(fn.event_shape)
    assert bool(fn.support.check(constant).all())
    assert fn.log_prob(constant).isfinite() or name == "Delta"


@pytest.mark.parametrize("name", FAMILIES)
def test_outside(name: str) -> None:
    fn, good, bad = FAMILIES[name]
    value = torch.stack([good, good])
    found = outside(fn.support, value)
    if bad is not None:
        found = outside(fn.support, torch.stack([good, bad, good]))
        assert found is not None and found.tolist() == [False, True, False]
    else:
        assert found is None or not found.any()


def test_supports_that_depend_on_the_sample_are_not_judged() -> None:
    low = torch.tensor([[0.0], [2.0]])
    assert outside(dist.Uniform(low, low + 1).to_event(1).support, torch.tensor([[5.0], [5.0]])) is None
    features = dist.Uniform(low[:, 0], 3.0).to_event(1).support  # one bound per feature, the same in all rows
    assert outside(features, torch.tensor([[1.0, 1.0], [1.0, 2.5]])).tolist() == [True, False]
    assert len(bounds(features)) == 1 and bounds(constraints.unit_interval) == []


def test_fill_of_bounds() -> None:
    def at(support: constraints.Constraint, shape: tuple[int, ...] = ()) -> list[float] | float:
        return fill_value(support, torch.Size(shape)).tolist()

    assert at(constraints.interval(2.0, 4.0)) == 3.0 and at(constraints.integer_interval(3, 9)) == 3.0
    assert at(constraints.greater_than(5.0)) == 6.0 and at(constraints.greater_than_eq(5.0)) == 6.0
    assert at(constraints.less_than(5.0)) == 4.0 and at(constraints.unit_interval) == 0.5
    assert at(constraints.one_hot, (4,)) == [1.0, 0.0, 0.0, 0.0] and at(constraints.simplex, (4,)) == [0.25] * 4
    assert base_support(constraints.independent(constraints.independent(constraints.real, 1), 1)) is constraints.real


JOINT = {"OneHotCategorical", "Dirichlet", "MultivariateNormal", "MixtureSameFamily", "Delta"}


@pytest.mark.parametrize("name", FAMILIES)
def test_per_feature_masks(name: str) -> None:
    fn, good, _ = FAMILIES[name]
    seen = torch.tensor([[True, False, True], [False, False, False]])
    if name == "LKJ":
        return
    assert factorized_dims(fn) == (name not in JOINT)
    wide = fn.expand((2,))
    if name in JOINT:
        with pytest.raises(ValueError, match=rf"^image: a per-feature(.|\n)*{type(fn).__name__} is joint(.|\n)*Fix"):
            mask_event(wide, seen, "image")
        return
    single = unwrap(fn).log_prob(good)
    expected = torch.where(seen, single, 0.0).sum(-1)
    torch.testing.assert_close(mask_event(wide, seen, "image").log_prob(good.expand(2, 3)), expected)


def test_masks_compose_with_those_of_the_likelihood() -> None:
    """Padding belongs to the likelihood: sequence lengths inside, missing features outside."""
    inner, seen = torch.tensor([[True, True, False]]), torch.tensor([[True, False, True]])
    fn = dist.Normal(torch.zeros(1, 3), 1.0).mask(inner).to_event(1)
    found = mask_event(fn, seen).log_prob(torch.zeros(1, 3))
    torch.testing.assert_close(found, torch.tensor([-0.5 * math.log(2 * math.pi)]))


def test_masks_of_several_event_dimensions() -> None:
    fn = dist.Normal(torch.zeros(2, 3, 4), 1.0).to_event(2)
    seen = torch.rand(2, 3, 4) < 0.5
    expected = torch.where(seen, -0.5 * math.log(2 * math.pi), 0.0).sum((-1, -2))
    torch.testing.assert_close(mask_event(fn, seen).log_prob(torch.zeros(2, 3, 4)), expected)
    mixed = dist.OneHotCategorical(torch.ones(2, 5, 3)).to_event(1)
    rows = torch.rand(2, 5, 1) < 0.5
    expected = torch.where(rows.squeeze(-1), -math.log(3.0), 0.0).sum(-1)
    torch.testing.assert_close(mask_event(mixed, rows).log_prob(torch.eye(3)[torch.zeros(2, 5).long()]), expected)


MAPPED = {
    "Normal": (lambda: dist.Normal(torch.randn(4, 3), 0.7).to_event(1), torch.zeros(3)),
    "Gamma": (lambda: dist.Gamma(torch.rand(4, 3) + 1, 1.5).to_event(1), ONES),
    "Categorical": (lambda: dist.Categorical(logits=torch.randn(4, 5)), torch.tensor(2)),
    "probs": (lambda: dist.Categorical(torch.rand(4, 5)), torch.tensor(2)),
    "Bernoulli": (lambda: dist.Bernoulli(logits=torch.randn(4, 3)).to_event(1), ONES),
    "MultivariateNormal": (lambda: dist.MultivariateNormal(torch.randn(4, 3), torch.eye(3)), ONES),
    "LogNormal": (lambda: dist.LogNormal(torch.randn(4, 3), 1.0).to_event(1), ONES),
    "Dirichlet": (lambda: dist.Dirichlet(torch.rand(4, 3) + 1), ONES / 3),
}


@pytest.mark.parametrize("name", MAPPED)
def test_rows_of_parameters(name: str) -> None:
    make, x = MAPPED[name]
    fn, index = make(), torch.tensor([3, 1])
    full = fn.log_prob(x.expand(4, *x.shape))  # caches equivalent parameters in the distribution

    def rows(p: torch.Tensor, constraint: Any, event_dim: int) -> torch.Tensor:
        batch = p.expand(4, *p.shape[p.dim() - event_dim :]) if p.dim() <= event_dim else p
        return batch[index]

    torch.testing.assert_close(map_params(fn, rows).log_prob(x.expand(2, *x.shape)), full[index])


def test_parameters_that_cannot_be_found() -> None:
    masked = dist.Normal(torch.zeros(3), 1.0).mask(torch.ones(3).bool())
    with pytest.raises(NotImplementedError, match=r"MaskedDistribution has no plain parameters; give it"):
        map_params(masked, lambda p, constraint, k: p)


def test_shared_scale_normal() -> None:
    loc, x = torch.randn(4, 3), torch.randn(4, 3)
    for scale in (0.7, torch.tensor(0.7), torch.tensor([0.5, 1.0, 2.0])):
        ours, theirs = SharedScaleNormal(loc, scale), dist.Normal(loc, scale)
        torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
        torch.testing.assert_close(ours.expand((5, 4, 3)).log_prob(x), theirs.expand((5, 4, 3)).log_prob(x))
        torch.testing.assert_close(ours.to_event(1).log_prob(x), theirs.to_event(1).log_prob(x))
    with pytest.raises(ValueError, match="support"):
        SharedScaleNormal(loc, 1.0).log_prob(torch.full((4, 3), torch.nan))


def test_a_multinomial_has_its_trials_in_the_first_class():
    fn = dist.Multinomial(7, probs=torch.ones(3, 4) / 4)
    value = fill_value(fn.support, fn.event_shape)
    assert value.tolist() == [7.0, 0.0, 0.0, 0.0]
    assert fn.log_prob(value.expand(3, 4)).isfinite().all()
