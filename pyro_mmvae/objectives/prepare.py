"""From whatever programs and data came to one prepared batch.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro import poutine
from torch import Tensor

from pyro_mmvae.distributions import fill_value, stand_ins
from pyro_mmvae.handlers.registration import unregistered
from pyro_mmvae.masks import Data, ObsMask, batch_size, fill, normalize
from pyro_mmvae.objectives.passes import Programs

__all__ = ["prepare"]

_SEEN: WeakKeyDictionary[Any, dict[Any, tuple[dict[str, _Site], int]]] = WeakKeyDictionary()


def prepare(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Mapping[str, Tensor | None] | None,
    obs_mask: Mapping[str, Tensor | None] | None,
    n: int | None,
    num_particles: int,
) -> Programs:
    """
    Check and fill the batch, and find the modalities and plates of the model.

    Models made by :func:`pyro_mmvae.observe` know their sites. Others are run once: modalities are the sites that
    ``handlers.observe`` marked; what else is observed is always scored.
    """
    own = getattr(model, "prepare", None)
    if own is not None:
        batch, masks = own(data, obs_mask, n)
        given = {name: batch[name] for name in model.covariates if name in batch}  # type: ignore[attr-defined]
        nesting = model.door.outline(given).nesting  # type: ignore[attr-defined]
        return Programs(model, guide, batch, masks, model.modalities, num_particles, nesting)  # type: ignore[attr-defined]
    if obs_mask is not None and not isinstance(obs_mask, Mapping):
        normalize(obs_mask, {}, 0)  # says what it should be
    raw = {} if data is None else {k: v for k, v in data.items() if v is not None}
    size = batch_size(raw, n)
    sites, nesting = _looked_at(model, data, obs_mask, size)
    if not sites:
        raise ValueError(
            "The model marks no modality. Try one of the following fixes:\n1. pyro_mmvae.observe(story, modalities)\n"
            "2. handlers.observe(data, obs_mask, modalities) around its sites\n"
            "3. handlers.marginalize_missing(model), if it writes pyro.sample(..., obs=, obs_mask=)"
        )
    given = {k: v for k, v in ({} if obs_mask is None else obs_mask).items() if k in sites}
    masks = _masks(sites, given, raw, size)
    inside = Data(raw)
    inside.size = size
    like = next((x for x in raw.values() if x.is_floating_point()), torch.empty(0))
    for m, site in sites.items():
        absent = site.constant.to(like).expand((size, *site.shape))
        inside[m] = _filled(m, raw[m], masks[m], site.constant) if m in raw else absent
    inside.filled = True
    programs = Programs(model, guide, inside, masks, tuple(sites), num_particles, nesting)
    door = masks.door_form()
    said = {m for m, x in given.items() if x is not None}
    own = {m: door[m] for m in sites if m not in raw or m not in said}
    programs.raw_mask = {**({} if obs_mask is None else obs_mask), **own}
    return programs


@dataclass(frozen=True)
class _Site:
    """
    A modality of a model that opens its own plates.

    :ivar shape: of one sample: its plates from left to right, then its event.
    :ivar plates: how many of these are plates.
    :ivar constant: a value inside the support.
    """

    shape: torch.Size
    plates: int
    constant: Tensor


def _masks(
    sites: Mapping[str, _Site], given: Mapping[str, Tensor | None], raw: Mapping[str, Tensor], size: int
) -> ObsMask:
    """Masks in inside form; those of modalities inside plates have an entry per element."""
    home = next((x.device for x in raw.values()), None)
    absent = [m for m in sites if m not in raw]
    masks = normalize(given, {m: site.shape for m, site in sites.items()}, size, absent=absent, device=home)
    if not any(site.plates for site in sites.values()):
        return masks
    wide = {m: masks[m].expand((size, *site.shape)) if site.plates else masks[m] for m, site in sites.items()}
    return ObsMask(wide, masks.event_dims)


def _filled(
    name: str,
    x: Tensor,  # shape: (B, *event)
    mask: Tensor,  # shape: (B, *event or ones)
    constant: Tensor,
) -> Tensor:  # shape: (B, *event)
    filled = fill(x, mask, constant)
    if filled.is_floating_point() and not bool(filled.isfinite().all()):
        raise ValueError(
            f"data[{name!r}] is NaN or infinite where obs_mask says it is observed. Fix: mark it as missing (False)."
        )
    return filled


def _looked_at(
    model: Callable[..., Any],
    data: Mapping[str, Tensor | None] | None,
    obs_mask: Mapping[str, Tensor | None] | None,
    size: int,
) -> tuple[dict[str, _Site], int]:
    """Every modality that is marked, and the number of plates; one run for data with the same names and shapes."""
    masked = set() if obs_mask is None else {m for m, x in obs_mask.items() if x is not None}
    shown = {} if data is None else {m: tuple(x.shape[1:]) for m, x in data.items() if x is not None}
    key = tuple((m, shape, m in masked) for m, shape in sorted(shown.items()))
    known = _SEEN.setdefault(model, {})
    if key not in known:
        with torch.random.fork_rng(), torch.no_grad(), poutine.block(), unregistered(), stand_ins():
            trace = poutine.trace(model).get_trace(data, obs_mask)
        sites, nesting = {}, 1
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            frames = site["cond_indep_stack"]
            nesting = max([nesting, *(-f.dim for f in frames if f.dim is not None)])
            modality = site["infer"].get("modality")
            if site["infer"].get("unmasked") and name in shown and any(f.name == "data" for f in frames):
                modality = name
            if modality is not None:
                _check_plates(modality, frames, size)
                sites[modality] = _site_of(modality, site, shown, native=modality != name)
        known[key] = sites, nesting
    return known[key]


def _check_plates(modality: str, frames: Sequence[Any], size: int) -> None:
    """
    The rows lie in a plate named data, at dim -1, and are those of the batch.

    :raises ValueError: otherwise.
    """
    frame = next((f for f in frames if f.name == "data"), None)
    if frame is None:
        plates = [f.name for f in frames]
        raise ValueError(
            f"modality {modality!r} lies outside a plate named 'data' (its plates: {plates}). Fix: with "
            "pyro.plate('data', len(rows), dim=-1) around everything that is per sample, in model and guide."
        )
    if frame.dim != -1:
        raise ValueError(
            f"modality {modality!r}: the plate 'data' has dim {frame.dim}, expected -1. Fix: pyro.plate('data', "
            "len(rows), dim=-1); plates inside a sample take dim=-2 and left of it."
        )
    if frame.size != size:
        raise ValueError(
            f"modality {modality!r}: the plate 'data' has {frame.size} rows, the data {size}. Fix: cut the batch "
            "outside of the model, pyro_mmvae.stories.data_plate(len(rows), size=N) scales it up to N rows."
        )


def _site_of(modality: str, site: Mapping[str, Any], shown: Mapping[str, Any], *, native: bool) -> _Site:
    fn = site["fn"]
    event = tuple(fn.event_shape)
    inner = sorted((f.dim, f.size) for f in site["cond_indep_stack"] if f.dim is not None and f.name != "data")
    shape = torch.Size([*(size for _, size in inner), *event])
    if native and modality not in shown:
        raise ValueError(
            f"site {modality!r} is observed, but data has no key {modality!r}; it has {sorted(shown)}. Fix: give the "
            "site the name of its data."
        )
    if inner and event and native:
        raise NotImplementedError(
            f"modality {modality!r} has event dimensions and lies in plates beside 'data': the mask of its statement "
            "and that of its data differ in shape. Fix: handlers.observe(data, obs_mask, modalities) around "
            "pyro.sample(name, fn) without obs."
        )
    if modality in shown and shown[modality] != tuple(shape):
        raise ValueError(
            f"data[{modality!r}]: expected shape {('B', *shape)}, got {('B', *shown[modality])}: its site has event "
            f"shape {event} in plates of sizes {[size for _, size in inner]} beside 'data'. Fix: reshape the data, or "
            "check .to_event and the plates of the model."
        )
    return _Site(shape, len(inner), fill_value(fn.support, fn.event_shape))
