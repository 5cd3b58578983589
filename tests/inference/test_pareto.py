"""Pareto's k against ArviZ and against known tails."""

from __future__ import annotations

import pytest
import torch

from pyro_mmvae.inference._pareto import pareto_k, tail_length

pytestmark = pytest.mark.usefixtures("float64")


def largest(w: torch.Tensor) -> torch.Tensor:
    return w.topk(min(tail_length(len(w)) + 1, len(w)), 0).values


@pytest.mark.parametrize("count", [30, 200, 1000, 5000])
def test_equals_arviz(count):
    az = pytest.importorskip("arviz")
    if not hasattr(az, "psislw"):
        pytest.skip("ArviZ 1.x has no psislw")
    w = torch.randn(count, 6) * torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])
    exact = torch.as_tensor(az.psislw(w.T.numpy())[1])
    torch.testing.assert_close(pareto_k(largest(w), count), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_known_tails(k):
    u = torch.rand(40_000, 20)
    w = -k * u.log()  # log of a Pareto variable with shape k
    found = pareto_k(largest(w), 40_000)
    assert abs(found.mean() - k) < 0.05


def test_constant_weights_and_few():
    assert pareto_k(largest(torch.zeros(100, 2)), 100).isnan().all()
    assert pareto_k(largest(torch.randn(10, 2)), 10).isinf().all()
    assert pareto_k(largest(torch.zeros(10, 2)), 10).isnan().all()
