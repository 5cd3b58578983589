"""Law 2: what masked entries hold never matters; what observed entries hold always does.

Test layer.
"""

from __future__ import annotations

import pytest
import torch

from tests.conformance.cases import Case
from tests.conformance.evaluate import gradients
from tests.conformance.problems import Problem

pytestmark = pytest.mark.law("masked content")

PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
CONTENTS = (float("nan"), float("inf"), 1e30, 0.0)


def holding(p: Problem, content: float) -> dict[str, torch.Tensor]:
    """The data with one value in all masked entries."""
    masks = {m: a if a.dim() == 2 else a.unsqueeze(-1) for m, a in p.obs_mask.items()}
    return {m: torch.where(masks[m], x, content) for m, x in p.complete.items()}


@PER_FEATURE
@pytest.mark.parametrize("lazy", [False, True], ids=["dense", "lazy"])
def test_masked_entries_never_matter(case: Case, lazy: bool, per_feature: bool) -> None:
    p = case.make(per_feature=per_feature)
    vae = case.vae(p, lazy=lazy)
    found = []
    for content in CONTENTS:
        torch.manual_seed(0)
        loss = vae.objective.differentiable_loss(vae.model, vae.guide, holding(p, content), p.obs_mask)
        found.append((loss.detach(), gradients(vae, loss)))
    first_loss, first = found[0]
    assert first_loss.isfinite()
    assert all(g.isfinite().all() for g in first.values())
    assert sum(bool((g != 0).any()) for g in first.values()) >= 2 * len(p.modalities)
    for loss, other in found[1:]:
        assert torch.equal(loss, first_loss)
        assert all(torch.equal(other[name], g) for name, g in first.items())


@pytest.mark.parametrize("content", [float("nan"), float("inf")])
def test_an_observed_nan_raises(case: Case, content: float) -> None:
    p = case.make()
    vae, data = case.vae(p), holding(p, 0.0)
    data["b"][-1, 1] = content
    with pytest.raises(ValueError, match=r"'b'.*row 7"):
        vae.objective.differentiable_loss(vae.model, vae.guide, data, p.obs_mask)


def test_a_changed_observed_entry_changes_the_loss(case: Case) -> None:
    p = case.make(per_feature=True)
    vae = case.vae(p)
    for m, mask in p.obs_mask.items():
        row, feature = mask.nonzero()[-1].tolist()
        losses = []
        for change in (0.0, 0.1):
            data = holding(p, 0.0)
            data[m][row, feature] += change
            torch.manual_seed(0)
            losses.append(vae.objective.loss(vae.model, vae.guide, data, p.obs_mask))
        assert losses[0] != losses[1], f"{m} row {row} feature {feature}"


def test_inputs_are_never_modified(case: Case) -> None:
    p = case.make(per_feature=True)
    vae = case.vae(p)
    before = {m: x.clone() for m, x in p.data.items()}, {m: a.clone() for m, a in p.obs_mask.items()}
    vae.objective.differentiable_loss(vae.model, vae.guide, p.data, p.obs_mask).backward()
    for kept, now in zip(before, (p.data, p.obs_mask), strict=True):
        assert list(kept) == list(now)
        assert all(torch.allclose(kept[m], now[m], rtol=0, atol=0, equal_nan=True) for m in kept)
