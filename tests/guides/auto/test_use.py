"""Guides made from stories in use: verbs, fit, saving, devices.

Test layer: shapes and equality.
"""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_mmvae as mm
from tests.guides.auto.problem import Chain, Factors, linear_gaussian

pytestmark = pytest.mark.usefixtures("float64")


class TestUse:
    def test_verbs(self) -> None:
        model, data, obs_mask = linear_gaussian()
        vae = mm.MultimodalVAE(model, mm.guides.auto(model))
        assert vae.impute(data, obs_mask, num_samples=3)["a"].shape == (3, 64, 4)
        assert vae.log_likelihood(data, obs_mask, target={"a"}, num_particles=10).shape == (64,)
        assert vae.generate(5)["b"].shape == (5, 2)
        assert "Auto" in repr(vae)
        assert vae.config["guide"]["was"] == "Auto"

    def test_posteriors_of_dependent_latents(self) -> None:
        model = mm.observe(Chain(), ("x", "y"), private={"w": "y"})
        vae = mm.MultimodalVAE(model, mm.guides.auto(model))
        q = vae.posterior({"x": torch.randn(4, 2), "y": torch.randn(4, 2)}, latents="all")
        assert set(q) == {"z1", "z2", "w"}
        assert all(fn.sample((3,)).shape[:2] == (3, 4) for fn in q.values())

    def test_fit(self) -> None:
        model, data, obs_mask = linear_gaussian()
        ds = mm.MultimodalDataset(data, obs_mask)
        vae = mm.MultimodalVAE(model, mm.guides.auto(model))
        history = mm.fit(vae, ds, epochs=2, batch_size=32, progress=False, seed=0)
        assert all(torch.tensor(history["loss"]).isfinite())

    def test_save_and_load(self, tmp_path: Path) -> None:
        model, data, obs_mask = linear_gaussian()
        vae = mm.MultimodalVAE(model, mm.guides.auto(model, data=data))
        vae.save(tmp_path / "vae")
        other = mm.observe(Factors(), ("a", "b"))
        again = mm.load(tmp_path / "vae", story=other, guide=mm.guides.auto(other))
        z = torch.randn(64, 3)
        found = again.posterior(data, obs_mask).log_prob(z)
        assert torch.equal(found, vae.posterior(data, obs_mask).log_prob(z))
        assert again.guide.vectorized

    def test_scale_is_settled_by_the_first_training_batch(self) -> None:
        story = mm.stories.Shared({"x": mm.nn.MLPDecoder(2, 2)}, mm.stories.NormalPrior(2))
        model = mm.observe(story, ("x",))
        guide = mm.guides.auto(model)
        assert not guide.vectorized
        x = 1000 + 300 * torch.randn(64, 2)
        mm.ELBO().differentiable_loss(model, guide, {"x": x}).backward()
        assert guide.vectorized
        torch.testing.assert_close(guide.parts.channels["x"].loc, x.mean(0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_follows_the_dtype_of_the_story(self, dtype: torch.dtype) -> None:
        model = mm.observe(Factors().to(dtype), ("a", "b"))
        guide = mm.guides.auto(model)
        assert all(p.dtype == dtype for p in guide.parameters())

    def test_tensors_are_made_where_the_story_is(self) -> None:
        model, data, obs_mask = linear_gaussian()
        torch.set_default_device("meta")  # a tensor created without a device would have no content
        try:
            guide = mm.guides.auto(model, data=data)
            loss = mm.ELBO().differentiable_loss(model, guide, data, obs_mask)
            loss.backward()
        finally:
            torch.set_default_device(None)
        assert {x.device.type for x in (loss, *guide.parameters(), *guide.buffers())} == {"cpu"}

    def test_what_an_observed_model_knows_is_not_said_again(self) -> None:
        model = mm.observe(Factors(), ("a", "b"))
        assert mm.guides.auto(model, ("a", "b")).observed is model
        with pytest.raises(ValueError, match="leave them out"):
            mm.guides.auto(model, ("a",))
        with pytest.raises(ValueError, match="hidden"):
            mm.guides.auto(model, hidden=())

    def test_needs_modalities(self) -> None:
        with pytest.raises(ValueError, match="modalities"):
            mm.guides.auto(Factors())

    def test_global_state_is_left_alone(self) -> None:
        before = torch.random.get_rng_state()
        model = mm.observe(Factors(), ("a", "b"))
        torch.random.set_rng_state(before)
        mm.guides.auto(model)
        assert not pyro.get_param_store().keys()


class TestStories:
    def test_a_story_that_stops_is_told_where_and_what_to_try(self) -> None:
        def forgotten_event() -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1))

        def covariate_from_the_right(age: torch.Tensor) -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + age, 1.0).to_event(1))

        with pytest.raises(ValueError, match="Shape mismatch") as found:
            mm.guides.auto(forgotten_event, ("x",))
        assert "\n1. .to_event(1)" in found.value.__notes__[0]
        with pytest.raises(RuntimeError, match="size of tensor") as other:
            mm.guides.auto(covariate_from_the_right, ("x",), data={"x": torch.randn(9, 2), "age": torch.randn(9)})
        assert "after site 'z'" in other.value.__notes__[0]

    def test_bounds_may_be_latents(self) -> None:
        def story() -> None:
            a = pyro.sample("a", dist.Pareto(torch.ones(2), 3.0).to_event(1))
            b = pyro.sample("b", dist.Uniform(torch.zeros(2), a).to_event(1))
            pyro.sample("y", dist.Normal(b, 0.3).to_event(1))

        vae = mm.MultimodalVAE(mm.observe(story, ("y",)), mm.guides.auto(story, ("y",)))
        draws = vae.predict({"y": torch.rand(7, 2)}, num_samples=20, return_latents=True)
        assert draws["a"].min() > 1.0 and bool((draws["b"] < draws["a"]).all())
        assert bool(vae.log_likelihood({"y": torch.rand(7, 2)}, num_particles=20).isfinite().all())
