"""Law 5: stock Pyro trains the joint term T(O -> O || p), predicts, conditions and traces.

Test layer.
"""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.optim import ClippedAdam

import pyro_mmvae as mm
from tests.conformance.cases import Case
from tests.conformance.evaluate import gradients
from tests.conformance.exact import FAMILIES
from tests.oracles.statistics import mean_and_se, within

pytestmark = pytest.mark.param_store

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # the same sums in float64, in another order
STOCK = {
    "Trace": lambda: Trace_ELBO(),
    "Trace vectorized": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "TraceMeanField": lambda: TraceMeanField_ELBO(),
    "TraceGraph": lambda: TraceGraph_ELBO(),
    "Renyi": lambda: RenyiELBO(alpha=0, num_particles=4, vectorize_particles=True, max_plate_nesting=1),
}


def snapshot(vae: mm.MultimodalVAE) -> dict[str, torch.Tensor]:
    return {name: w.detach().clone() for name, w in vae.named_parameters()}


@pytest.mark.law("stock Pyro")
@pytest.mark.parametrize("kind", STOCK)
def test_svi_trains(case: Case, kind: str) -> None:
    p = case.make(per_feature=True)
    vae = case.vae(p, lazy=True)
    before = snapshot(vae)
    svi = SVI(vae.model, vae.guide, ClippedAdam({"lr": 1e-3}), STOCK[kind]())
    assert all(math.isfinite(svi.step(p.data, p.obs_mask)) for _ in range(2))
    after = snapshot(vae)
    assert all(w.isfinite().all() for w in after.values())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    for m in p.modalities:
        for kind_of_network in ("encoders", "decoders"):
            assert any(kind_of_network in name and f"m_{m}." in name for name in moved), f"{m}: {kind_of_network}"


@pytest.mark.law("stock Pyro = ELBO")
@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_stock_loss_is_the_joint_term(case: Case, kl: str) -> None:
    if case.is_mixture:
        return  # stock Pyro draws a component per sample, a term asks for one: see the test of mixtures
    p = case.make(per_feature=True)
    vae = case.vae(p, lazy=True)
    stock: PyroELBO = Trace_ELBO() if kl == "sampled" else TraceMeanField_ELBO()
    with mm.handlers.noise(p.noise()):
        theirs = stock.differentiable_loss(vae.model, vae.guide, p.data, p.obs_mask)
    with mm.handlers.noise(p.noise()):
        ours = mm.ELBO(kl=kl).differentiable_loss(vae.model, vae.guide, p.data, p.obs_mask)
    torch.testing.assert_close(theirs, ours, **EXACT)
    one, other = gradients(vae, theirs), gradients(vae, ours)
    for name, g in one.items():
        torch.testing.assert_close(other[name], g, rtol=1e-9, atol=1e-9)


@pytest.mark.law("stock Pyro = ELBO")
def test_stock_renyi_is_iwae(case: Case) -> None:
    if case.is_mixture:
        return
    p = case.make(per_feature=True)
    vae = case.vae(p, lazy=True)
    eps = p.noise(4)
    with mm.handlers.noise({site: e.squeeze(1) for site, e in eps.items()}):
        theirs = STOCK["Renyi"]().loss(vae.model, vae.guide, p.data, p.obs_mask)
    with mm.handlers.noise(eps):
        ours = mm.IWAE(num_particles=4).loss(vae.model, vae.guide, p.data, p.obs_mask)
    assert theirs == pytest.approx(ours, rel=1e-10)


@pytest.mark.law("stock Pyro = ELBO")
def test_a_mixture_is_drawn_and_scored_as_one(case: Case) -> None:
    if not case.is_mixture:
        return
    p = case.make(per_feature=True)
    vae, copies, batch = case.vae(p), 1000, len(p.sets)
    data = {m: x.repeat(copies, 1) for m, x in p.data.items()}
    mask = {m: a.repeat(copies, 1) for m, a in p.obs_mask.items()}
    site = poutine.trace(vae.guide).get_trace(data, mask).nodes["z"]
    z = site["value"].reshape(copies, batch, -1)
    density = site["fn"].log_prob(site["value"]).reshape(copies, batch)
    family = FAMILIES[p.family]
    spread = 2.0 if p.family == "laplace" else 1.0  # variance in units of the squared scale
    for n, parts in enumerate(case.mixture(p)):
        parts = parts if parts else case.prior_parts(p)
        scored = torch.stack([math.log(w) + family(m, s).log_prob(z[:, n]).sum(-1) for w, m, s in parts])
        torch.testing.assert_close(density[:, n], scored.logsumexp(0), **EXACT)
        mean = sum(w * m for w, m, _ in parts)
        second = sum(w * (m**2 + spread * s**2) for w, m, s in parts)
        within(*mean_and_se(z[:, n]), mean, label=f"{p.sets[n]}: mean")
        within(*mean_and_se(z[:, n] ** 2), second, label=f"{p.sets[n]}: second moment")


@pytest.mark.law("Predictive")
@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
@pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
def test_predictive_imputes(case: Case, parallel: bool, per_feature: bool) -> None:
    p = case.make(per_feature=per_feature)
    vae = case.vae(p, lazy=True)
    found = Predictive(vae.model, guide=vae.guide, num_samples=5, parallel=parallel)(p.data, p.obs_mask)
    for m, x in p.complete.items():
        draws = found[m]
        assert draws.shape == (5, *x.shape)
        assert draws.isfinite().all()
        seen = (p.obs_mask[m] if p.obs_mask[m].dim() == 2 else p.obs_mask[m].unsqueeze(-1)).expand_as(x)
        assert torch.equal(draws[:, seen], x[seen].expand(5, -1))
        assert (draws[:, ~seen].std(0) > 0).all()
        rows = draws[0][~seen.any(-1)]
        assert len(rows.unique(dim=0)) == len(rows)  # each row its own draw


@pytest.mark.law("poutine")
def test_traces_score_with_validation_on(case: Case) -> None:
    p = case.make(per_feature=True)
    vae = case.vae(p, lazy=True)
    guide = poutine.trace(vae.guide).get_trace(p.data, p.obs_mask)
    guide.compute_log_prob()
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(p.data, p.obs_mask)
    model.compute_log_prob()
    batch = len(p.sets)
    for site in p.noise():
        assert guide.nodes[site]["log_prob"].shape == model.nodes[site]["log_prob"].shape == (batch,)
    z = torch.cat([guide.nodes[site]["value"] for site in p.noise()], -1)
    scored = p.stacked.log_likelihoods(z, p.data, p.obs_mask)
    for m, expected in scored.items():
        torch.testing.assert_close(model.nodes[m]["log_prob"], expected, **EXACT)


@pytest.mark.law("poutine")
def test_latents_can_be_conditioned(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    z = torch.zeros(len(p.sets), p.latent_dim)
    trace = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(p.data, p.obs_mask)
    assert trace.nodes["z"]["is_observed"]
    others = [torch.zeros(len(p.sets), 0)] + [trace.nodes[s]["value"] for s in p.noise() if s != "z"]
    scored = p.stacked.log_likelihoods(torch.cat([z, *others], -1), p.data, p.obs_mask)
    scored_z = [math.log(w) + FAMILIES[p.family](*q).log_prob(z).sum(-1) for w, *q in case.prior_parts(p)]
    torch.testing.assert_close(trace.nodes["z"]["fn"].log_prob(z), torch.stack(scored_z).logsumexp(0), **EXACT)
    trace.compute_log_prob()
    for m, expected in scored.items():
        torch.testing.assert_close(trace.nodes[m]["log_prob"], expected, **EXACT)


@pytest.mark.law("stock Pyro")
def test_two_models_train_in_one_process(case: Case) -> None:
    p = case.make()
    for _ in range(2):
        vae = case.vae(p)
        before = snapshot(vae)
        SVI(vae.model, vae.guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO()).step(p.data, p.obs_mask)
        after = snapshot(vae)
        assert any(not torch.equal(before[name], after[name]) for name in before)
    assert len(pyro.get_param_store()) > 0
