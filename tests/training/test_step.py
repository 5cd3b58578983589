"""One step: its gradient, its units, clipping, and which parameters it trains."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.training import fit
from tests.training import cases

QUIET = {"progress": False, "seed": 0}


def test_one_step_equals_the_loop_written_by_hand():
    ds = cases.data(6)
    vae, twin = cases.vae(), cases.vae()
    fit(vae, ds, epochs=1, batch_size=6, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **QUIET)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = ds[order]
        (twin.objective.differentiable_loss(twin.model, twin.guide, batch.data, batch.obs_mask) / 6).backward()
    optimizer.step()
    for name, p in twin.named_parameters():
        torch.testing.assert_close(dict(vae.named_parameters())[name], p, rtol=1e-6, atol=1e-7)


def test_a_model_of_known_size_has_the_same_loss_per_row():
    class Sized(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.model = mm.observe(self.story, ("x",), size=size, modules={})
            self.guide = mm.guides.Product(self.model, {"x": mm.nn.MLPEncoder(1, 1, hidden=())})
            self.objective = mm.ELBO()
            for p in self.guide.parameters():
                nn.init.zeros_(p)

        @staticmethod
        def story():
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    ds = MultimodalDataset({"x": torch.randn(9, 1)})
    still = {"epochs": 1, "batch_size": 3, "validation": ds, "optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    one, other = (fit(Sized(size), ds, **still, **QUIET) for size in (None, 9))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert one["val_loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)


def test_rows_and_batches_with_nothing_observed():
    x = torch.randn(4, 2)
    ds = MultimodalDataset({"a": x, "b": torch.randn(4, 3)}, {m: torch.tensor([True] + 3 * [False]) for m in "ab"})
    history = fit(cases.vae(), ds, epochs=2, batch_size=1, clip_norm=1.0, **QUIET)
    assert all(math.isfinite(loss) for loss in history["loss"])


def test_clipping_bounds_the_step():
    ds = cases.data(16)

    def moved(clip_norm):
        vae = cases.vae()
        before = cases.weights(vae)
        sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=1.0)}
        fit(vae, ds, epochs=1, batch_size=16, clip_norm=clip_norm, **sgd, **QUIET)
        after = cases.weights(vae)
        return torch.cat([(after[k] - before[k]).flatten() for k in before])

    free, clipped, loose = moved(None), moved(0.01), moved(1e6)
    assert free.norm() > 0.1
    torch.testing.assert_close(clipped.norm(), torch.tensor(0.01), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loose, free)


def test_default_optimizer_is_fused_adam_at_the_given_rate():
    seen = []
    fit(cases.vae(), cases.data(), epochs=1, lr=0.03, callbacks=[lambda e, s: seen.append(s.optimizer)], **QUIET)
    assert isinstance(seen[0], torch.optim.Adam)
    assert seen[0].defaults["fused"] is True
    assert seen[0].defaults["lr"] == 0.03


def test_frozen_parameters_stay():
    vae = cases.vae()
    frozen = next(iter(vae.model.parameters()))
    frozen.requires_grad_(False)
    before = frozen.clone()
    fit(vae, cases.data(), epochs=1, **QUIET)
    assert torch.equal(frozen, before)


class WithParam(nn.Module):
    """A guide whose parameter only Pyro's store knows."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.model = mm.observe(self.story, ("x",), modules={})
        self.objective = mm.ELBO()

    @staticmethod
    def story():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0))

    @staticmethod
    def guide(data=None, obs_mask=None, n=None):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(data["x"])):
            pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.param_store
def test_parameters_of_pyros_store_are_refused():
    with pytest.raises(TypeError, match=r"'loc'.*would not be trained"):
        fit(WithParam(), MultimodalDataset({"x": torch.randn(4)}), epochs=1, **QUIET)


class Custom(pyro.nn.PyroModule):
    """A story with a count, a covariate and a parameter with a constraint."""

    def __init__(self):
        super().__init__()
        self.net = pyro.nn.PyroModule[nn.Linear](2, 3)
        self.rate = pyro.nn.PyroParam(torch.tensor(1.0), dist.constraints.positive)

    def forward(self, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("n", dist.Poisson(self.rate * size.unsqueeze(-1) * self.net(z).exp()).to_event(1))


@pytest.mark.param_store
def test_parameters_of_a_custom_story_change():
    model = mm.observe(Custom(), ("n",))
    vae = mm.MultimodalVAE(model, mm.guides.Product(model, {"z": {"n": mm.nn.MLPEncoder(3, 2)}}))
    ds = MultimodalDataset({"n": torch.poisson(torch.full((20, 3), 4.0))}, covariates={"size": torch.ones(20)})
    before = cases.weights(vae)
    fit(vae, ds, epochs=2, **QUIET)
    assert set(cases.differing(before, cases.weights(vae))) == set(before)
    assert any("rate" in name for name in before)


@pytest.mark.param_store
def test_svi_after_fit_goes_on_with_the_same_parameters():
    vae, ds = cases.vae(), cases.data()
    fit(vae, ds, epochs=1, **QUIET)
    before = cases.weights(vae)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), vae.objective).step(ds.data, ds.obs_mask)
    assert set(cases.differing(before, cases.weights(vae))) == set(before)
