"""The example stories with guides written by hand, and rows in which much is missing.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_mmvae.handlers import observe
from pyro_mmvae.stories import examples

LOCAL = (
    "FactorAnalysis",
    "DiscreteMixture",
    "ZINB",
    "MixedTable",
    "GammaPoisson",
    "DirichletCategorical",
    "SharedPrivate",
)
ALL = (*LOCAL, "Hospitals")

#: Guides written by hand, the same for every row: site -> distribution. Wider than the posteriors.
HAND: dict[str, dict[str, Callable[[], Any]]] = {
    "FactorAnalysis": {"z": lambda: dist.Normal(torch.full((4,), 0.1), 0.9).to_event(1)},
    "DiscreteMixture": {"z": lambda: dist.Normal(torch.full((2,), 0.1), 1.2).to_event(1)},
    "ZINB": {
        "z": lambda: dist.Normal(torch.full((2,), 0.1), 0.9).to_event(1),
        "library": lambda: dist.LogNormal(torch.tensor(4.2), 0.5),
    },
    "MixedTable": {"z": lambda: dist.Normal(torch.full((2,), 0.1), 0.9).to_event(1)},
    "GammaPoisson": {"rates": lambda: dist.Gamma(torch.tensor([2.2, 3.0]), torch.tensor([1.0, 0.7])).to_event(1)},
    "DirichletCategorical": {"share": lambda: dist.Dirichlet(torch.full((4,), 1.5))},
    "SharedPrivate": {
        "z": lambda: dist.Normal(torch.full((2,), 0.1), 0.9).to_event(1),
        "w_image": lambda: dist.Normal(torch.full((2,), 0.1), 0.9).to_event(1),
        "w_sound": lambda: dist.Normal(torch.full((1,), 0.1), 0.9).to_event(1),
    },
    "Hospitals": {
        "mean": lambda: dist.Normal(torch.tensor(0.1), 0.9),
        "effects": lambda: dist.Normal(torch.full((5,), 0.1), 0.9).to_event(1),
        "z": lambda: dist.Normal(torch.full((2,), 0.1), 0.9).to_event(1),
    },
}


def made(name: str) -> Any:
    """The story with its default seed."""
    return getattr(examples, name)()


def hand_guide(name: str) -> Callable[..., None]:
    """A Pyro guide whose draws look at no data."""

    def guide(data: Mapping[str, Tensor], obs_mask: Any = None) -> None:
        outside = getattr(made(name), "global_sites", ())
        sites = HAND[name]
        for site in outside:
            pyro.sample(site, sites[site]())
        with pyro.plate("data", len(next(iter(data.values()))), dim=-1):
            for site in sites:
                if site not in outside:
                    pyro.sample(site, sites[site]())

    return guide


def rows_of(name: str, n: int = 8) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Simulated rows with modalities and cells missing, the last row without anything; NaN or -1 where missing."""
    ds = made(name).simulate(n, seed=3)
    masks = {m: mask.clone() for m, mask in ds.obs_mask.items()}
    data = dict(ds.data)
    for m, mask in masks.items():
        mask[-1] = False
        cells = mask.reshape(mask.shape + (1,) * (data[m].dim() - mask.dim())).expand_as(data[m])
        data[m] = data[m].masked_fill(~cells, torch.nan if data[m].is_floating_point() else -1)
    return data, masks


def prior_log_weights(
    story: Any, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor], draws: int
) -> Tensor:  # shape: (K, B)
    """log p(x_O | z) at draws from the prior, by running the story under Pyro."""
    covariates = {name: x for name, x in data.items() if name not in story.modalities}
    size = len(next(iter(data.values())))
    with poutine.trace() as tracer, pyro.plate("draws", draws, dim=-2), pyro.plate("data", size, dim=-1):
        with observe(data, obs_mask, story.modalities):
            story(**covariates)
    tracer.trace.compute_log_prob()
    total = sum(tracer.trace.nodes[m]["log_prob"] for m in story.modalities)
    return total.expand(draws, size)  # type: ignore[union-attr]
