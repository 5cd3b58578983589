"""Laws 8 and 10: same seed same value, training changes parameters, types and devices follow them, nothing else moves.

Test layer.
"""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam

import pyro_mmvae as mm
from pyro_mmvae.distributions import stand_ins
from tests.conformance.cases import Case
from tests.conformance.evaluate import gradients, last_subset, value

ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-11}  # relative, of sums of dozens of terms of order ten


@pytest.mark.law("same seed")
def test_same_seed_same_value(case: Case) -> None:
    p = case.make(per_feature=True)
    one, other = case.vae(p, lazy=True), case.vae(p, lazy=True)
    first = value(one, p.data, p.obs_mask, seed=1)
    assert torch.equal(value(one, p.data, p.obs_mask, seed=1), first)
    assert torch.equal(value(other, p.data, p.obs_mask, seed=1), first)
    assert not torch.equal(value(one, p.data, p.obs_mask, seed=2), first)


@pytest.mark.law("trains")
@pytest.mark.param_store
def test_svi_with_the_objective_changes_every_parameter(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    before = {name: w.detach().clone() for name, w in vae.named_parameters()}
    clock = vae.objective.step
    svi = SVI(vae.model, vae.guide, ClippedAdam({"lr": 1e-3}), vae.objective)
    losses = [svi.step(p.data, p.obs_mask) for _ in range(4)]
    assert all(torch.tensor(losses).isfinite())
    assert vae.objective.step == clock + 4
    for name, w in vae.named_parameters():
        assert not torch.equal(w, before[name]), name


@pytest.mark.law("trains")
def test_a_torch_optimizer_lowers_the_loss(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.05)

    def level() -> float:
        with torch.no_grad():
            return -sum(float(value(vae, p.data, p.obs_mask, seed=s).sum()) for s in range(5))

    start = level()
    for _ in range(10):
        optimizer.zero_grad()
        vae.objective.differentiable_loss(vae.model, vae.guide, p.data, p.obs_mask).backward()
        optimizer.step()
    assert level() < start
    assert not pyro.get_param_store().keys()


@pytest.mark.law("global state")
def test_evaluation_leaves_no_trace(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    clock, modes = vae.objective.step, {name: m.training for name, m in vae.named_modules()}
    vae.objective.loss(vae.model, vae.guide, p.data, p.obs_mask)
    vae.objective.differentiable_loss(vae.model, vae.guide, p.data, p.obs_mask).backward()
    assert not pyro.get_param_store().keys()
    assert vae.objective.step == clock
    assert {name: m.training for name, m in vae.named_modules()} == modes


@pytest.mark.law("global state")
def test_validation_does_not_change_the_value(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    with_validation = value(vae, p.data, p.obs_mask)
    with pyro.validation_enabled(False):
        without = value(vae, p.data, p.obs_mask)
    assert torch.equal(with_validation, without)


@pytest.mark.law("dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
def test_types_follow_the_parameters(
    case: Case, dtype: torch.dtype, per_feature: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = case.make(per_feature=per_feature)
    if case.random == "sample":
        last_subset(monkeypatch)
    wanted = value(case.vae(p), p.data, p.obs_mask, p.noise(case.vae(p).objective.num_particles)).detach()
    vae = case.vae(p, lazy=True).to(dtype)
    other = torch.float64 if dtype == torch.float32 else torch.float32
    data = {m: x.to(dtype) for m, x in p.data.items()}
    eps = {site: e.to(dtype) for site, e in p.noise(vae.objective.num_particles).items()}
    torch.set_default_dtype(other)
    found = value(vae, data, p.obs_mask, eps)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    assert all(g.dtype == dtype for g in gradients(vae, found.sum()).values())


@pytest.mark.law("device")
@pytest.mark.param_store
@pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
def test_device_follows_the_parameters(case: Case, per_feature: bool) -> None:
    """Whatever is made on the default device would be lost: ``meta`` holds no values."""
    p = case.make(per_feature=per_feature)
    vae = case.vae(p, lazy=True)
    eps = p.noise(vae.objective.num_particles)
    reference = None if case.random else value(vae, p.data, p.obs_mask, eps)
    try:
        torch.set_default_device("meta")
        with mm.handlers.noise(eps):
            found = vae.objective.per_sample(vae.model, vae.guide, p.data, p.obs_mask)
            own = vae.objective.per_sample(vae.model, vae.guide, {m: p.complete[m] for m in ("a", "b")})
        loss = mm.ELBO().differentiable_loss(vae.model, vae.guide, p.data, p.obs_mask)
        with stand_ins():  # some priors cannot be drawn from
            trace = pyro.poutine.trace(vae.model).get_trace(p.data, p.obs_mask)
    finally:
        torch.set_default_device(None)
    assert {found.device.type, own.device.type, loss.device.type} == {"cpu"}
    assert {trace.nodes[m]["value"].device.type for m in p.modalities} == {"cpu"}
    assert own.isfinite().all()
    if reference is not None:  # else the table of terms is another one
        assert torch.equal(found, reference)
        wanted = gradients(vae, reference.sum())
        assert all(torch.equal(g, wanted[name]) for name, g in gradients(vae, found.sum()).items())
