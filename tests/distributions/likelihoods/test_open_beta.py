"""The Beta on the open interval, against scipy."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch.distributions import biject_to

from pyro_mmvae.distributions import fill_value
from pyro_mmvae.distributions.likelihoods import OpenBeta, open_unit_interval


def test_equals_scipy(float64):
    a, b, x = torch.tensor([0.3, 2.0, 40.0]), torch.tensor([0.7, 5.0, 3.0]), torch.tensor([0.01, 0.4, 0.95])
    reference = torch.as_tensor(stats.beta.logpdf(x.numpy(), a.numpy(), b.numpy()))
    torch.testing.assert_close(OpenBeta(a, b).log_prob(x), reference)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_ends_are_outside(end):
    with pytest.raises(ValueError, match="support"):
        OpenBeta(torch.ones(2), torch.ones(2)).log_prob(torch.tensor([0.5, end]))


def test_draws_are_inside_even_where_they_round_to_an_end():
    fn = OpenBeta(torch.full((500,), 1e-3), torch.full((500,), 1e-3)).expand([2, 500])
    draws = fn.sample()
    assert open_unit_interval.check(draws).all()
    assert torch.isfinite(fn.log_prob(draws)).all()
    assert isinstance(fn, OpenBeta)


def test_constraint_maps_and_fills():
    x = biject_to(open_unit_interval)(torch.randn(5))
    assert open_unit_interval.check(x).all()
    assert fill_value(open_unit_interval, torch.Size([2])).item() == 0.5
