"""The guide that is made from a story: one run of its heads.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from pyro_mmvae.distributions import Where
from pyro_mmvae.guides.auto.coordinates import Coordinates, coordinates, unconstrained
from pyro_mmvae.guides.auto.factors import Conditional, conditionals
from pyro_mmvae.guides.auto.look import Program, first_masks
from pyro_mmvae.guides.auto.messenger import HeadMessenger, LatentsDone
from pyro_mmvae.guides.auto.parts import Parts
from pyro_mmvae.handlers.observe import all_rows_wanted
from pyro_mmvae.handlers.registration import Registered, own_parameters
from pyro_mmvae.masks import Data, ObsMask

__all__ = ["Auto", "Encoded"]

_ENOUGH = 32  # rows from which the scale of channels is taken
_FAR = 8.0  # standardized inputs beyond are cut


@dataclass
class Encoded:
    """
    What the networks made of the rows, before any mask of whole modalities: reused over terms.

    :ivar values: channels of all modalities, zero where not observed, ``(*lead, B, C)``.
    :ivar features: modality -> ``(*lead, B, F)``.
    :ivar context: channels of the covariates, ``(B, K)``, or None.
    """

    values: Tensor
    features: dict[str, Tensor]
    context: Tensor | None

    def detach(self) -> Encoded:
        """The same, cut from the graph of the networks."""
        context = None if self.context is None else self.context.detach()
        return Encoded(self.values.detach(), {m: x.detach() for m, x in self.features.items()}, context)


class Auto(nn.Module):
    """
    The guide that :func:`auto` makes: ``guide(data, obs_mask)``, q(z | x_S) for every set S of observed entries.

    :param program: the story or native model.
    :param parts: networks, made to its measure.
    :param outer: the guide of the sites outside the plate ``data``, or None.
    """

    program: Any  # torch types attributes of modules as tensors or modules

    def __init__(self, program: Program, parts: Parts, outer: AutoGuide | None) -> None:
        super().__init__()
        object.__setattr__(self, "program", program)  # the model owns the story's parameters, not the guide
        if program.story is not None:
            object.__setattr__(self, "observed", program.story)
        self.parts, self.outer = parts, outer
        self.registered = Registered("guide")

    @property
    def vectorized(self) -> bool:
        """Masks may have leading dimensions, from when the scale of channels is settled."""
        return self.parts.settled

    def encode(self, data: Data, obs_mask: ObsMask) -> dict[str, Encoded]:
        """
        Channels and features of all modalities, once per step.

        :param data: prepared data.
        :param obs_mask: prepared masks: what is observed, of which later masks are subsets.
        """
        parts: Any = self.parts
        flat = {m: data[m].reshape(data.size, -1) for m in parts.channels}
        masks = {m: _entries(c, obs_mask, m) for m, c in parts.channels.items()}
        if self.training and not parts.settled and data.size >= _ENOUGH and not all_rows_wanted():
            for m, channels in parts.channels.items():
                some = obs_mask[m].reshape((-1, data.size, *obs_mask[m].shape[obs_mask.rows[m].dim() :])).any(0)
                channels.fit(flat[m], some.reshape(data.size, -1), only_far=True)
            parts.settle()
        values, features = [], {}
        for m, channels in parts.channels.items():
            own = torch.where(masks[m], channels(flat[m]), 0.0)
            values.append(own)
            features[m] = parts.features[m](torch.cat([own.clamp(-_FAR, _FAR), masks[m].to(own)], -1))
        shape = torch.broadcast_shapes(*(x.shape[:-1] for x in values))
        joined = torch.cat([x.expand((*shape, x.shape[-1])) for x in values], -1)
        return {"auto": Encoded(joined, features, parts.given(_present(parts, data)))}

    def register(self) -> None:
        """Make the parameters known to Pyro's store under a name of this object's own, for stock SVI."""
        self.registered(self)

    def forward(
        self,
        data: Mapping[str, Tensor | None] | None = None,
        obs_mask: Mapping[str, Tensor | None] | None = None,
        n: int | None = None,
        *,
        experts: Mapping[str, Encoded] | None = None,
    ) -> None:
        self.register()
        program, measure = self.program, self.parts.measure
        batch, masks = program.prepare(data, obs_mask, n)
        outer = self._outer(batch, masks) if self.outer is not None else {}
        encoded = self.encode(batch, masks) if experts is None else experts
        run = _Run(self.parts, encoded["auto"], batch, masks, outer)
        shown = {**{m: batch[m] for m in self.parts.channels}, **outer}
        handler = HeadMessenger(run.posterior, run.drawn, measure.sizes, shown, measure.private, measure.nesting)
        if not measure.sizes:
            return
        with suppress(LatentsDone), handler:
            program.run(batch, masks)

    def _outer(self, data: Data, masks: ObsMask) -> dict[str, Tensor]:
        """Values of the global sites; parameters are the guide's own, whatever the param store holds."""
        guide: Any = self.outer
        with own_parameters():
            return dict(guide(dict(data), first_masks(masks)))

    def __repr__(self) -> str:
        measure = self.parts.measure
        heads = ", ".join(f"{s} ({d})" for s, d in measure.sizes.items())
        return f"Auto({heads}; {'inspected' if measure.inspected else 'everything depends on everything before it'})"


class _Run:
    """One run of the guide: what was drawn so far, and the posterior of the next latent."""

    def __init__(
        self, parts: Parts, encoded: Encoded, data: Data, masks: ObsMask, outer: Mapping[str, Tensor]
    ) -> None:
        self.parts, self.encoded, self.masks = parts, encoded, masks
        self.measure = parts.measure
        self.context = parts.context_of(encoded.context, outer)
        self.y: dict[str, Tensor] = {}
        self.upstream: dict[str, Tensor] = {}
        self.now: Coordinates | None = None
        self._chains: dict[int, list[Conditional]] = {}
        self._trunks: dict[tuple[int, tuple[str, ...]], Tensor] = {}

    def posterior(self, site: str, prior: Any) -> Any:
        """The head's distribution where anything tells of the latent, the story's prior elsewhere."""
        view, masks = self.measure.views[site], self.masks
        if site in self.measure.private and masks.private is not None:
            masks = masks.private
        static: Any = self.parts.statics[site]
        mixed = site in self.measure.components
        self.now = coordinates(prior, (static.loc, static.scale), fixed=mixed)
        if not view.below:
            return prior
        own = self._chain(masks)[list(self.measure.sizes).index(site)]
        loc = own.loc(list(self.y.values()))
        seen = [self._trunk(masks, view.modalities), *(self.upstream[s] for s in view.upstream)]
        seen += [] if self.context is None else [self.context.clamp(-_FAR, _FAR)]
        shape = torch.broadcast_shapes(*(x.shape[:-1] for x in seen))
        inputs = torch.cat([x.expand((*shape, x.shape[-1])) for x in seen], -1)
        q = self.parts.heads[site](inputs, loc, own.root, self.now, prior)
        informed = torch.stack([masks.rows[m] for m in view.below]).any(0)
        return Where(informed, q, prior)

    def drawn(self, site: str, value: Tensor) -> None:
        """Remember a draw in standard coordinates, for the latents after it."""
        if self.now is None:
            raise RuntimeError(f"auto: latent {site!r} was drawn twice.")
        u = unconstrained(value, self.now.transform, self.now.shape)
        self.y[site] = self.now.standard(u)
        static: Any = self.parts.statics[site]
        self.upstream[site] = static(u).clamp(-_FAR, _FAR)

    def _chain(self, masks: ObsMask) -> list[Conditional]:
        """What the Gaussian factors say of each latent, given those before it."""
        if id(masks) not in self._chains:
            spread = [_entries(c, masks, m) for m, c in self.parts.channels.items()]
            shape = torch.broadcast_shapes(*(x.shape[:-1] for x in spread))
            mask = torch.cat([x.expand((*shape, x.shape[-1])) for x in spread], -1)
            precision, natural = self.parts.factors(self.encoded.values, mask, self.context)
            sizes = list(self.measure.sizes.values())
            self._chains[id(masks)] = conditionals(precision, natural, sizes, diagonal=self.parts.diagonal)
        return self._chains[id(masks)]

    def _trunk(self, masks: ObsMask, names: tuple[str, ...]) -> Tensor:  # shape: (*lead, B, H)
        """The sum of what is observed of some modalities, and the context, through the shared network."""
        key = id(masks), names
        if key not in self._trunks:
            pooled: Any = 0
            for m in names:
                pooled = pooled + torch.where(masks.rows[m].unsqueeze(-1), self.encoded.features[m], 0.0)
            if self.context is not None:
                shape = torch.broadcast_shapes(pooled.shape[:-1], self.context.shape[:-1])
                both = (pooled, self.context.clamp(-_FAR, _FAR))
                pooled = torch.cat([x.expand((*shape, x.shape[-1])) for x in both], -1)
            self._trunks[key] = self.parts.trunk(pooled)
        return self._trunks[key]


def _entries(channels: Any, masks: ObsMask, m: str) -> Tensor:  # shape: (*lead, B, C)
    """The mask of a modality's channels."""
    mask, batch = masks[m], masks.rows[m].shape
    return channels.spread(mask.reshape((*batch, -1)))


def _present(parts: Parts, data: Data) -> dict[str, Tensor]:
    missing = [n for n in parts.covariates if n not in data]
    if missing:
        raise ValueError(f"data lacks the covariates {missing}, which the guide was made with. Fix: add them.")
    return {n: data[n] for n in parts.covariates}
