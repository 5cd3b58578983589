"""Healthy pairs of other kinds: stories, global and enumerated sites, library guides, AutoGuides, functions.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyro_mmvae as mm
from tests.checks.mistakes import DIM, ROWS, SIZES, Guide, batch, seen

Made = tuple[Any, Any, dict[str, Tensor], dict[str, Tensor] | None]


class Covariates(nn.Module):
    """A story with a covariate, a count modality and a likelihood that is lazy."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.image = nn.Linear(DIM + 1, 5), mm.nn.MLPDecoder(DIM, 6, hidden=(4,))

    def forward(self, dose: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        shift = dose.unsqueeze(-1).expand(*z.shape[:-1], 1)
        pyro.sample("counts", dist.Poisson(self.net(torch.cat([z, shift], -1)).exp()).to_event(1))
        pyro.sample("image", self.image(z))


def story_with_covariate() -> Made:
    model = mm.observe(Covariates(), ("counts", "image"), size=500)
    shapes = {"counts": 5, "image": 6}
    guide = mm.guides.Product(model, {"z": {m: mm.nn.MLPEncoder(k, DIM, hidden=(4,)) for m, k in shapes.items()}})
    data = {"counts": torch.poisson(torch.ones(30, 5)), "image": torch.randn(30, 6), "dose": torch.rand(30)}
    mask = {"counts": torch.rand(30) < 0.6, "image": torch.rand(30, 6) < 0.6}
    return model, guide, data, mask


class Clusters(nn.Module):
    """A cluster that is enumerated, and a latent around its center."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3))
        self.centers = nn.Parameter(torch.randn(3, DIM))

    def forward(self) -> None:
        c = pyro.sample("c", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(self.centers[c], 0.8).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.6).to_event(1))


def enumerated() -> Made:
    model = mm.observe(Clusters(), ("x",))
    return model, mm.guides.Product(model, {"x": mm.nn.MLPEncoder(DIM, DIM)}), {"x": torch.randn(15, DIM)}, None


class Hospitals(PyroModule):
    """A native model with a global scale; its guide has an AutoGuide for that, and is amortized for the rows."""

    def forward(self, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(data["x"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
            for m, size in SIZES.items():
                loc = z.sum(-1, keepdim=True).expand(*z.shape[:-1], size)
                with poutine.mask(mask=obs_mask[m]):
                    wide = scale.unsqueeze(-1).expand(loc.shape)
                    pyro.sample(m, dist.Normal(loc, wide).to_event(1), obs=seen(data, obs_mask, m))


class HospitalsGuide(Guide):
    def __init__(self, model: Hospitals) -> None:
        super().__init__()
        self.globals = AutoNormal(poutine.block(model, expose=["scale"]))

    def forward(self, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        self.globals(data, obs_mask)
        super().forward(data, obs_mask)


def global_site() -> Made:
    model = Hospitals()
    return (model, HospitalsGuide(model), *batch())


def observed_by_hand() -> Made:
    """handlers.observe in a function, parameters in Pyro's store, a guide of functions as well."""
    decoder, encoder = nn.Linear(DIM, 4), nn.Linear(4, DIM)

    def model(data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        net = pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(data["x"]), dim=-1), mm.handlers.observe(data, obs_mask, ("x",)):
            z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), scale).to_event(1))

    def guide(data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> None:
        seen_rows = obs_mask["x"].unsqueeze(-1)
        loc = pyro.module("encoder", encoder)(seen(data, obs_mask, "x"))
        with pyro.plate("data", len(data["x"]), dim=-1):
            loc, scale = torch.where(seen_rows, loc, 0.0), torch.where(seen_rows, 0.5, 1.0)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    data, mask = batch()
    return model, guide, {"x": data["x"]}, {"x": mask["x"]}


def many_modalities() -> Made:
    """Seven: not all their subsets are tried."""
    names = [f"m{i}" for i in range(7)]

    def story() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        for m in names:
            pyro.sample(m, dist.Normal(z, 1.0).to_event(1))

    model = mm.observe(story, names)
    guide = mm.guides.Product(model, {m: mm.nn.MLPEncoder(DIM, DIM, hidden=(4,)) for m in names})
    return model, guide, {m: torch.randn(ROWS, DIM) for m in names}, None


class Censored(nn.Module):
    """Missing not at random: which cells are seen depends on what they hold, so hidden ones are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.rate = nn.Linear(DIM, 3), nn.Parameter(torch.ones(3))

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        x = pyro.sample("x", dist.Normal(self.net(z), 0.5).to_event(1))
        pyro.sample("seen", dist.Bernoulli(logits=self.rate * x).to_event(1))


def hidden_entries_drawn() -> Made:
    model = mm.observe(Censored(), ("x", "seen"), draw=("x",))
    guide = mm.guides.Product(model, {"x": mm.nn.MLPEncoder(3, DIM), "seen": mm.nn.MLPEncoder(3, DIM)})
    mask = torch.rand(15, 3) < 0.6
    return model, guide, {"x": torch.randn(15, 3), "seen": mask.float()}, {"x": mask}


def bounded_by_another_latent() -> Made:
    """The support of one latent depends on the other."""

    def story() -> None:
        top = pyro.sample("top", dist.Gamma(torch.full((DIM,), 3.0), 2.0).to_event(1))
        z = pyro.sample("z", dist.Uniform(torch.zeros(DIM), top).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1))

    model = mm.observe(story, ("x",))
    return model, mm.guides.auto(model), {"x": torch.rand(15, DIM)}, None


HEALTHY: dict[str, Callable[[], Made]] = {
    "story with a covariate": story_with_covariate,
    "enumerated": enumerated,
    "global site": global_site,
    "handlers.observe": observed_by_hand,
    "many modalities": many_modalities,
    "hidden entries drawn": hidden_entries_drawn,
}
