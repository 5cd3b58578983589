"""Law 3: samples are independent, empty ones count nothing, and only what is observed matters, not how it is said.

Test layer.
"""

from __future__ import annotations

import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_mmvae as mm
from tests.conformance.cases import Case
from tests.conformance.evaluate import gradients, last_subset, select, select_noise, value
from tests.conformance.problems import Problem

pytestmark = pytest.mark.law("rows")

PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
EXACT = {"rtol": 1e-11, "atol": 1e-11}  # the same sums in float64, in blocks of another size
REVERSED = slice(None, None, -1)


def noise(case: Case, vae: mm.MultimodalVAE, p: Problem) -> dict[str, Tensor]:
    """Fixed noise for as many particles as the case has."""
    return p.noise(vae.objective.num_particles)


@PER_FEATURE
def test_a_batch_is_its_rows(case: Case, per_feature: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if case.batch_statistics:
        return
    p = case.make(per_feature=per_feature)
    vae = case.vae(p, lazy=True)
    eps = noise(case, vae, p)
    if case.random == "sample":
        last_subset(monkeypatch)
    whole = value(vae, p.data, p.obs_mask, eps)
    for n in (0, 1, 4, 7):  # nothing, one, two, everything observed
        at = slice(n, n + 1)
        alone = value(vae, select(p.data, at), select(p.obs_mask, at), select_noise(eps, at))
        torch.testing.assert_close(alone, whole[at], **EXACT)
    torch.manual_seed(3)
    with mm.handlers.noise(eps):
        loss = vae.objective.differentiable_loss(vae.model, vae.guide, p.data, p.obs_mask)
    torch.testing.assert_close(loss, -whole.sum(), **EXACT)


@pytest.mark.parametrize("n", [0, 1], ids=["none", "one"])
def test_few_observed_rows_of_a_modality(case: Case, n: int) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    mask = {**p.obs_mask, "b": torch.arange(len(p.sets)) >= len(p.sets) - n}
    loss = vae.objective.differentiable_loss(vae.model, vae.guide, p.data, mask)
    found = gradients(vae, loss)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in found.values())
    own = [g for name, g in found.items() if "m_b." in name and "fusion" not in name]
    assert own
    assert all(bool((g != 0).any()) == bool(n) for g in own)


def test_rows_without_anything_count_nothing(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    empty, rest = slice(0, 1), slice(1, None)
    nothing = vae.objective.differentiable_loss(vae.model, vae.guide, select(p.data, empty), select(p.obs_mask, empty))
    assert nothing == 0
    assert all((g == 0).all() for g in gradients(vae, nothing).values())
    if case.random == "sample" or case.batch_statistics:
        return
    eps = noise(case, vae, p)
    both = value(vae, p.data, p.obs_mask, eps)
    without = value(vae, select(p.data, rest), select(p.obs_mask, rest), select_noise(eps, rest))
    assert both[0] == 0
    one, other = gradients(vae, both.sum()), gradients(vae, without.sum())
    for name, g in one.items():
        torch.testing.assert_close(other[name], g, rtol=1e-9, atol=1e-9)


def test_all_observed_is_no_mask(case: Case) -> None:
    p = case.make()
    vae = case.vae(p)
    eps = noise(case, vae, p)
    ones = {m: torch.ones(len(p.sets), dtype=torch.bool) for m in p.modalities}
    features = {m: torch.ones_like(x, dtype=torch.bool) for m, x in p.complete.items()}
    plain = value(vae, p.complete, None, eps)
    assert torch.equal(value(vae, p.complete, {}, eps), plain)
    assert torch.equal(value(vae, p.complete, dict.fromkeys(p.modalities), eps), plain)
    assert torch.equal(value(vae, p.complete, ones, eps), plain)
    torch.testing.assert_close(value(vae, p.complete, features, eps), plain, **EXACT)


def test_absent_is_none_is_masked(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    eps = noise(case, vae, p)
    mask = {m: a for m, a in p.obs_mask.items() if m != "b"}
    hidden = {**mask, "b": torch.zeros(len(p.sets), dtype=torch.bool)}
    masked = value(vae, p.data, hidden, eps)
    absent = {m: x for m, x in p.data.items() if m != "b"}
    for data, said in ((absent, mask), ({**absent, "b": None}, mask), (absent, hidden), (absent, p.obs_mask)):
        assert torch.equal(value(vae, data, said, eps), masked)


@pytest.mark.param_store
@pytest.mark.parametrize("which", ["both", "encoders"])
def test_order_of_modalities(case: Case, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = case.make()
    straight = case.vae(p)
    eps = noise(case, straight, p)
    if case.random == "sample":
        last_subset(monkeypatch)
    turned = case.vae(p, order=REVERSED, decoder_order=REVERSED if which == "both" else slice(None))
    wanted = value(straight, p.data, p.obs_mask, eps)
    data, mask = (dict(reversed(d.items())) for d in (p.data, p.obs_mask))
    # random subsets are drawn by position: one of a few random states draws the same set
    seeds = range(20) if case.random == "batch" else (3,)
    found = torch.stack([value(turned, data, mask, eps, seed=seed) for seed in seeds])
    assert ((found - wanted).abs().amax(-1) < 1e-10).any()
    torch.testing.assert_close(density(turned, p), density(straight, p), **EXACT)


def density(vae: mm.MultimodalVAE, p: Problem) -> Tensor:  # shape: (B,)
    """log q(z | x_O) at a fixed point, as stock Pyro sees the guide."""
    z = {site: e.clone() for site, e in p.noise().items()}
    with poutine.trace() as tracer, mm.handlers.replay(z):
        vae.guide(p.data, p.obs_mask)
    sites = [tracer.trace.nodes[s] for s in z]
    return sum(s["fn"].log_prob(s["value"]) for s in sites)  # type: ignore[return-value]
