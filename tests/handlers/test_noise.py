"""Supplied noise: loc + scale * eps, for families that have both."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_mmvae.distributions import Where
from pyro_mmvae.handlers import noise, replay

LOC, SCALE = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
EPS = torch.tensor([[0.3, -1.0], [2.0, 0.1], [0.0, 0.7]])


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
def test_location_scale_families(family: type) -> None:
    with noise({"z": EPS}), pyro.plate("data", 3):
        z = pyro.sample("z", family(LOC, SCALE).to_event(1))
    torch.testing.assert_close(z, LOC + SCALE * EPS)


def test_gradients_flow_and_densities_count() -> None:
    loc = LOC.clone().requires_grad_()
    with poutine.trace() as t, noise({"z": EPS}), pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(loc, SCALE).to_event(1))
    assert torch.autograd.grad(z.sum(), loc)[0].tolist() == [3.0, 3.0]
    torch.testing.assert_close(t.trace.log_prob_sum(), dist.Normal(LOC, SCALE).log_prob(LOC + SCALE * EPS).sum())


def test_where_and_functions_of_the_site() -> None:
    rows = torch.tensor([True, False, True])
    q = Where(rows, dist.Normal(LOC, SCALE).to_event(1), dist.Normal(torch.zeros(2), 1.0).to_event(1))
    seen = []

    def eps(fn: dist.TorchDistribution) -> torch.Tensor:
        seen.append(fn.batch_shape)
        return EPS

    with noise({"z": eps}), pyro.plate("data", 3):
        z = pyro.sample("z", q)
    torch.testing.assert_close(z, torch.where(rows.unsqueeze(-1), LOC + SCALE * EPS, EPS))
    assert seen == [torch.Size([3])]


def test_every_row_gets_its_own_draw_also_of_a_shared_distribution() -> None:
    with noise({"z": lambda fn: torch.arange(3.0)}), pyro.plate("data", 3):
        assert pyro.sample("z", dist.Normal(0.0, 2.0)).tolist() == [0.0, 2.0, 4.0]


def test_observed_done_and_other_sites_are_left_alone() -> None:
    with noise({"x": EPS, "z": torch.zeros(())}):
        assert pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(5.0)) == 5
        with replay({"z": torch.tensor(9.0)}):
            assert pyro.sample("z", dist.Normal(1.0, 1.0)) == 9
        assert pyro.sample("z", dist.Normal(1.0, 1.0)) == 1
        assert pyro.sample("w", dist.Normal(0.0, 1.0)) != 0


def test_other_families_are_refused() -> None:
    with noise({"z": EPS}), pytest.raises(NotImplementedError, match=r"noise: Gamma is no location-scale family\. Fix"):
        pyro.sample("z", dist.Gamma(1.0, 1.0))
