"""The networks of a guide, and what they are made to the measure of.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.guides.auto.coordinates import bijection
from pyro_mmvae.guides.auto.factors import GaussianFactors
from pyro_mmvae.guides.auto.features import Channels
from pyro_mmvae.guides.auto.graph import View
from pyro_mmvae.guides.auto.heads import Head
from pyro_mmvae.nn import NamedModules
from pyro_mmvae.nn.mlp import mlp

__all__ = ["Measure", "OuterSite", "Parts", "Static"]

_FULL = 24  # unconstrained dimensions of all latents together up to which covariances are full
_MOST_PRODUCTS = 512  # of covariates and global values


class Static(nn.Module):
    """Location and scale of a latent's draws in unconstrained space: median and central 68 %."""

    loc: Tensor
    scale: Tensor

    def __init__(self, u: Tensor) -> None:  # shape: (N, D)
        super().__init__()
        low, middle, high = u.quantile(u.new_tensor([0.16, 0.5, 0.84]), dim=0)
        half = (high - low) / 2
        self.register_buffer("loc", middle)
        self.register_buffer("scale", torch.where(half > 1e-6, half, 1.0))

    def forward(self, u: Tensor) -> Tensor:
        """Standardized."""
        return (u - self.loc) / self.scale


@dataclass(frozen=True)
class OuterSite:
    """
    A site outside the plate ``data``: how its value becomes a vector.

    :ivar event_dim: of its value.
    :ivar plates: dims of its own plates, negative, without the event's.
    :ivar support: of its distribution.
    """

    event_dim: int
    plates: tuple[int, ...]
    support: Any

    def flat(self, value: Tensor) -> Tensor:  # shape: (*batch, 1 in the place of rows, E)
        """The value in unconstrained space, its plates among the event, one place for the rows."""
        transform = bijection(self.support)
        u = value if transform is None else transform.inv(value)
        batch = value.dim() - self.event_dim
        u = u.reshape((*u.shape[:batch], -1))
        while u.dim() - 1 < max([1, *(-d for d in self.plates)]):
            u = u.unsqueeze(0)
        for d in self.plates:
            u = u.movedim(d - 1, -1).unsqueeze(d - 2).flatten(-2)
        return u


@dataclass(frozen=True)
class Measure:
    """What the networks are made to: sizes of sites, the graph, where latents are mixtures."""

    views: dict[str, View]
    sizes: dict[str, int]
    outer: dict[str, OuterSite]
    private: dict[str, str]
    nesting: int
    inspected: bool
    components: dict[str, int]


class Parts(nn.Module):
    """
    The networks of a guide.

    :ivar channels: modality -> its channels; :ivar covariates: the same for covariates.
    :ivar features: modality -> a network of its channels.
    :ivar trunk: of pooled features and context, shared by all heads.
    :ivar heads: latent -> its head.
    :ivar statics: latent or global site -> location and scale of its draws.
    """

    settled_at: Tensor

    def __init__(
        self,
        measure: Measure,
        channels: Mapping[str, Channels],
        covariates: Mapping[str, Channels],
        statics: Mapping[str, Static],
        hidden: Sequence[int],
        flow: int,
    ) -> None:
        super().__init__()
        self.measure = measure
        self.channels, self.covariates = NamedModules(channels), NamedModules(covariates)
        self.statics = NamedModules(statics)
        given = sum(len(c.owner) for c in covariates.values())
        outer = sum(len(statics[s].loc) for s in measure.outer)
        self.products = 0 < given * outer <= _MOST_PRODUCTS
        self.context = given + outer + (given * outer if self.products else 0)
        sizes = measure.sizes
        self.diagonal = sum(sizes.values()) > _FULL
        self.factors = GaussianFactors(_loads(measure, channels), self.context, diagonal=self.diagonal)
        self.features = NamedModules(
            {m: mlp(2 * len(c.owner), hidden[:1], hidden[0], activation=nn.SiLU) for m, c in channels.items()}
        )
        self.trunk = mlp(hidden[0] + self.context, hidden, activation=nn.SiLU)
        self.heads = NamedModules(
            {
                s: Head(
                    hidden[-1] + self.context + sum(sizes[k] for k in measure.views[s].upstream),
                    size,
                    hidden[-1],
                    flow=flow,
                    components=measure.components.get(s, 0),
                    diagonal=self.diagonal,
                )
                for s, size in sizes.items()
            }
        )
        self.register_buffer("settled_at", torch.zeros((), dtype=torch.bool))
        self.settled = False
        self.all_outer: tuple[str, ...] = ()

    def given(self, data: Mapping[str, Tensor]) -> Tensor | None:  # shape: (B, K')
        """Channels of the covariates."""
        own = [c(data[n].reshape(len(data[n]), -1)) for n, c in self.covariates.items()]
        return torch.cat(own, -1) if own else None

    def context_of(self, given: Tensor | None, outer: Mapping[str, Tensor]) -> Tensor | None:  # shape: (*lead, B, K)
        """Covariates, values of global sites, and their products."""
        around = [self.statics[s](o.flat(outer[s])) for s, o in self.measure.outer.items()]
        if not around:
            return given
        shape = torch.broadcast_shapes(*(x.shape[:-1] for x in around), *(() if given is None else (given.shape[:-1],)))
        right = torch.cat([x.expand((*shape, x.shape[-1])) for x in around], -1)
        if given is None:
            return right
        left = given.expand((*shape, given.shape[-1]))
        products = [(left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(-2)] if self.products else []
        return torch.cat([left, right, *products], -1)

    def settle(self) -> None:
        """The scale of channels stays as it is from now on."""
        self.settled = True
        self.settled_at.fill_(True)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.settled = bool(self.settled_at)


def _loads(measure: Measure, channels: Mapping[str, Channels]) -> Tensor:  # shape: (C, D), bool
    """Which channels speak of which latents: those of a latent's descendants."""
    rows = []
    for m, own in channels.items():
        row = [m in measure.views[s].loads for s, size in measure.sizes.items() for _ in range(size)]
        rows += [row] * len(own.owner)
    return torch.tensor(rows, dtype=torch.bool).reshape(len(rows), sum(measure.sizes.values()))
