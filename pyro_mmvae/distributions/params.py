"""Applying a function to all parameters of a distribution: take rows, scatter rows, detach.

Layer: distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import lazy_property

__all__ = ["map_params", "unwrap"]

ParamMap = Callable[[Tensor, str, int], Tensor]


def unwrap(fn: Any) -> Any:
    """The distribution of single features: ``Independent`` layers removed."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def map_params(
    fn: Any,
    f: Callable[[Tensor, Any, int], Tensor],
    event_dim: int = 0,
) -> Any:
    """
    The same distribution with every parameter tensor replaced.

    Example::

        >>> fn = dist.Normal(torch.zeros(3, 2), torch.ones(3, 2)).to_event(1)
        >>> map_params(fn, lambda p, constraint, event_dim: p[:1]).batch_shape
        torch.Size([1])

    :param f: ``(parameter, its constraint, number of its event dimensions) -> new parameter``; the event dimensions
        count those of the distribution around it.
    :raises NotImplementedError: for distributions that are not built from plain parameters.
    """
    own = getattr(fn, "map_params", None)
    if own is not None:
        return own(f, event_dim)
    if isinstance(fn, torch.distributions.Independent):
        dims = fn.reinterpreted_batch_ndims
        return map_params(fn.base_dist, f, event_dim + dims).to_event(dims)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        return dist.TransformedDistribution(map_params(fn.base_dist, f, event_dim), fn.transforms)
    known = type(fn).arg_constraints
    if not isinstance(known, Mapping):  # Uniform and others write it as a property
        known = fn.arg_constraints
    params = {
        name: f(fn.__dict__[name], constraint, event_dim + constraint.event_dim)
        for name, constraint in known.items()
        if name in _given(fn, known)
    }
    if not params:
        raise NotImplementedError(f"{type(fn).__name__} has no plain parameters; give it a method map_params(f, k).")
    try:
        return type(fn)(**params, validate_args=False)
    except TypeError as error:  # LKJCholesky and others take more than tensors
        raise NotImplementedError(
            f"{type(fn).__name__} is not made from its tensors alone ({error}). Fix: draws, e.g. predict(..., "
            "target=(), return_latents=True); or give it a method map_params(f, k)."
        ) from error


def _given(fn: Any, known: Mapping[str, Any]) -> set[str]:
    """Names of the parameters that make ``fn``; of equivalent ones (probs, logits) the first, the others are caches."""
    kind = type(fn)
    found = [name for name in fn.__dict__ if name in known and isinstance(fn.__dict__[name], Tensor)]
    cached = [name for name in found if isinstance(getattr(kind, name, None), lazy_property)]
    return set(found) - set(cached[1:])
