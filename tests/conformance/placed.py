"""Given noise for latents that are no location-scale family: mixtures and improper priors.

Test layer.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_mmvae.distributions import LogUniform, Mixture

Place = Callable[[Any, Tensor], Tensor]


def base_of(fn: Any) -> Any:
    """The distribution inside ``Independent``."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def chosen(
    weights: Tensor,  # shape: (E, *batch)
    key: Tensor,  # shape: (E, *batch)
    eps: Tensor,  # shape: (*sample, *batch)
) -> Tensor:  # shape: (*sample, *batch)
    """The component of each draw: where the noise falls among the cumulated weights, components ordered by ``key``."""
    weights, key = (p.expand(len(weights), *eps.shape) for p in (weights, key))
    order = key.argsort(0)
    picked = (torch.special.ndtr(eps) > weights.gather(0, order).cumsum(0)[:-1]).sum(0)
    return order.gather(0, picked.unsqueeze(0))[0]


def place(fn: Any, eps: Tensor, simple: Place) -> Tensor:
    """A mixture's draw is that of one component, picked by the noise itself; an improper prior gives zeros."""
    base = base_of(fn)
    if isinstance(base, LogUniform):
        return torch.zeros(eps.shape, dtype=eps.dtype, device=eps.device)
    if not isinstance(base, Mixture):
        return simple(fn, eps)
    parts, event = base_of(base.components), len(base.event_shape)
    eps = eps.expand(torch.broadcast_shapes(eps.shape, base.batch_shape + base.event_shape))
    loc, scale = (_line(getattr(parts, name).expand(parts.batch_shape), eps.dim()) for name in ("loc", "scale"))
    weights = _line(base.log_weights.exp(), eps.dim() - event)
    if event:
        picked = chosen(weights, loc[..., 0], eps.sum(-1) / eps.shape[-1] ** 0.5).unsqueeze(-1).expand(eps.shape)
    else:
        picked = chosen(weights, loc, eps)
    loc, scale = (p.expand(len(loc), *eps.shape).gather(0, picked.unsqueeze(0))[0] for p in (loc, scale))
    return loc + scale * eps


def _line(value: Tensor, dims: int) -> Tensor:
    """A parameter with its component dimension in front of the dimensions of the noise."""
    return value.reshape(value.shape[:1] + (1,) * (dims + 1 - value.dim()) + value.shape[1:])


@pytest.fixture
def noise_of_any_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise can be given to mixtures and improper priors too."""
    module = importlib.import_module("pyro_mmvae.handlers.noise")  # the package exports a function of this name
    monkeypatch.setattr(module, "_place", functools.partial(place, simple=module._place))
