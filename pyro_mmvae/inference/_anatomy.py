"""What a dry run of a story tells inference: which plates its sites lie in, and which modality feeds which.

Layer: inference, private.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_mmvae.distributions import Lazy, stand_ins
from pyro_mmvae.inference._batch import Batch

__all__ = ["Anatomy", "anatomy"]

_SEEN: WeakKeyDictionary[Any, dict[Any, Anatomy]] = WeakKeyDictionary()


@dataclass
class Anatomy:
    """
    :ivar plates: site -> its plates beside ``data``, as negative dims from left to right.
    :ivar event_dim: site -> number of its event dimensions.
    :ivar feeds: site -> modalities whose values it depends on, through other modalities too.
    :ivar not_densities: modalities whose ``log_prob`` is no log-density, and latents whose prior is improper.
    """

    plates: dict[str, tuple[int, ...]] = field(default_factory=dict)
    event_dim: dict[str, int] = field(default_factory=dict)
    feeds: dict[str, frozenset[str]] = field(default_factory=dict)
    not_densities: tuple[str, ...] = ()

    def feeding(self, wanted: Collection[str], names: Collection[str]) -> frozenset[str]:
        """Modalities on whose values ``wanted`` ones or any latent depend: their missing entries must be drawn."""
        sites = [s for s in self.feeds if s in wanted or s not in names]
        return frozenset().union(*(self.feeds[s] for s in sites))


class _Look(Messenger):
    """Modality sites take a constant of their support, marked, so that what depends on it shows."""

    def __init__(self, fills: Mapping[str, Tensor], mark: bool) -> None:
        super().__init__()
        self.fills, self.mark = fills, mark
        self.found = Anatomy()

    def _pyro_sample(self, msg: Message) -> None:
        fn, name = msg["fn"], msg["name"]
        if isinstance(fn, _Subsample):
            return
        if name in self.fills:
            value = self.fills[name].expand(fn.batch_shape + fn.event_shape)
            msg["value"], msg["done"] = value, True
        if self.mark:
            probe = fn.inputs if isinstance(fn, Lazy) else fn.log_prob(fn() if msg["value"] is None else msg["value"])
            self.found.feeds[name] = get_provenance(probe)
        if not _is_density(fn):
            self.found.not_densities += (name,)

    def _pyro_post_sample(self, msg: Message) -> None:
        fn, name = msg["fn"], msg["name"]
        if isinstance(fn, _Subsample):
            return
        dims = sorted(f.dim for f in msg["cond_indep_stack"] if f.dim is not None and f.name != "data")
        self.found.plates[name], self.found.event_dim[name] = tuple(dims), fn.event_dim
        if self.mark and name in self.fills:
            marks = self.found.feeds[name] | {name}
            msg["value"] = ProvenanceTensor(detach_provenance(msg["value"]), marks)


def _is_density(fn: Any) -> bool:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    if isinstance(fn, Lazy):  # a decoder's bound method; its likelihood knows
        return bool(getattr(getattr(getattr(fn.fn, "__self__", None), "likelihood", None), "is_density", True))
    return bool(getattr(fn, "is_density", True))


def anatomy(batch: Batch) -> Anatomy:
    """
    Look at the story once; models that are no stories tell nothing, and every modality may feed every other.

    Dependence is read off by following values through the program. Where a program cannot be followed (values leave
    torch), every modality counts as feeding: correct, with decoders run that could have been left out.
    """
    if not batch.is_story:
        return Anatomy(feeds={m: frozenset(batch.names) for m in batch.names})
    model: Any = batch.model
    covariates = batch.covariates
    key = tuple((name, tuple(x.shape[1:]), x.dtype) for name, x in sorted(covariates.items()))
    seen = _SEEN.setdefault(model, {})
    if key not in seen:
        seen[key] = _look(model, covariates)
    return seen[key]


def _look(model: Any, covariates: Mapping[str, Tensor]) -> Anatomy:
    row = {name: x[:1] for name, x in covariates.items()}
    home = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    fills = {m: site.fill.to(home) for m, site in model.door.outline(covariates).modalities.items()}
    devices = [home.device] if home.device.type == "cuda" else []
    looks = {}
    for mark in (False, True):
        looks[mark] = _Look(fills, mark)
        try:
            with (
                torch.random.fork_rng(devices=devices),
                poutine.block(),
                stand_ins(),
                pyro.plate("data", 1, dim=-1),
                looks[mark],
            ):
                model.story(**row)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            if not mark:
                raise
            looks[False].found.feeds = {m: frozenset(fills) for m in looks[False].found.plates}
            return looks[False].found
    looks[False].found.feeds = looks[True].found.feeds
    return looks[False].found
