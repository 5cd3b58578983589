"""Amortized posteriors: the story's latent sites, each fused with the experts of what is observed.

Layer: guides, above stories and fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from pyro_mmvae import fusion as fusions
from pyro_mmvae.fusion import Experts, Fusion, posterior_at
from pyro_mmvae.guides.component import components_wanted
from pyro_mmvae.guides.encode import encode_rows, network_cost
from pyro_mmvae.guides.enumerated import Enumerated
from pyro_mmvae.handlers.registration import Registered
from pyro_mmvae.masks import Data, ObsMask, fill
from pyro_mmvae.nn import NamedModules, takes_mask
from pyro_mmvae.nn.covariates import arguments_of, picked
from pyro_mmvae.stories import ObservedModel, Outline, data_plate, observe

__all__ = ["Fused", "Product"]

EncoderMap = Mapping[str, nn.Module]


class Fused(nn.Module):
    r"""
    The guide ``guide(data, obs_mask)``: q(z | x_S) for any set S of observed modalities.

    It re-runs the story's latent sites and fuses, at each, the experts of the observed modalities with the site's
    own prior. Modality sites are not run. Latents without encoders keep their prior, but for sites that the story marks
    ``infer={"enumerate": "parallel"}``: those are left to ``TraceEnum_ELBO``, and later latents see the marginal over
    their values. Private latents listen to their own modality.

    .. math:: q(z_{1:L} \mid x_S) = \prod_l \mathrm{fuse}\bigl(p(z_l \mid z_{<l}), \{q(z_l \mid x_m)\}_{m \in S}\bigr)

    :param story: an observed model (see :func:`pyro_mmvae.observe`), or a story together with ``modalities``.
    :param encoders: modality -> encoder for a story with one shared latent, or latent site -> (modality -> encoder).
        An encoder is any module whose call returns a Distribution with event shape ``(D,)``; it gets the
        mask too if its ``forward`` has an argument ``mask``, and the covariates that it names (see
        :func:`pyro_mmvae.nn.covariates_of`), whether the story takes them or not. A site whose rule encodes modalities
        itself (:class:`pyro_mmvae.fusion.Pooled`) has none, ``{}``; None: no site has any.
    :param fusion: the rule; a mapping from site to rule gives sites different ones.
    :param modalities: names of the observed sites, if ``story`` is no observed model; default: those with encoders.
    :param private: latent site -> modality, if ``story`` is no observed model.
    :raises ValueError: for encoders of unknown sites or modalities, private sites with foreign encoders, and sites
        with encoders that their rule does not use, or without those that it does.
    """

    #: Masks may have leading dimensions: all rows of a table of terms are answered in one call.
    vectorized = True

    observed: ObservedModel
    encoders: Any  # NamedModules of NamedModules: torch types the parts of modules as tensors or modules
    fusion: Any

    def __init__(
        self,
        story: ObservedModel | Callable[..., Any],
        encoders: EncoderMap | Mapping[str, EncoderMap] | None = None,
        *,
        fusion: Fusion | Mapping[str, Fusion] | None = None,
        modalities: tuple[str, ...] | None = None,
        private: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        rule = fusions.Product() if fusion is None else fusion
        nested = _by_site(encoders, rule)
        if not isinstance(story, ObservedModel):
            rules = rule.values() if isinstance(rule, Mapping) else [rule]
            own_names = [m for own in nested.values() for m in own]
            own_names += [m for r in rules if r.modalities is not None for m in r.modalities]
            encoded = tuple(dict.fromkeys(own_names))
            story = observe(story, encoded if modalities is None else modalities, private=private)
        object.__setattr__(self, "observed", story)  # the model owns the story's parameters, not the guide
        sites = _sites(nested, story)
        self.encoders = NamedModules({site: NamedModules(own) for site, own in sites.items()})
        self.fusion = (
            NamedModules(rule) if isinstance(rule, Mapping) else NamedModules(dict.fromkeys(sites, rule))
        )
        self._heard = {site: _heard(site, own, self.fusion[site], story) for site, own in sites.items()}
        self.registered = Registered("guide")
        self._how: dict[tuple[str, str], Any] = {
            (site, m): {"cost": network_cost(e), "with_mask": takes_mask(e)}
            for site, own in self.encoders.items()
            for m, e in own.items()
        }
        self._reads = {(site, m): arguments_of(e) for site, own in self.encoders.items() for m, e in own.items()}
        names = [name for rule in self.fusion.values() for name in rule.covariates]
        names += [name for own in self._reads.values() for name in own]
        story.door.let_in(names)

    def encode(self, data: Data, obs_mask: ObsMask) -> dict[str, Experts]:
        """
        The experts of every latent site, on the rows where their modality is observed; once per step.

        :param data: prepared data.
        :param obs_mask: prepared masks ``(B, ...)``: what is observed, of which later masks are subsets.
        :raises ValueError: if a covariate that an encoder reads is missing.
        """
        done: dict[tuple[int, str], Any] = {}
        experts = {}
        for site, own in self.encoders.items():
            for m, encoder in own.items():
                if (id(encoder), m) not in done:
                    how = self._how[site, m]
                    rows, index = obs_mask.rows[m], obs_mask.index.get(m)
                    given = picked(self._reads[site, m], data, f"the encoder of {m!r}")
                    done[id(encoder), m] = encode_rows(
                        encoder, m, data[m], obs_mask[m], rows, given, index=index, **how
                    )
            features = self.fusion[site].features(data, obs_mask)
            dists = tuple(done[id(e), m] for m, e in own.items())
            experts[site] = Experts(self._heard[site], dists, features)
        return experts

    def register(self) -> None:
        """Make the parameters known to Pyro's store under a name of this object's own, for stock SVI."""
        self.registered(self)

    def forward(
        self,
        data: Mapping[str, Tensor | None] | None = None,
        obs_mask: Mapping[str, Tensor | None] | None = None,
        n: int | None = None,
        *,
        experts: Mapping[str, Experts] | None = None,
        fusion: Any = None,  # site -> Fusion, in place of the guide's own
    ) -> None:
        self.register()
        model = self.observed
        batch, masks = model.prepare(data, obs_mask, n)
        if experts is None:
            experts = self.encode(batch, masks)
        given = {name: batch[name] for name in model.covariates if name in batch}
        device = next(iter(batch.values())).device
        rules = self.fusion if fusion is None else fusion
        fuse = FuseMessenger(rules, experts, batch, masks, model.door.outline(given), model.private)
        try:
            with data_plate(batch.size, model.size, device), fuse:
                model.story(**given)
        except _LatentsDone:
            pass


def _by_site(
    encoders: EncoderMap | Mapping[str, EncoderMap] | None, rule: Fusion | Mapping[str, Fusion]
) -> dict[str, EncoderMap]:
    if encoders is None:
        return {site: {} for site in (rule if isinstance(rule, Mapping) else ("",))}
    if not isinstance(encoders, Mapping) or not encoders:
        raise ValueError("encoders: expected a non-empty mapping from modality (or latent site) to encoder.")
    if all(isinstance(e, nn.Module) and not isinstance(e, Mapping) for e in encoders.values()):
        return {"": encoders}  # type: ignore[dict-item]
    return dict(encoders)  # type: ignore[arg-type]


def _sites(nested: dict[str, EncoderMap], model: ObservedModel) -> dict[str, dict[str, nn.Module]]:
    """Encoders by latent site, with every name checked against the story where it can be."""
    unknown = {m for own in nested.values() for m in own} - set(model.modalities)
    if unknown:
        raise ValueError(f"encoders for unknown modalities {sorted(unknown)}; modalities are {list(model.modalities)}.")
    if "" in nested:
        nested = {_only_latent(model): nested[""]}
    elif not model.story.required:
        latents = model.door.outline().latents
        strange = [site for site in nested if site not in latents]
        if strange:
            raise ValueError(f"encoders for unknown latent sites {strange}; the story's latents are {list(latents)}.")
    for site, own in nested.items():
        owner = model.private.get(site)
        if owner is not None and own and set(own) != {owner}:
            raise ValueError(f"latent {site!r} is private to {owner!r}, but has encoders of {list(own)}.")
    return {site: {m: own[m] for m in model.modalities if m in own} for site, own in nested.items()}


def _heard(site: str, own: Mapping[str, nn.Module], rule: Fusion, model: ObservedModel) -> tuple[str, ...]:
    """The modalities that a latent site listens to: those with encoders, or those that its rule encodes itself."""
    kind, names = type(rule).__name__, rule.modalities
    if names is None and own:
        return tuple(own)
    if names is None:
        raise ValueError(
            f"latent {site!r} has no encoders, and its rule {kind} encodes nothing itself. Fix: encoders={{{site!r}: "
            "{modality: encoder}}, or fusion.Pooled(encoder)."
        )
    if own:
        raise ValueError(
            f"latent {site!r} has encoders of {list(own)}, which its rule {kind} does not use. Fix: {{{site!r}: {{}}}}."
        )
    unknown = sorted(set(names) - set(model.modalities))
    if unknown:
        raise ValueError(
            f"latent {site!r}: its rule {kind} encodes unknown modalities {unknown}; modalities are "
            f"{list(model.modalities)}."
        )
    owner = model.private.get(site)
    if owner is not None and set(names) != {owner}:
        raise ValueError(f"latent {site!r} is private to {owner!r}, but its rule {kind} encodes {list(names)}.")
    return names


def _only_latent(model: ObservedModel) -> str:
    """The latent that encoders without a site name belong to."""
    if model.story.required:
        raise ValueError(
            "encoders: the story takes covariates, so its latent sites are not known before data comes. Fix: name "
            "the site, encoders={'z': {modality: encoder}}."
        )
    sites = model.door.outline().latents
    latents = [site for site, latent in sites.items() if site not in model.private and not latent.enumerated]
    if len(latents) != 1:
        raise ValueError(
            f"encoders: the story has {len(latents)} shared latents, {latents}. Fix: name them, "
            "encoders={site: {modality: encoder}}."
        )
    return latents[0]


def Product(
    story: ObservedModel | Callable[..., Any],
    encoders: EncoderMap | Mapping[str, EncoderMap],
    *,
    prior_expert: fusions.product.PriorExpert = "always",
    modalities: tuple[str, ...] | None = None,
    private: Mapping[str, str] | None = None,
) -> Fused:
    """
    A guide that multiplies, at each latent site, the experts of what is observed with the story's prior.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     for m in ("a", "b"):
        ...         pyro.sample(m, dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("a", "b"))
        >>> guide = mm.guides.Product(model, {m: mm.nn.MLPEncoder(2, 2) for m in ("a", "b")})
        >>> trace = pyro.poutine.trace(guide).get_trace({"a": torch.zeros(3, 2)})
        >>> tuple(trace.nodes["z"]["value"].shape)
        (3, 2)

    See :class:`Fused` for the parameters; ``prior_expert`` is that of :class:`pyro_mmvae.fusion.Product`.
    """
    rule = fusions.Product(prior_expert=prior_expert)
    return Fused(story, encoders, fusion=rule, modalities=modalities, private=private)


class _LatentsDone(Exception):
    """The last latent is sampled: the rest of the story is likelihoods, which a guide does not run."""


class FuseMessenger(Messenger):
    """
    Replace each latent's prior by its fused posterior, skip modality sites, leave after the last latent.

    Enumerated latents without experts are not sampled: later latents see the marginal over their values.
    """

    def __init__(
        self,
        rules: Any,  # site -> Fusion
        experts: Mapping[str, Experts],
        data: Data,
        obs_mask: ObsMask,
        outline: Outline,
        private: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.rules, self.experts, self.data, self.obs_mask = rules, experts, data, obs_mask
        self.modalities, self.private = outline.modalities, private
        hidden = {site for site, latent in outline.latents.items() if latent.enumerated and site not in experts}
        self.last = next((site for site in reversed(outline.latents) if site not in hidden), None)
        self.enumerated = Enumerated(outline.nesting)

    def _pyro_sample(self, msg: Message) -> None:
        name = msg["name"]
        if isinstance(msg["fn"], _Subsample):
            return
        if msg["is_observed"]:
            msg["stop"] = True  # a factor of the story: the model's, not the guide's
        elif name in self.modalities:
            msg["value"] = fill(self.data[name], self.obs_mask[name], self.modalities[name].fill)
            msg["done"] = msg["stop"] = True
        elif name not in self.experts and msg["infer"].get("enumerate") is not None:
            self.enumerated.hide(msg)
        else:
            msg["fn"] = self.enumerated.prior(name, msg["fn"])
            if name in self.experts:
                self._fuse(msg, name)

    def _fuse(self, msg: Message, name: str) -> None:
        masks = self.obs_mask
        if name in self.private:
            masks = masks if masks.private is None else masks.private
            msg["infer"] = {**msg["infer"], "private_to": self.private[name]}  # type: ignore[typeddict-unknown-key]
        own = self.experts[name]
        own.largest, own.needed = masks.largest, masks.needed
        rule = self.rules[name]
        counts = rule.counts
        if counts is not None and components_wanted():
            msg["infer"] = {**msg["infer"], "counts": counts}  # type: ignore[typeddict-unknown-key]
        mask = torch.stack([masks.rows[m] for m in own.names])  # shape: (M, *batch)
        single = rule.takes_single_rows and mask.dim() <= 3
        if masks.owners is not None and single and set(masks.owners) <= set(own.names):
            members = [own.names.index(m) for m in masks.owners]
            mask = mask[members] if mask.dim() == 2 else mask[members, list(range(len(members)))].unsqueeze(0)
            own = own.only(members)
        msg["fn"] = posterior_at(rule, msg["fn"], own, mask, component=components_wanted(), site=name)

    def _pyro_post_sample(self, msg: Message) -> None:
        name = msg["name"]
        self.enumerated.drawn(name, msg["value"])
        if name == self.last:
            raise _LatentsDone
