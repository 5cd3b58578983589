"""Weights on likelihoods and on divergences, for stock objectives."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.handlers import anneal, rescale

pytestmark = pytest.mark.usefixtures("float64")

B = 3
DATA = {"a": torch.tensor([0.5, -1.0, 2.0]).double(), "b": torch.tensor([1.0, 0.0, 4.0]).double()}
LOC = torch.tensor([0.1, -0.4, 0.9], dtype=torch.float64)


def story() -> None:
    z = pyro.sample("z", dist.Normal(0.2, 1.3))
    w = pyro.sample("w", dist.Normal(-0.1, 0.9))
    pyro.sample("a", dist.Normal(z + w, 0.5))
    pyro.sample("b", dist.Poisson(z.exp()))


def guide(*args: Any) -> None:
    with pyro.plate("data", B):
        pyro.sample("z", dist.Normal(LOC, 0.4))
        pyro.sample("w", dist.Normal(2 * LOC, 0.3))


EPS = {"z": torch.tensor([0.3, -0.2, 1.0]).double(), "w": torch.tensor([-1.0, 0.4, 0.1]).double()}


def expected(factors: dict[str, float], beta: dict[str, float], *, analytic: bool) -> Tensor:
    """sum_m lambda_m log p(x_m | z) - sum_sites beta KL, at one draw."""
    z, w = LOC + 0.4 * EPS["z"], 2 * LOC + 0.3 * EPS["w"]
    value = factors.get("a", 1.0) * dist.Normal(z + w, 0.5).log_prob(DATA["a"])
    value = value + factors.get("b", 1.0) * dist.Poisson(z.exp()).log_prob(DATA["b"])
    for site, x, q, p in (
        ("z", z, dist.Normal(LOC, 0.4), dist.Normal(0.2, 1.3)),
        ("w", w, dist.Normal(2 * LOC, 0.3), dist.Normal(-0.1, 0.9)),
    ):
        kl = torch.distributions.kl_divergence(q, p) if analytic else q.log_prob(x) - p.log_prob(x)
        value = value - beta.get(site, 1.0) * kl
    return value.sum()


@pytest.mark.parametrize("sites", [None, ("z",)])
@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_stock_elbos(elbo: Any, sites: Any) -> None:
    model = mm.observe(story, ("a", "b"))
    beta = dict.fromkeys(("z", "w") if sites is None else sites, 0.6)
    with rescale({"a": 2.5}), anneal(0.6, sites), mm.handlers.noise(EPS):
        loss = elbo.loss(model, guide, DATA)
    analytic = isinstance(elbo, TraceMeanField_ELBO)
    torch.testing.assert_close(torch.tensor(-loss), expected({"a": 2.5}, beta, analytic=analytic))


def test_our_objective_keeps_the_rescaling() -> None:
    model = mm.observe(story, ("a", "b"))
    with rescale({"a": 2.5, "b": 0.3}), mm.handlers.noise(EPS):
        loss = mm.ELBO().loss(model, guide, DATA)
    torch.testing.assert_close(torch.tensor(-loss), expected({"a": 2.5, "b": 0.3}, {}, analytic=True))


def test_rows_may_differ() -> None:
    model, factor = mm.observe(story, ("a", "b")), torch.tensor([1.0, 3.0, 0.5])
    values = []
    for handler in (rescale({}), rescale({"a": factor})):
        with handler, mm.handlers.noise(EPS):
            values.append(mm.ELBO().per_sample(model, guide, DATA))
    z, w = LOC + 0.4 * EPS["z"], 2 * LOC + 0.3 * EPS["w"]
    torch.testing.assert_close(values[1] - values[0], (factor - 1) * dist.Normal(z + w, 0.5).log_prob(DATA["a"]))


@pytest.mark.parametrize("value", [0.0, -1.0, torch.tensor([1.0, 0.0])])
def test_weights_must_be_positive(value: Any) -> None:
    with pytest.raises(ValueError, match=r"rescale: the factor of 'a' must be > 0(.|\n)*Fix"):
        rescale({"a": value})
    with pytest.raises(ValueError, match=r"anneal: beta must be > 0(.|\n)*Fix"):
        anneal(value)
