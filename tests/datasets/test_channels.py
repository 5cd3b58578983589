"""Synthetic channels: standardized columns, their rank, the noise, and the closed forms that come along."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_mmvae.datasets import channels

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("snr", [10.0, None])
def test_columns_are_standardized(snr: float | None) -> None:
    ds = channels(200, 4, size=5, latent_dim=3, snr=snr)
    assert list(ds.data) == ["x1", "x2", "x3", "x4"] and len(ds) == 200 and ds.labels.shape == (200, 3)
    for x in ds.data.values():
        assert x.shape == (200, 5)
        torch.testing.assert_close(x.mean(0), torch.zeros(5))
        torch.testing.assert_close(x.square().mean(0), torch.ones(5))


def test_channels_without_noise_share_the_latent_exactly() -> None:
    ds = channels(100, latent_dim=2, snr=None)
    x = torch.cat(list(ds.data.values()), -1)
    values = torch.linalg.svdvals(x)
    assert (values[:2] > 1).all() and (values[2:] < 1e-9).all() and ds.truth is None
    z = torch.cat([ds.labels, torch.ones(100, 1)], -1)
    fitted = z @ torch.linalg.lstsq(z, x).solution
    torch.testing.assert_close(fitted, x)


def test_noise_has_the_given_share_of_the_variance() -> None:
    n, snr = 20_000, 4.0
    ds = channels(n, 1, snr=snr, seed=3)
    z = torch.cat([ds.labels, torch.ones(n, 1)], -1)
    x = ds.data["x1"]
    residual = (x - z @ torch.linalg.lstsq(z, x).solution).square().mean(0)
    # residual variance 1/5: its standard error is 0.2 sqrt(2/n) = 0.002
    torch.testing.assert_close(residual, torch.full((4,), 1 / (1 + snr)), rtol=0, atol=0.01)


def test_closed_forms_are_those_of_the_standardized_data() -> None:
    n = 5000
    ds = channels(n, 2, size=3, snr=5.0, seed=1)
    weights = torch.cat(list(ds.truth.weights.values()))
    noise = torch.cat(list(ds.truth.noise.values()))
    covariance = weights @ weights.T + noise.square().diag()
    exact = MultivariateNormal(torch.cat(list(ds.truth.bias.values())), covariance)
    x = torch.cat(list(ds.data.values()), -1)
    torch.testing.assert_close(ds.truth.log_likelihood(ds.data), exact.log_prob(x))
    # entries of an empirical correlation matrix have standard error about n^-1/2 = 0.014
    torch.testing.assert_close(x.T @ x / n, covariance, rtol=0, atol=0.07)
    residual = x - ds.labels @ weights.T - exact.mean
    torch.testing.assert_close(residual.square().mean(0), noise.square(), rtol=0.1, atol=0)  # 5 s.e. of sqrt(2/n)


def test_maps_are_orthonormal() -> None:
    ds = channels(300, 3, size=2, latent_dim=2, snr=None, seed=2)
    z = torch.cat([ds.labels, torch.ones(300, 1)], -1)
    for x in ds.data.values():  # the rows of a square U over the columns' deviations are still orthogonal
        first, second = torch.linalg.lstsq(z, x).solution[:2].T
        assert abs(float(first @ second)) < 1e-9 * float(first.norm() * second.norm())
        lengths = torch.stack([first.norm(), second.norm()])
        torch.testing.assert_close(1 / lengths, (ds.labels @ (torch.stack([first, second]).T / lengths)).std(0, False))


def test_the_seed_decides_and_the_global_state_stays() -> None:
    state = torch.get_rng_state()
    a, b, c = channels(seed=1), channels(seed=1), channels(seed=2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.data["x2"], b.data["x2"]) and not torch.equal(a.data["x2"], c.data["x2"])


def test_values_have_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float32)
    ds = channels(20)
    assert ds.data["x1"].dtype == ds.labels.dtype == torch.float32
    assert ds.truth.weights["x1"].dtype == torch.float64


def test_errors() -> None:
    for options in ({"n": 1}, {"num_channels": 0}, {"latent_dim": 0}, {"latent_dim": 5}):
        with pytest.raises(ValueError, match=r"expected n >= 2, num_channels >= 1 and 1 <= latent_dim <= size, got n="):
            channels(**options)
    for snr in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="snr: expected a ratio of variances > 0, or None"):
            channels(snr=snr)
