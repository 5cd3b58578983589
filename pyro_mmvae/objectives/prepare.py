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

from pyro_mmvae.masks import Data, ObsMask, batch_size, normalize
from pyro_mmvae.objectives.passes import Programs

__all__ = ["prepare"]

_SEEN: WeakKeyDictionary[Any, tuple[dict[str, torch.Size], int]] = WeakKeyDictionary()


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
        data, obs_mask = own(data, obs_mask, n)
        given = {name: data[name] for name in model.covariates if name in data}  # type: ignore[attr-defined]
        nesting = model.door.outline(given).nesting  # type: ignore[attr-defined]
        return Programs(model, guide, data, obs_mask, model.modalities, num_particles, nesting)  # type: ignore[attr-defined]
    shapes, nesting = _looked_at(model, data, obs_mask)
    raw = {} if data is None else {k: v for k, v in data.items() if v is not None}
    inside = Data(raw)
    inside.size = batch_size(raw, n)
    given = {k: v for k, v in (obs_mask or {}).items() if k in shapes}
    masks = normalize(given, shapes, inside.size, absent=[m for m in shapes if m not in raw])
    programs = Programs(model, guide, inside, masks, tuple(shapes), num_particles, nesting)
    programs.raw_mask = obs_mask
    return programs


def _looked_at(
    model: Callable[..., Any],
    data: Mapping[str, Tensor | None] | None,
    obs_mask: Mapping[str, Tensor | None] | None,
) -> tuple[dict[str, torch.Size], int]:
    if model not in _SEEN:
        with torch.random.fork_rng(), torch.no_grad(), poutine.block():
            trace = poutine.trace(model).get_trace(data, obs_mask)
        shapes, nesting = {}, 1
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            nesting = max([nesting, *(-f.dim for f in site["cond_indep_stack"] if f.dim is not None)])
            if "modality" in site["infer"]:
                shapes[name] = site["fn"].event_shape
        _SEEN[model] = shapes, nesting
    return _SEEN[model]
