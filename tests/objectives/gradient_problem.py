"""One sample of two modalities that no Gaussian fits, as a pair of programs and as a written-out log-joint.

Test layer: every row of a batch is the same sample with parameters of its own, so that rows are independent draws.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_mmvae as mm

X = {"a": 2.6, "b": 3.1}
SCALE = {"a": 0.8, "b": 0.6}
LOC = {"a": 0.3, "b": -0.2}  # far from the target near 2.6: gradients well above their noise
LOG_SCALE = {"a": math.log(0.25), "b": math.log(0.35)}
WEIGHT = {"a": 0.4, "b": 0.6}


class Story(nn.Module):
    """z -> a, b, the decoders' slope a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("a", dist.Normal(self.slope * z + 0.2 * (1.5 * z).sin(), SCALE["a"]).to_event(1))
        pyro.sample("b", dist.Normal(self.slope * z + 0.1 * z**2, SCALE["b"]).to_event(1))


def log_joint(
    z: Tensor,  # shape: (*sample, 1)
    prior: float = 1.0,
    names: tuple[str, ...] = ("a", "b"),
) -> Tensor:  # shape: (*sample)
    """prior * log p(z) + the log-likelihoods of ``names`` at slope 1, written out."""
    z = z.squeeze(-1)
    means = {"a": z + 0.2 * (1.5 * z).sin(), "b": z + 0.1 * z**2}
    total = prior * (-0.5 * z**2 - 0.5 * math.log(2 * math.pi))
    for m in names:
        unit = (X[m] - means[m]) / SCALE[m]
        total = total - 0.5 * unit**2 - math.log(SCALE[m]) - 0.5 * math.log(2 * math.pi)
    return total


class RowExpert(nn.Module):
    """An expert whose location and log-scale are parameters of each row, whatever it sees."""

    def __init__(self, name: str, rows: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.full((rows, 1), LOC[name]))
        self.log_scale = nn.Parameter(torch.full((rows, 1), LOG_SCALE[name]))

    def forward(self, x: Tensor) -> Any:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


def programs(rows: int, names: tuple[str, ...] = ("a", "b")) -> tuple[Any, Any, dict[str, Tensor]]:
    """Model, guide (the expert of a lone modality, no prior in it) and data."""
    model = mm.observe(Story(), ("a", "b"))
    guide = mm.guides.Product(model, {m: RowExpert(m, rows) for m in names}, prior_expert="never")
    return model, guide, {m: torch.full((rows, 1), X[m]) for m in X}


def mixture_terms() -> mm.Terms:
    """One term per expert, scoring everything, with unequal weights."""
    return mm.Terms([mm.Term(mm.objectives.Only((m,)), weight=WEIGHT[m]) for m in X])


def single_term() -> mm.Terms:
    """The expert of a alone, scoring everything."""
    return mm.Terms([mm.Term(mm.objectives.Only(("a",)))])


def parameters(names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Locations, scales ``(M, 1)`` and weights ``(M,)`` as the references take them."""
    loc = torch.tensor([[LOC[m]] for m in names])
    scale = torch.tensor([[LOG_SCALE[m]] for m in names]).exp()
    weights = torch.tensor([WEIGHT[m] for m in names]) if len(names) > 1 else torch.ones(1)
    return loc, scale, weights


def row_gradients(objective: Any, rows: int, names: tuple[str, ...]) -> Tensor:  # shape: (rows, M, 2)
    """The objective's gradient of every row with respect to location and log-scale of every expert."""
    model, guide, data = programs(rows)
    value = objective.per_sample(model, guide, data)
    experts = [guide.encoders["z"][m] for m in names]
    leaves = [p for e in experts for p in (e.loc, e.log_scale)]
    grads = torch.autograd.grad(value.sum(), leaves)
    return torch.cat(grads, -1).reshape(rows, len(names), 2)


def by_log_scale(by_loc: Tensor, by_scale: Tensor, scale: Tensor) -> Tensor:  # shapes: (..., M, 1) -> (..., M, 2)
    """Gradients with respect to (loc, scale) as gradients with respect to (loc, log scale)."""
    return torch.cat([by_loc, by_scale * scale], -1)
