"""Law 6: vectorized equals looped, lazy equals dense, gathered rows equal all rows.

Test layer.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from tests.conformance.cases import Case
from tests.conformance.evaluate import gradients, value

PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # the same sums in float64, in another order


class ByHand(nn.Module):
    """The same guide as one written by hand: no leading dimensions of masks, no experts that are kept."""

    vectorized = False

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> Any:
        return self.guide(data, obs_mask)


def equal(one: Tensor, other: Tensor, vae: nn.Module) -> None:
    """Equal values and gradients."""
    torch.testing.assert_close(other, one, **EXACT)
    first, second = gradients(vae, one.sum()), gradients(vae, other.sum())
    for name, g in first.items():
        torch.testing.assert_close(second[name], g, rtol=1e-9, atol=1e-9)


@pytest.mark.law("looped terms")
@PER_FEATURE
def test_terms_in_one_pass_or_one_by_one(case: Case, per_feature: bool) -> None:
    p = case.make(per_feature=per_feature)
    vae = case.vae(p, lazy=True)
    eps = p.noise(vae.objective.num_particles)
    together = value(vae, p.data, p.obs_mask, eps)
    torch.manual_seed(3)
    with mm.handlers.noise(eps):
        by_hand = vae.objective.per_sample(vae.model, ByHand(vae.guide), p.data, p.obs_mask)
    equal(together, by_hand, vae)


@pytest.mark.law("looped particles")
def test_particles_in_one_pass_or_one_by_one(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    vae.objective.num_particles = 3
    eps = p.noise(3)
    together = value(vae, p.data, p.obs_mask, eps)
    vae.objective.num_particles = 1
    alone = torch.stack([value(vae, p.data, p.obs_mask, {s: e[k, 0] for s, e in eps.items()}) for k in range(3)])
    if isinstance(vae.objective, mm.IWAE):  # with several experts the logarithm does not split: rows with one of them
        one = torch.tensor([len(s) <= 1 for s in p.sets])
        together, looped = together[one], (alone.logsumexp(0) - math.log(3))[one]
        torch.testing.assert_close(together, looped, **EXACT)
    else:
        equal(together, alone.mean(0), vae)


@pytest.mark.law("lazy = dense")
@PER_FEATURE
@pytest.mark.parametrize("work", [0, 10**12], ids=["gathered", "all rows"])
def test_lazy_is_dense(case: Case, work: int, per_feature: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    p = case.make(per_feature=per_feature)
    eager, lazy = case.vae(p), case.vae(p, lazy=True, cost=10)
    eps = p.noise(eager.objective.num_particles)
    one = value(eager, p.data, p.obs_mask, eps)
    for module in ("handlers.observe", "guides.encode"):  # the packages export functions of these names
        monkeypatch.setattr(importlib.import_module(f"pyro_mmvae.{module}"), "GATHER_WORK", work)
    rows = count_rows(lazy, p.modalities)
    other = value(lazy, p.data, p.obs_mask, eps)
    torch.testing.assert_close(other, one, **EXACT)
    first, second = gradients(eager, one.sum()), gradients(lazy, other.sum())
    for name, g in first.items():
        torch.testing.assert_close(second[name], g, rtol=1e-9, atol=1e-9)
    # the encoder of a modality sees the rows that observe it, or all of them
    assert rows == dict.fromkeys(p.modalities, len(p.sets) // (2 if work == 0 else 1))


def count_rows(vae: mm.MultimodalVAE, modalities: tuple[str, ...]) -> dict[str, int]:
    """How many rows each encoder of z sees, filled in while it runs."""
    rows: dict[str, int] = {}
    for m in modalities:
        vae.guide.encoders["z"][m].register_forward_pre_hook(lambda _, inputs, m=m: rows.update({m: len(inputs[0])}))
    return rows
