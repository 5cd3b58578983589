"""``fit`` trains an AutoGuide that was never run."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

import pyro_mmvae as mm
from pyro_mmvae.training.lazy import make_parameters


class Means(nn.Module):
    """mu ~ N(0, 1), one for all rows; x_n ~ N(mu, 1)."""

    def forward(self, data=None, obs_mask=None, n=None):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(data["x"]), dim=-1):
            with mm.handlers.observe(data, obs_mask, ["x"]):
                pyro.sample("x", dist.Normal(mu.unsqueeze(-1), 1.0).to_event(1))


class Nothing(nn.Module):
    def forward(self, data=None, obs_mask=None, n=None):
        """No latents of samples."""


def pair():
    model = Means()
    auto = AutoNormal(poutine.block(model, expose=["mu"]), init_scale=0.5)
    return mm.MultimodalVAE(model, mm.guides.WithGlobals(auto, Nothing())), auto


@pytest.mark.param_store  # where AutoGuides keep their parameters
def test_the_posterior_of_a_global_mean_is_found():
    n, seen = 40, 30
    x = 1.0 + torch.randn(n, 1)
    ds = mm.MultimodalDataset({"x": x}, {"x": torch.arange(n) < seen})
    vae, auto = pair()
    rates = {"lr": 0.05, "scheduler": lambda optimizer: ExponentialLR(optimizer, 0.99)}  # down to 7e-3
    mm.fit(vae, ds, epochs=200, batch_size=n, progress=False, seed=0, **rates)
    precision = 1 + seen  # conjugate: the posterior's scale is 0.18, found from 0.5 on
    # one draw of mu per step, averaged over about a hundred: twice a tenth of the posterior's scale
    assert abs(float(auto.locs.mu.detach()) - float(x[:seen].sum()) / precision) < 0.04
    assert 0.15 < float(auto.scales.mu.detach()) < 0.27


@pytest.mark.param_store  # where AutoGuides keep their parameters
def test_making_parameters_leaves_the_random_state_and_modes():
    ds = mm.MultimodalDataset({"x": torch.randn(5, 1)})
    vae, auto = pair()
    before, mode = torch.get_rng_state(), vae.training
    make_parameters(vae, ds, 2, torch.device("cpu"))
    assert {name.partition("_")[0] for name, _ in auto.named_parameters()} == {"locs.mu", "scales.mu"}
    assert torch.equal(before, torch.get_rng_state()) and vae.training == mode
