"""Losses and gradients equal multivae's at equal weights, to Monte Carlo error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compat.cases import CASES, ROWS, SEEN, Case, rows

pytest.importorskip("multivae", reason="an extra of the tests; make test installs it", exc_type=ImportError)
pytestmark = pytest.mark.extra

DRAWS = 30


@dataclass
class Estimate:
    """Mean over independent draws and its standard error."""

    mean: Tensor
    error: Tensor

    @classmethod
    def of(cls, draws: list[Tensor], factor: Tensor | float = 1.0) -> Estimate:
        stacked = torch.stack(draws) * factor
        return cls(stacked.mean(0), stacked.std(0) / len(draws) ** 0.5)

    def excess(self, other: Estimate, allowed: Tensor | float) -> float:
        """How far a difference goes beyond four standard errors and what is allowed besides."""
        error = (self.error**2 + other.error**2).sqrt()
        return float(((self.mean - other.mean).abs() - 4 * error - allowed).max())


def gradients(loss: Callable[[], Tensor], parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Loss and gradients of independent draws."""
    losses, grads = [], []
    for _ in range(DRAWS):
        value = loss()
        own = torch.autograd.grad(value, parameters, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, own, strict=True)]
        losses.append(value.detach())
        grads.append(torch.cat([g.reshape(-1) for g in flat]))
    return losses, grads


@dataclass
class Pair:
    """A model of multivae's and the same one here, on the same networks and rows."""

    case: Case
    model: Any
    vae: Any
    data: dict[str, Tensor]
    seen: dict[str, Tensor] | None

    @classmethod
    def of(cls, case: Case, folder: Path) -> Pair:
        model, data, mask = case.model(), rows(), case.obs_mask()
        tiled = {m: x.repeat(case.copies, *[1] * (x.dim() - 1)) for m, x in data.items()}
        seen = None if mask is None else {m: v.repeat(case.copies) for m, v in mask.items()}
        return cls(case, model, case.here(model, folder), tiled, seen)

    def at_multivae(self) -> Tensor:  # shape: ()
        """Its loss, per row."""
        from multivae.data.datasets.base import IncompleteDataset, MultimodalBaseDataset

        data, seen = dict(self.data), self.seen
        batch = MultimodalBaseDataset(data) if seen is None else IncompleteDataset(data, dict(seen))
        n = self.case.copies * ROWS
        return self.model(batch, **self.case.forward).loss / (n if self.case.summed else 1)

    def here(self) -> Tensor:  # shape: ()
        """The loss here, per row."""
        loss = self.vae.objective.differentiable_loss(self.vae.model, self.vae.guide, self.data, self.seen)
        return loss / (self.case.copies * ROWS)

    def compare(self) -> tuple[Estimate, Estimate, Estimate, Estimate]:
        """Loss and gradient of multivae's, loss and gradient here."""
        own, priors = dict(self.vae.named_parameters()), self.case.priors
        shared = [p for name, p in self.model.named_parameters() if p.requires_grad and name not in priors]
        assert {id(p) for p in shared} <= {id(p) for p in own.values()}, "the networks are the same objects"
        there = shared + [self.model.get_parameter(name) for name in priors]
        here = shared + [own[name] for name, _ in priors.values() if name]
        factors = [torch.ones(p.numel()) for p in shared]
        factors += [torch.full((own[name].numel(),), factor) for name, factor in priors.values() if name]
        loss, grad = gradients(self.at_multivae, there)
        if getattr(self.model.model_config, "loss", "") == "dreg_looser":
            self.case.bound(self.model)
            with torch.no_grad():
                loss = [self.at_multivae() for _ in range(DRAWS)]
        value, slope = gradients(self.here, here)
        return Estimate.of(loss), Estimate.of(grad), Estimate.of(value), Estimate.of(slope, torch.cat(factors))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_loss_and_gradient(case, tmp_path):
    loss, grad, value, slope = Pair.of(case, tmp_path).compare()
    # draws until the standard error is below 0.1 % of the loss
    assert max(loss.error, value.error) < 1e-3 * abs(loss.mean)
    # multivae counts modalities, and sums KL divergences, in single precision
    assert loss.excess(value, 1e-6 * loss.mean.abs()) < 0
    assert grad.excess(slope, 1e-6) < 0
    assert (grad.mean - slope.mean).norm() < 0.03 * grad.mean.norm()


def test_the_comparison_can_fail(tmp_path):
    """With masks multivae's MVTCAE keeps M where a sample has fewer modalities (spec 5), which must show."""
    case = Case("MVTCAE masked", "MVTCAE", {"alpha": 0.4, "beta": 1.5}, SEEN, copies=100)
    loss, grad, value, slope = Pair.of(case, tmp_path).compare()
    assert loss.excess(value, 1e-3 * loss.mean.abs()) > 0
    assert grad.excess(slope, 1e-3) > 0
