"""A healthy pair, and variants of it with one realistic mistake each.

Test layer: plain Pyro, as a user would write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

SIZES = {"x": 4, "y": 3}
DIM = 2
ROWS = 20


def batch(generator_seed: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two modalities, about a third of either missing and NaN."""
    generator = torch.Generator().manual_seed(generator_seed)
    data, mask = {}, {}
    for m, size in SIZES.items():
        mask[m] = torch.rand(ROWS, generator=generator) < 0.7
        x = torch.randn(ROWS, size, generator=generator)
        data[m] = torch.where(mask[m].unsqueeze(-1), x, torch.nan)
    return data, mask


def seen(data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor], m: str) -> Tensor:
    """The observed values, zero elsewhere."""
    return torch.where(obs_mask[m].unsqueeze(-1), data[m], 0.0)


class Model(PyroModule):
    """z, then both modalities; natively masked. Subclasses change one line."""

    def __init__(self) -> None:
        super().__init__()
        self.decoders = nn.ModuleDict({m: nn.Linear(DIM, size) for m, size in SIZES.items()})

    def prior(self) -> Any:
        return dist.Normal(torch.zeros(DIM), 1.0).to_event(1)

    def likelihood(self, m: str, z: Tensor) -> Any:
        return dist.Normal(self.decoders[m](z), 1.0).to_event(1)

    def plate(self, count: int) -> Any:
        return pyro.plate("data", count, dim=-1)

    def observe(self, m: str, fn: Any, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        with poutine.mask(mask=obs_mask[m]):
            pyro.sample(m, fn, obs=seen(data, obs_mask, m))

    def forward(self, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        with self.plate(len(data["x"])):
            z = pyro.sample("z", self.prior())
            for m in SIZES:
                self.observe(m, self.likelihood(m, z), data, obs_mask)


class Guide(PyroModule):
    """A product of the observed experts with the prior. Subclasses change one line."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({m: self.network(size) for m, size in SIZES.items()})

    def network(self, size: int) -> nn.Module:
        return nn.Linear(size, 2 * DIM)

    def encoder(self, m: str) -> nn.Module:
        return self.encoders[m]

    def input(self, m: str, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> Tensor:
        return seen(data, obs_mask, m)

    def expert(self, m: str, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.encoder(m)(x).chunk(2, -1)
        return loc, torch.where(mask, nn.functional.softplus(raw), 0.0)

    def posterior(self, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        precision, weighted = self.start(data["x"]), 0.0
        for m in SIZES:
            loc, own = self.expert(m, self.input(m, data, obs_mask), obs_mask[m].unsqueeze(-1))
            precision, weighted = precision + own, weighted + own * loc
        return weighted / precision, precision.rsqrt()

    def start(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), DIM, dtype=x.dtype)

    def sample(self, loc: Tensor, scale: Tensor) -> None:
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def forward(self, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        loc, scale = self.posterior(data, obs_mask)
        with pyro.plate("data", len(loc), dim=-1):
            self.sample(loc, scale)


# The mistakes, and twins where the healthy pair above is not the nearest one.


class TwoLatents(Model):
    def prior(self) -> Any:
        self.scale = pyro.sample("scale_of_z", dist.LogNormal(0.0, 0.1))
        return dist.Normal(torch.zeros(DIM), self.scale.unsqueeze(-1)).to_event(1)


class TwoLatentsGuide(Guide):
    def sample(self, loc: Tensor, scale: Tensor) -> None:
        pyro.sample("scale_of_z", dist.LogNormal(loc[..., 0], scale[..., 0]))
        super().sample(loc, scale)


class Misspelled(Guide):
    def sample(self, loc: Tensor, scale: Tensor) -> None:
        super().sample(loc, scale)
        pyro.sample("Z", dist.Normal(loc, scale).to_event(1))


class NoEvent(Model):
    def likelihood(self, m: str, z: Tensor) -> Any:
        fn = super().likelihood(m, z)
        return fn if m == "x" else fn.base_dist


class OneColumn(Model):
    """y is one number per row, its location has a trailing dimension of size 1: (B, B) densities."""

    def likelihood(self, m: str, z: Tensor) -> Any:
        fn = super().likelihood(m, z)
        return fn if m == "x" else dist.Normal(self.decoders[m](z)[..., :1], 1.0)

    def observe(self, m: str, fn: Any, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        if m == "x":
            return super().observe(m, fn, data, obs_mask)
        with poutine.mask(mask=obs_mask[m]):
            pyro.sample(m, fn, obs=seen(data, obs_mask, m)[..., 0])


class OneColumnRight(OneColumn):
    def likelihood(self, m: str, z: Tensor) -> Any:
        return Model.likelihood(self, m, z) if m == "x" else dist.Normal(self.decoders[m](z)[..., 0], 1.0)


class FromTheLeft(Model):
    def likelihood(self, m: str, z: Tensor) -> Any:
        rest = z[:, 0].unsqueeze(-1) * 0.1
        return dist.Normal(self.decoders[m](z) + rest, 1.0).to_event(1)


class FromTheRight(Model):
    def likelihood(self, m: str, z: Tensor) -> Any:
        rest = z[..., 0].unsqueeze(-1) * 0.1
        return dist.Normal(self.decoders[m](z) + rest, 1.0).to_event(1)


class ReadsHidden(Guide):
    """Encodes what is not there and masks the result: NaN gradients."""

    def input(self, m: str, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> Tensor:
        return data[m]

    def expert(self, m: str, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        loc, precision = super().expert(m, x, mask)
        return torch.where(mask, loc, 0.0), precision


class IgnoresMask(Guide):
    """Fills NaN, and never looks at obs_mask."""

    def posterior(self, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        full = {m: torch.where(data[m].isnan(), 0.0, data[m]) for m in data}
        return super().posterior(full, {m: torch.ones_like(mask) for m, mask in obs_mask.items()})


class ModelIgnoresMask(Model):
    """Fills hidden cells with zeros and scores them."""

    def observe(self, m: str, fn: Any, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        pyro.sample(m, fn, obs=seen(data, obs_mask, m))


class BatchNorm(Guide):
    def network(self, size: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, 6), nn.BatchNorm1d(6), nn.Linear(6, 2 * DIM))


class LayerNorm(Guide):
    def network(self, size: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, 6), nn.LayerNorm(6), nn.Linear(6, 2 * DIM))


class Centered(Guide):
    """Centers its input by the batch."""

    def input(self, m: str, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> Tensor:
        x = super().input(m, data, obs_mask)
        return x - x.mean(0)


def hidden_network(*, registered: bool) -> tuple[Any, Any]:
    """A model that is a function, its network in the closure."""
    decoder = nn.Linear(DIM, SIZES["x"])

    def model(data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        if registered:
            pyro.module("decoder_of_x", decoder)
        with pyro.plate("data", len(data["x"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
            for m, loc in (("x", decoder(z)), ("y", z.sum(-1, keepdim=True).expand(*z.shape[:-1], SIZES["y"]))):
                with poutine.mask(mask=obs_mask[m]):
                    pyro.sample(m, dist.Normal(loc, 1.0).to_event(1), obs=seen(data, obs_mask, m))

    return model, Guide()


def one_name(*, clashing: bool) -> tuple[Any, Any]:
    """Two networks under one name in Pyro's store."""
    one, other = nn.Linear(DIM, SIZES["x"]), nn.Linear(DIM, SIZES["x"])

    def model(data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        pyro.module("decoder", one)
        pyro.module("decoder" if clashing else "other", other)
        with pyro.plate("data", len(data["x"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
            for m, loc in (("x", one(z)), ("y", other(z)[..., : SIZES["y"]])):
                with poutine.mask(mask=obs_mask[m]):
                    pyro.sample(m, dist.Normal(loc, 1.0).to_event(1), obs=seen(data, obs_mask, m))

    return model, Guide()


class KeepsAList(Guide):
    """Networks in a plain list, which torch does not see."""

    def __init__(self) -> None:
        super().__init__()
        del self.encoders
        self.networks = [nn.Linear(size, 2 * DIM) for size in SIZES.values()]

    def encoder(self, m: str) -> nn.Module:
        return self.networks[list(SIZES).index(m)]


class NoPrior(Guide):
    """Precision 0 where nothing is observed: NaN."""

    def start(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), DIM, dtype=x.dtype)


class RootAtZero(Guide):
    """The norm of the input as a feature: its gradient at 0 is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weights = nn.Parameter(torch.zeros(max(SIZES.values())))
        self.inside = 0.0

    def input(self, m: str, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> Tensor:
        x = super().input(m, data, obs_mask)
        weight = self.log_weights[: x.shape[-1]].exp()
        return x + ((weight * x.square()).sum(-1, keepdim=True) + self.inside).sqrt()


class RootInside(RootAtZero):
    def __init__(self) -> None:
        super().__init__()
        self.inside = 1e-6


class Rates(Model):
    """A Gamma latent."""

    def prior(self) -> Any:
        return dist.Gamma(torch.full((DIM,), 2.0), 1.0).to_event(1)


class LogNormalGuide(Guide):
    def sample(self, loc: Tensor, scale: Tensor) -> None:
        pyro.sample("z", dist.LogNormal(loc, scale).to_event(1))


class MeanOverFeatures(Model):
    def observe(self, m: str, fn: Any, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        with poutine.scale(scale=1.0 / SIZES[m] if m == "x" else 1.0):
            super().observe(m, fn, data, obs_mask)


class FactorMean(Model):
    """A reconstruction loss in place of a likelihood."""

    def observe(self, m: str, fn: Any, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        if m == "x":
            return super().observe(m, fn, data, obs_mask)
        error = (seen(data, obs_mask, m) - fn.mean).square().mean(-1)
        pyro.factor("y_loss", torch.where(obs_mask[m], -error, 0.0))


class Subsampled(Model):
    def plate(self, count: int) -> Any:
        return pyro.plate("data", 1000, subsample=torch.arange(count), dim=-1)


class SubsampledGuide(Guide):
    def forward(self, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        loc, scale = self.posterior(data, obs_mask)
        with pyro.plate("data", 1000, subsample=torch.arange(len(loc)), dim=-1):
            self.sample(loc, scale)


class InPlace(Guide):
    def input(self, m: str, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> Tensor:
        data[m][~obs_mask[m]] = 0.0
        return data[m]


class Seeds(Guide):
    def sample(self, loc: Tensor, scale: Tensor) -> None:
        pyro.set_rng_seed(3)
        super().sample(loc, scale)


class Detached(Guide):
    def expert(self, m: str, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        loc, precision = super().expert(m, x, mask)
        return (loc.detach(), precision.detach()) if m == "y" else (loc, precision)


class NoPlate(Guide):
    def forward(self, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        self.sample(*self.posterior(data, obs_mask))


class OtherPlate(Guide):
    def forward(self, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        loc, scale = self.posterior(data, obs_mask)
        with pyro.plate("batch", len(loc), dim=-1):
            self.sample(loc, scale)


class Unmarginalized(Model):
    """Pyro's own obs_mask, without marginalize_missing."""

    def observe(self, m: str, fn: Any, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        pyro.sample(m, fn, obs=seen(data, obs_mask, m), obs_mask=obs_mask[m])


class Double(Guide):
    def __init__(self) -> None:
        super().__init__()
        self.encoders.double()

    def input(self, m: str, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> Tensor:
        return super().input(m, data, obs_mask).double()
