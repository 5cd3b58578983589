"""From whatever programs and data came to one prepared batch.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro import poutine
from torch import Tensor

from pyro_mmvae.distributions import fill_value, stand_ins
from pyro_mmvae.handlers.registration import unregistered
from pyro_mmvae.masks import Data, batch_size, fill, normalize
from pyro_mmvae.objectives.passes import Programs

__all__ = ["prepare"]

_SEEN: WeakKeyDictionary[Any, tuple[dict[str, tuple[torch.Size, Tensor]], int]] = WeakKeyDictionary()


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
    constants, nesting = _looked_at(model, data, obs_mask)
    shapes = {m: shape for m, (shape, _) in constants.items()}
    if not shapes:
        raise ValueError(
            "The model marks no modality. Try one of the following fixes:\n1. pyro_mmvae.observe(story, modalities)\n"
            "2. handlers.observe(data, obs_mask, modalities) around its sites\n"
            "3. handlers.marginalize_missing(model), if it writes pyro.sample(..., obs=, obs_mask=)"
        )
    raw = {} if data is None else {k: v for k, v in data.items() if v is not None}
    inside = Data(raw)
    inside.size = batch_size(raw, n)
    given = {k: v for k, v in ({} if obs_mask is None else obs_mask).items() if k in shapes}
    masks = normalize(given, shapes, inside.size, absent=[m for m in shapes if m not in raw])
    like = next((x for x in raw.values() if x.is_floating_point()), torch.empty(0))
    for m, constant in constants.items():
        absent = constant[1].to(like).expand((inside.size, *constant[0]))
        inside[m] = _filled(m, raw[m], masks[m], constant) if m in raw else absent
    inside.filled = True
    programs = Programs(model, guide, inside, masks, tuple(shapes), num_particles, nesting)
    programs.raw_mask = {**({} if obs_mask is None else obs_mask), **{m: masks.rows[m] for m in shapes if m not in raw}}
    return programs


def _filled(
    name: str,
    x: Tensor,  # shape: (B, *event)
    mask: Tensor,  # shape: (B, *event or ones)
    constant: tuple[torch.Size, Tensor],
) -> Tensor:  # shape: (B, *event)
    filled = fill(x, mask, constant[1])
    if filled.is_floating_point() and not bool(filled.isfinite().all()):
        raise ValueError(
            f"data[{name!r}] is NaN or infinite where obs_mask says it is observed. Fix: mark it as missing (False)."
        )
    return filled


def _looked_at(
    model: Callable[..., Any],
    data: Mapping[str, Tensor | None] | None,
    obs_mask: Mapping[str, Tensor | None] | None,
) -> tuple[dict[str, tuple[torch.Size, Tensor]], int]:
    """Event shape and an in-support constant of every marked modality; the number of plates."""
    if model not in _SEEN:
        with torch.random.fork_rng(), torch.no_grad(), poutine.block(), unregistered(), stand_ins():
            trace = poutine.trace(model).get_trace(data, obs_mask)
        shapes, nesting = {}, 1
        for site in trace.nodes.values():
            if site["type"] != "sample":
                continue
            nesting = max([nesting, *(-f.dim for f in site["cond_indep_stack"] if f.dim is not None)])
            if "modality" in site["infer"]:
                shape = site["fn"].event_shape
                shapes[site["infer"]["modality"]] = shape, fill_value(site["fn"].support, shape)
        _SEEN[model] = shapes, nesting
    return _SEEN[model]
