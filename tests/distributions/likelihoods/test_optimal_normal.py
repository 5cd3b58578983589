"""The Normal with the best scale, against the profile likelihood."""

from __future__ import annotations

import pyro.distributions as dist
import torch

from pyro_mmvae.distributions.likelihoods import OptimalNormal

ONE = torch.tensor(1.0)


def test_scale_is_the_maximum_likelihood_one(float64):
    loc, x = torch.randn(6, 3), torch.randn(6, 3)
    total = OptimalNormal(loc, torch.ones(())).log_prob(x).sum()
    best = (x - loc).square().mean().sqrt()
    torch.testing.assert_close(total, dist.Normal(loc, best).log_prob(x).sum())
    for factor in (0.9, 1.1):
        assert total > dist.Normal(loc, best * factor).log_prob(x).sum()


def test_gradient_of_the_sum_is_that_of_the_profile_likelihood(float64):
    loc, x = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3)
    (slope,) = torch.autograd.grad(OptimalNormal(loc, torch.ones(())).log_prob(x).sum(), loc)
    profile = -x.numel() / 2 * (x - loc).square().mean().log()  # with the scale put in, up to a constant
    (reference,) = torch.autograd.grad(profile, loc)
    torch.testing.assert_close(slope, reference)


def test_masked_entries_neither_count_nor_score():
    loc, x = torch.zeros(4, 3), torch.randn(4, 3)
    seen = torch.rand(4, 3) < 0.6
    spoiled = torch.where(seen, x, torch.tensor(1e6))
    fn = OptimalNormal(loc, ONE).mask(seen)
    scores = fn.log_prob(spoiled)
    torch.testing.assert_close(scores[seen], OptimalNormal(loc[seen], ONE).log_prob(x[seen]))
    assert (scores[~seen] == 0).all()
    torch.testing.assert_close(fn.expand([2, 4, 3]).log_prob(spoiled).sum(), 2 * scores.sum())


def test_nothing_scored_and_perfect_fits_are_finite():
    loc = torch.zeros(4, 3, requires_grad=True)
    nothing = OptimalNormal(loc, ONE).mask(torch.zeros(4, 3, dtype=torch.bool)).log_prob(torch.ones(4, 3)).sum()
    perfect = OptimalNormal(loc, ONE, floor=0.01).log_prob(torch.zeros(4, 3)).sum()
    (slope,) = torch.autograd.grad(nothing + perfect, loc)
    assert nothing == 0 and torch.isfinite(slope).all()
    torch.testing.assert_close(perfect, dist.Normal(torch.zeros(4, 3), 0.01).log_prob(torch.zeros(4, 3)).sum())


def test_reports_when_training_and_draws_with_the_given_scale():
    seen = []
    fn = OptimalNormal(torch.zeros(4, 3), torch.tensor(3.0), report=lambda total, count: seen.append((total, count)))
    fn.log_prob(torch.full((4, 3), 2.0))
    with torch.no_grad():
        fn.log_prob(torch.ones(4, 3))
    assert [(float(total), float(count)) for total, count in seen] == [(48.0, 12.0)]
    spread = fn.expand([2000, 4, 3]).sample().std()
    assert abs(float(spread) - 3.0) < 4 * 3.0 / (2 * 24000) ** 0.5  # standard error of a standard deviation
    assert fn.to_event(1).event_shape == (3,)
