"""A linear-Gaussian story with covariates, solved exactly, and networks that are exactly right for it.

Test layer: the closed form is that of the oracle without covariates, at data from which their effect is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import pyro_mmvae as mm
from pyro_mmvae.columns import Column
from tests.oracles.linear_gaussian import LinearGaussian

L, NAMES, SITES = 2, ("a", "b"), 3
CONTEXT = (Column("age", "normal", loc=50.0, scale=10.0), Column("site", "categorical", ("A", "B", "C")))
CONTEXT_NAMES = tuple(str(c.name) for c in CONTEXT)
WEIGHTS = {"a": torch.tensor([1.3, -0.7]), "b": torch.tensor([0.4, 2.0])}  # diagonals of W_m: the posterior factorizes
NOISE = {"a": 0.7, "b": 0.4}
BIAS = {"a": torch.tensor([0.3, -1.0]), "b": torch.tensor([2.0, 0.1])}
EFFECTS = {  # B_m: of standardized age, then of each site
    "a": torch.tensor([[0.5, 3.0, -2.0, 0.4], [-1.0, 0.0, 5.0, -4.0]]),
    "b": torch.tensor([[0.2, -6.0, 1.0, 2.0], [1.5, 0.7, -0.3, 8.0]]),
}


def features(covariates: Mapping[str, Tensor]) -> Tensor:  # shape: (*batch, 1 + SITES)
    """What the effects multiply, written out."""
    age = (covariates["age"].double() - 50.0) / 10.0
    return torch.cat([age.unsqueeze(-1), one_hot(covariates["site"].long(), SITES).double()], -1)


def shift(m: str, covariates: Mapping[str, Tensor]) -> Tensor:  # shape: (*batch, L)
    """The effect of the covariates on a modality."""
    return features(covariates) @ EFFECTS[m].double().T


def truth() -> LinearGaussian:
    """The story without its covariates."""
    weights = {m: torch.diag(w) for m, w in WEIGHTS.items()}
    return LinearGaussian(weights, BIAS, NOISE, torch.zeros(L), torch.ones(L))


def without_effects(data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The modalities less what the covariates add."""
    return {m: data[m] - shift(m, data) for m in NAMES if m in data}


def draw(n: int, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Complete data with covariates, and masks in which every subset occurs, with NaN where nothing is seen."""
    g = torch.Generator().manual_seed(seed)
    data = {"age": 50 + 10 * torch.randn(n, generator=g, dtype=torch.float64)}
    data["site"] = torch.randint(SITES, (n,), generator=g)
    data |= {m: x + shift(m, data) for m, x in truth().sample(n, g)[1].items()}
    masks = {m: (torch.arange(n) // 2**i) % 2 == 0 for i, m in enumerate(NAMES)}
    holes = {m: torch.where(masks[m].unsqueeze(-1), data[m], torch.nan) for m in NAMES}
    return data | holes, masks


def encoders() -> dict[str, nn.Module]:
    """Linear encoders of the library with the likelihood's own experts: loc (x - b - B c) / w, scale s / |w|."""
    out: dict[str, nn.Module] = {}
    for m in NAMES:
        net: Any = mm.nn.MLPEncoder(L, L, hidden=(), context=CONTEXT)
        with torch.no_grad():
            net.head.linear.weight.zero_()
            net.head.linear.weight[:L, :L] = torch.diag(1 / WEIGHTS[m])
            net.head.linear.weight[:L, L:] = -EFFECTS[m] / WEIGHTS[m].unsqueeze(-1)
            net.head.linear.bias[:L] = -BIAS[m] / WEIGHTS[m]
            net.head.linear.bias[L:] = (NOISE[m] / WEIGHTS[m].abs()).log()
        out[m] = net
    return out


def decoders(extra: int = 0) -> dict[str, nn.Module]:
    """Linear decoders of the library that are the story's; ``extra`` latents have no effect."""
    out: dict[str, nn.Module] = {}
    for m in NAMES:
        net: Any = mm.nn.LinearDecoder(L + extra, L, likelihood=mm.nn.Normal(NOISE[m]), context=CONTEXT)
        with torch.no_grad():
            net.net[0].weight.zero_()
            net.net[0].weight[:, :L] = torch.diag(WEIGHTS[m])
            net.net[0].weight[:, L + extra :] = EFFECTS[m]
            net.net[0].bias.copy_(BIAS[m])
        out[m] = net
    return out


class NamedEncoder(nn.Module):
    """The same expert as a user writes it: covariates by the names of arguments."""

    def __init__(self, m: str) -> None:
        super().__init__()
        self.m, self.rows, self.scale = m, [], nn.Parameter(NOISE[m] / WEIGHTS[m].abs().double())

    def forward(self, x: Tensor, age: Tensor, mask: Tensor, site: Tensor) -> Any:
        assert x.shape[:-1] == age.shape == site.shape and mask.shape == x.shape
        self.rows.append(len(x))
        loc = (x - BIAS[self.m] - shift(self.m, {"age": age, "site": site})) / WEIGHTS[self.m]
        return dist.Normal(loc, self.scale.expand(loc.shape)).to_event(1)


class NamedDecoder(nn.Module):
    """The same likelihood as a user writes it; the covariates have the batch dimensions of z."""

    def __init__(self, m: str) -> None:
        super().__init__()
        self.m, self.bias = m, nn.Parameter(BIAS[m].double())

    def forward(self, z: Tensor, site: Tensor, age: Tensor) -> Any:
        assert z.shape[:-1] == age.shape == site.shape
        loc = z * WEIGHTS[self.m] + self.bias + shift(self.m, {"age": age, "site": site})
        return dist.Normal(loc, NOISE[self.m]).to_event(1)
