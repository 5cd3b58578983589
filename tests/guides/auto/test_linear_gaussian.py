"""Guides made from stories against linear-Gaussian closed forms, under every mask.

Test layer: references are dense Gaussian algebra.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_mmvae as mm
from tests.guides.auto.problem import Data, Factors, Masks, exact, gap, linear_gaussian, trained

pytestmark = pytest.mark.usefixtures("float64")


class TestLinearGaussian:
    def test_starts_near_the_exact_posterior_for_per_feature_masks(self) -> None:
        model, data, obs_mask = linear_gaussian()
        guide = mm.guides.auto(model)
        x = torch.cat([data["a"], data["b"]], -1)
        seen = torch.cat([obs_mask["a"], obs_mask["b"].unsqueeze(-1).expand(-1, 2)], -1)
        found = gap(model, guide, data, obs_mask, exact(model.story.program.weight, x, seen))
        # a regression on 2,048 draws: relative errors of weights of about 1 / sqrt(2048), squared in the divergence
        assert found.mean() < 0.02
        assert found.mean() > -0.01

    def test_training_keeps_it_there(self) -> None:
        model, data, obs_mask = linear_gaussian()
        guide = mm.guides.auto(model)
        x = torch.cat([data["a"], data["b"]], -1)
        seen = torch.cat([obs_mask["a"], obs_mask["b"].unsqueeze(-1).expand(-1, 2)], -1)

        def draw() -> tuple[Data, Masks]:
            fresh = mm.inference.generate(model, None, 128)
            return fresh, {"a": torch.rand(128, 4) > 0.3, "b": torch.rand(128) > 0.4}

        trained(model, guide, draw, 150)
        assert gap(model, guide, data, obs_mask, exact(model.story.program.weight, x, seen)).mean() < 0.02

    def test_learns_where_the_start_is_lost(self) -> None:
        """Factors of no use: the networks alone must find the posterior."""
        model, data, obs_mask = linear_gaussian()
        guide = mm.guides.auto(model)
        x = torch.cat([data["a"], data["b"]], -1)
        seen = torch.cat([obs_mask["a"], obs_mask["b"].unsqueeze(-1).expand(-1, 2)], -1)
        log_p = exact(model.story.program.weight, x, seen)
        with torch.no_grad():
            for p in guide.parts.factors.parameters():
                p.zero_()
        before = gap(model, guide, data, obs_mask, log_p).mean()

        def draw() -> tuple[Data, Masks]:
            fresh = mm.inference.generate(model, None, 128)
            return fresh, {"a": torch.rand(128, 4) > 0.3, "b": torch.rand(128) > 0.4}

        trained(model, guide, draw, 150)
        assert gap(model, guide, data, obs_mask, log_p).mean() < 0.3 * before

    @pytest.mark.parametrize("latent", [3, 30], ids=["full", "diagonal"])
    def test_wide_latents_have_no_correlations(self, latent: int) -> None:
        model = mm.observe(Factors(latent), ("a", "b"))
        guide = mm.guides.auto(model, flow=0)
        q = mm.inference.posterior(model, guide, {"a": torch.randn(4, 4)})
        assert q.first.diagonal == (latent == 30)
        assert q.mean.shape == q.variance.shape == (4, latent)

    def test_flow_false_is_the_exact_normal(self) -> None:
        model, data, _ = linear_gaussian()
        guide = mm.guides.auto(model, flow=False)
        weight = model.story.program.weight
        precision = torch.eye(3) + weight.T @ weight / 0.36
        mean = torch.cat([data["a"], data["b"]], -1) @ weight / 0.36 @ precision.inverse()
        q = mm.inference.posterior(model, guide, data)
        assert (q.mean - mean).abs().max() < 0.15  # standard errors of a regression on 2,048 draws
        assert (q.variance - precision.inverse().diagonal()).abs().max() < 0.03

    def test_stock_svi_trains_it(self) -> None:
        model, data, obs_mask = linear_gaussian()
        guide = mm.guides.auto(model)
        before = guide.parts.factors.weight.detach().clone()
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        assert svi.step(data, obs_mask) > 0
        assert not torch.equal(before, guide.parts.factors.weight)
        pyro.clear_param_store()


class TestMasks:
    def test_nothing_observed_is_the_prior_exactly(self) -> None:
        model, data, _ = linear_gaussian()
        guide = mm.guides.auto(model)
        nn.init.normal_(guide.parts.heads["z"].net[-1].weight)
        nothing = {m: torch.zeros(64, dtype=torch.bool) for m in ("a", "b")}
        q = mm.inference.posterior(model, guide, data, nothing)
        z = torch.randn(64, 3)
        assert torch.equal(q.log_prob(z), dist.Normal(torch.zeros(64, 3), 1.0).to_event(1).log_prob(z))
        assert torch.equal(mm.ELBO().per_sample(model, guide, data, nothing), torch.zeros(64))

    @pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30], ids=str)
    def test_masked_content_never_matters(self, junk: float) -> None:
        model, data, obs_mask = linear_gaussian()
        guide = mm.guides.auto(model)
        wide = {"a": obs_mask["a"], "b": obs_mask["b"].unsqueeze(-1).expand(-1, 2)}
        losses, gradients = [], []
        for value in (0.0, junk):
            guide.zero_grad()
            torch.manual_seed(1)
            own = {m: torch.where(wide[m], x, value) for m, x in data.items()}
            loss = mm.ELBO().differentiable_loss(model, guide, own, obs_mask)
            loss.backward()
            losses.append(loss)
            gradients.append(guide.parts.factors.weight.grad.clone())
        assert torch.equal(*losses)
        assert torch.equal(*gradients)

    def test_rows_are_independent(self) -> None:
        model, data, obs_mask = linear_gaussian()
        guide = mm.guides.auto(model)
        z = torch.randn(64, 3)
        whole = mm.inference.posterior(model, guide, data, obs_mask).log_prob(z)
        part = mm.inference.posterior(
            model, guide, {m: x[5:9] for m, x in data.items()}, {m: x[5:9] for m, x in obs_mask.items()}
        ).log_prob(z[5:9])
        torch.testing.assert_close(part, whole[5:9])

    def test_leading_mask_dimensions_equal_single_calls(self) -> None:
        model, data, obs_mask = linear_gaussian()
        guide = mm.guides.auto(model, data=data)
        batch, masks = model.prepare(data, obs_mask)
        rows = torch.stack([masks.rows["a"], masks.rows["b"]], -1)
        table = torch.stack([rows, rows & torch.tensor([True, False]), rows & torch.tensor([False, True])])
        programs = mm.objectives.passes.Programs(model, guide, batch, masks, ("a", "b"), 1, 1)
        z = torch.randn(64, 3)
        many = programs.run_guide(programs.masks(table), 3, values={"z": z.expand(3, 64, 3)})
        assert guide.vectorized
        for u in range(3):
            one = programs.run_guide(programs.masks(table[u : u + 1]), 1, values={"z": z})
            found = many.nodes["z"]["fn"].log_prob(z)[u]
            torch.testing.assert_close(found, one.nodes["z"]["fn"].log_prob(z))

    def test_tables_of_terms_and_importance_weights(self) -> None:
        model, data, obs_mask = linear_gaussian()
        guide = mm.guides.auto(model, data=data)
        x = torch.cat([data["a"], data["b"]], -1)
        seen = torch.cat([obs_mask["a"], obs_mask["b"].unsqueeze(-1).expand(-1, 2)], -1)
        log_p = exact(model.story.program.weight, x, seen)
        found = mm.inference.log_likelihood(model, guide, data, obs_mask, num_particles=500)
        torch.testing.assert_close(found, log_p, atol=0.1, rtol=0)
        for gradient in ("path", "stl", "dreg"):
            assert mm.IWAE(num_particles=3, gradient=gradient).differentiable_loss(model, guide, data, obs_mask) > 0
        terms = mm.Terms([mm.Term(), mm.Term(mm.objectives.Each(), mm.objectives.Observed())])
        assert mm.ELBO(terms).per_sample(model, guide, data, obs_mask).isfinite().all()
