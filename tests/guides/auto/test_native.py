"""Guides made from native models: global sites, plates inside a sample, masks of Pyro.

Test layer: references are dense Gaussian algebra.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn

import pyro_mmvae as mm
from tests.guides.auto.problem import exact, gap, trained

pytestmark = pytest.mark.usefixtures("float64")


class Native(nn.Module):
    """mu -> z_n -> x_n, with a plate of its own."""

    def forward(self, data: Any, obs_mask: Any = None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 0.1).to_event(1))
        with pyro.plate("data", len(data["x"])), mm.handlers.observe(data, obs_mask, ["x"]):
            z = pyro.sample("z", dist.Normal(mu.unsqueeze(-1).expand(*mu.shape, 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1))


class TestNative:
    @pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
    def test_global_sites_have_a_guide_of_their_own(self, kind: Any) -> None:
        data, obs_mask = {"x": torch.randn(40, 2) + 1}, {"x": torch.rand(40) > 0.2}
        guide = mm.guides.auto(Native(), data=data, obs_mask=obs_mask, global_guide=kind)
        model = Native()
        trace = poutine.trace(guide).get_trace(data, obs_mask)
        assert trace.nodes["mu"]["value"].shape == ()
        assert trace.nodes["z"]["value"].shape == (40, 2)
        assert guide.parts.measure.views["z"].outer == ("mu", "scale")
        trained(model, guide, lambda: (data, obs_mask), 20)
        draws = mm.inference.predict(model, guide, data, obs_mask, num_samples=5, return_latents=True)
        assert draws["x"].shape == (5, 40, 2)
        assert draws["mu"].shape == (5,)
        assert Trace_ELBO().loss(model, guide, data, obs_mask) > 0
        pyro.clear_param_store()

    def test_global_sites_are_exact_in_the_limit(self) -> None:
        """One global mean, one latent of each row: all Gaussian, so that the whole bound is tight but for training."""

        def model(data: Any, obs_mask: Any = None) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(data["x"])), mm.handlers.observe(data, obs_mask, ["x"]):
                z = pyro.sample("z", dist.Normal(mu, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5))

        data = {"x": torch.randn(30) + 0.7}
        guide = mm.guides.auto(model, data=data)
        precision = 1 + 30 / 1.25
        center = data["x"].sum() / 1.25 / precision
        with torch.no_grad():
            guide.outer.locs.mu_unconstrained.copy_(center)
            guide.outer.scales.mu_unconstrained.copy_(
                torch.distributions.transform_to(guide.outer.scale_constraint).inv(torch.tensor(precision**-0.5))
            )
        cov = 1.25 * torch.eye(30) + torch.ones(30, 30)
        log_p = dist.MultivariateNormal(torch.zeros(30), cov).log_prob(data["x"])
        with torch.no_grad():
            bound = -sum(mm.ELBO().differentiable_loss(model, guide, data) for _ in range(200)) / 200
        assert -0.1 < log_p - bound < 0.3  # of 30 rows together

    def test_models_with_masks_of_pyro(self) -> None:
        def model(data: Any, obs_mask: Any) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(data["x"])):
                z = pyro.sample("z", dist.Normal(mu, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=data["x"], obs_mask=obs_mask["x"])

        data, obs_mask = {"x": torch.randn(30)}, {"x": torch.rand(30) > 0.3}
        native = mm.handlers.marginalize_missing(model)
        guide = mm.guides.auto(native, data=data, obs_mask=obs_mask)
        assert list(guide.parts.measure.sizes) == ["z"]
        trace = poutine.trace(guide).get_trace(data, obs_mask)
        assert {"mu", "z"} <= set(trace.nodes) and not {"x", "x_unobserved"} & set(trace.nodes)
        assert mm.ELBO().differentiable_loss(native, guide, data, obs_mask) > 0
        pyro.clear_param_store()

    @pytest.mark.parametrize("handler", [True, False], ids=["observe", "obs_mask"])
    def test_plates_inside_a_sample(self, handler: bool) -> None:
        """Five visits of each row, masked one by one: all Gaussian."""

        def model(data: Any, obs_mask: Any) -> None:
            with pyro.plate("data", len(data["v"]), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with pyro.plate("visits", 5, dim=-2):
                    if handler:
                        with mm.handlers.observe(data, obs_mask, ["v"]):
                            pyro.sample("v", dist.Normal(z, 0.5))
                    else:
                        seen = obs_mask["v"] if obs_mask["v"].dim() == 1 else obs_mask["v"].mT
                        pyro.sample("v", dist.Normal(z, 0.5), obs=data["v"].mT, obs_mask=seen)

        data = {"v": torch.randn(200, 1) + 0.5 * torch.randn(200, 5)}
        obs_mask = {"v": torch.rand(200, 5) > 0.4}
        native = model if handler else mm.handlers.marginalize_missing(model)
        guide = mm.guides.auto(native, data=data, obs_mask=obs_mask)
        seen = obs_mask["v"]
        log_p = exact(torch.ones(5, 1), data["v"], seen, 0.5)
        assert gap(native, guide, data, obs_mask, log_p).mean() < 0.03
        pyro.clear_param_store()

    def test_unmarked_models_are_refused(self) -> None:
        def model(data: Any, obs_mask: Any = None) -> None:
            with pyro.plate("data", 3):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=data["x"])

        with pytest.raises(ValueError, match="marks no modality"):
            mm.guides.auto(model, data={"x": torch.zeros(3)})

    def test_batches_of_a_larger_data_set(self) -> None:
        """The local part counts N / B times in both programs, the global part once."""
        model = mm.stories.examples.Hospitals(size=80)
        ds = model.simulate(80)
        guide = mm.guides.auto(model, data=ds)
        whole = mm.stories.examples.Hospitals()
        part = ds[:40]
        rest = ds[40:]
        with torch.no_grad():
            halves = [
                sum(mm.ELBO().differentiable_loss(model, guide, half.data, half.obs_mask) for _ in range(60)) / 60
                for half in (part, rest)
            ]
            full = sum(mm.ELBO().differentiable_loss(whole, guide, ds.data, ds.obs_mask) for _ in range(60)) / 60
        # untrained global parts: each loss varies by a few per cent over their draws
        torch.testing.assert_close(sum(halves) / 2, full, rtol=0.15, atol=0)

    def test_needs_data(self) -> None:
        with pytest.raises(ValueError, match="native model"):
            mm.guides.auto(Native())
