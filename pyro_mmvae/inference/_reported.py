"""What a run of the model shows beside its modalities: latents, per sample and global, and deterministic sites.

Layer: inference, private.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro.poutine import Trace
from torch import Tensor

from pyro_mmvae.inference._batch import Batch
from pyro_mmvae.inference._run import global_latents, local_latents, outer_form

__all__ = ["Reported", "reported"]


@dataclass(frozen=True)
class Reported:
    """
    Draws of one site.

    :ivar draws: ``(S, *plates, B, *event)``, or ``(S, *plates, *event)`` for a site without rows.
    :ivar plates: the number of plates beside ``data``.
    :ivar event_dim: the number of event dimensions.
    :ivar per_sample: whether there are rows.
    """

    draws: Tensor
    plates: int
    event_dim: int
    per_sample: bool

    @property
    def rows_first(self) -> Tensor:  # shape: (S, B, *plates, *event)
        """The draws with the rows, if there are any, right of the draws."""
        return self.draws.movedim(1 + self.plates, 1) if self.per_sample else self.draws


def reported(trace: Trace, batch: Batch, draws: int) -> dict[str, Reported]:
    """
    Latents and deterministic sites of a run of the model under the plate of draws.

    A deterministic site has rows where its value has those of the batch in the place of the plate ``data``.
    """
    out = {}
    for name, site in local_latents(trace).items():
        inner = [f for f in site["cond_indep_stack"] if f.dim is not None and -batch.nesting <= f.dim < -1]
        out[name] = Reported(outer_form(site["value"], site, batch, draws), len(inner), site["fn"].event_dim, True)
    for name, site in global_latents(trace).items():
        out[name] = _without_rows(site["value"], site, batch, draws, site["fn"].event_dim)
    names = {*batch.names}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site["infer"].get("_deterministic") and name not in names:
            out[name] = _deterministic(site, batch, draws)
    return {name: out[name] for name in trace.nodes if name in out}


def _inner(site: Any, batch: Batch) -> list[Any]:
    """The plates of a site beside ``data`` and those of draws, from left to right."""
    frames = [f for f in site["cond_indep_stack"] if f.dim is not None and f.dim >= -batch.nesting and f.name != "data"]
    return sorted(frames, key=lambda f: f.dim)


def _without_rows(value: Tensor, site: Any, batch: Batch, draws: int, event_dim: int) -> Reported:
    event = value.shape[value.dim() - event_dim :]
    inner = _inner(site, batch)
    sizes = {f.dim: f.size for f in inner}
    full = (draws, 1, *(sizes.get(d, 1) for d in range(-batch.nesting, 0)), *event)
    return Reported(value.expand(full).reshape(draws, *sizes.values(), *event), len(inner), event_dim, False)


def _deterministic(site: Any, batch: Batch, draws: int) -> Reported:
    """``pyro.deterministic`` counts all dimensions as the event's unless it is told, those of plates among them."""
    value, lead = site["value"], batch.nesting + 2
    told = site["fn"].event_dim if site["fn"].event_dim < value.dim() else max(value.dim() - lead, 0)
    full = value.reshape((1,) * max(lead + told - value.dim(), 0) + value.shape)
    rows = any(f.name == "data" for f in site["cond_indep_stack"])
    sizes = {f.dim: f.size for f in _inner(site, batch)} | ({-1: batch.size} if rows else {})
    block = (draws, 1, *(sizes.get(d, 1) for d in range(-batch.nesting, 0)))
    event = full.shape[lead:]
    if any(have not in (1, want) for have, want in zip(full.shape[:lead], block, strict=True)):
        return Reported(value.expand((draws, *value.shape)), 0, value.dim(), False)  # laid out in a way of its own
    full = full.expand(block + event).reshape(draws, *sizes.values(), *event)
    return Reported(full, len(sizes) - rows, len(event), rows)
