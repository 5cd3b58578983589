"""Covariates of a network: which it reads, which it cannot do without, and how their features join an input.

Layer: nn.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.columns import Column
from pyro_mmvae.nn.tables import Context

__all__ = [
    "Columns",
    "arguments_of",
    "beside",
    "context_of",
    "covariates_of",
    "declared",
    "features_of",
    "names_and_width",
    "picked",
    "read_context",
    "required_of",
    "set_context",
    "union",
    "with_context",
]

Columns = Sequence[Column | Mapping[str, Any]] | None


def covariates_of(network: nn.Module) -> tuple[str, ...]:
    """
    The covariates that an encoder or decoder reads, by name.

    They are the arguments of its ``forward`` beside the first and ``mask``, or, in their place, its attribute
    ``covariates``: names that it takes as keywords. Each comes with the batch dimensions of the first argument.

    Example::

        >>> class Decoder(nn.Module):
        ...     def forward(self, z, site, dose=None):
        ...         ...
        >>> covariates_of(Decoder()), required_of(Decoder())
        (('site', 'dose'), ('site',))
        >>> covariates_of(nn.Linear(2, 3))
        ()

    :raises TypeError: for an attribute that is no sequence of names, or an argument that cannot be given by name.
    """
    return tuple(arguments_of(network))


def required_of(network: nn.Module) -> tuple[str, ...]:
    """
    Those of :func:`covariates_of` without a default; by attribute all, or ``required_covariates``.

    :raises TypeError: as :func:`covariates_of`.
    """
    return tuple(name for name, needed in arguments_of(network).items() if needed)


def declared(program: object) -> dict[str, bool] | None:
    """
    The covariates that a module or function declares by attribute, and whether it needs them; None if it does not.

    :raises TypeError: if ``covariates`` is no sequence of names.
    """
    own: Any = getattr(program, "covariates", None)
    if own is None:
        return None
    if not isinstance(own, tuple | list) or not all(isinstance(name, str) for name in own):
        raise TypeError(
            f"{type(program).__name__}.covariates: expected a tuple of names, got {own!r}. Fix: covariates = ('site',)."
        )
    needed = getattr(program, "required_covariates", own)
    return {name: name in needed for name in own}


def arguments_of(network: nn.Module) -> dict[str, bool]:
    """The covariates that a network reads, and whether it needs them: see :func:`covariates_of`."""
    own = declared(network)
    if own is not None:
        return own
    out = {}
    for i, p in enumerate(inspect.signature(network.forward).parameters.values()):
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name == "mask" or (i == 0 and p.kind != p.KEYWORD_ONLY):
            continue
        if p.kind == p.POSITIONAL_ONLY:
            raise TypeError(
                f"{type(network).__name__}: argument {p.name!r} is positional only; covariates are given by name. Fix: "
                "drop the / in its forward."
            )
        out[p.name] = p.default is p.empty
    return out


def union(networks: Iterable[nn.Module], *names: str) -> dict[str, bool]:
    """``names``, which are needed, and the covariates of several networks, and whether any of them needs them."""
    out = dict.fromkeys(names, True)
    for network in networks:
        for name, needed in arguments_of(network).items():
            out[name] = out.get(name, False) or needed
    return out


def picked(
    arguments: Mapping[str, bool],
    data: Mapping[str, Tensor | None],
    owner: str,
) -> dict[str, Tensor]:
    """
    Covariates out of the data.

    :param arguments: names, and whether they are needed, as given by :func:`arguments_of`.
    :param owner: who reads them, for the message.
    :raises ValueError: if one that is needed is missing.
    """
    out = {}
    for name, needed in arguments.items():
        x = data.get(name)
        if x is not None:
            out[name] = x
        elif needed:
            raise ValueError(
                f"data[{name!r}] is missing: {owner} reads the covariate {name!r}. Fix: add it to data, complete, one "
                "entry per row."
            )
    return out


def context_of(columns: Columns) -> Context | None:
    """The networks' option ``context``: a :class:`Context`, or None where there is none."""
    return None if columns is None or not len(columns) else Context(columns)


def names_and_width(context: Context | None) -> tuple[tuple[str, ...], int]:
    """The covariates of a context, and how many features they make; none without one."""
    return ((), 0) if context is None else (context.names, context.width)


def features_of(
    context: Context | None,
    covariates: Mapping[str, Tensor],  # each shape: (*batch,)
    owner: str,
    dtype: torch.dtype,
) -> Tensor | None:  # shape: (*batch, width)
    """
    What a network reads of its covariates; None without a context.

    :raises ValueError: for covariates where there is no context, and as :class:`Context`.
    """
    if context is not None:
        return context(**covariates).to(dtype)
    if covariates:
        raise ValueError(f"{owner} reads no covariates, got {list(covariates)}. Fix: context=[Column(...)].")
    return None


def beside(
    h: Tensor,  # shape: (*batch, H)
    features: Tensor | None,  # shape: (*batch, width), or broadcastable to it
) -> Tensor:  # shape: (*batch, H + width)
    """An input, and the features of a context beside it."""
    if features is None:
        return h
    batch = torch.broadcast_shapes(h.shape[:-1], features.shape[:-1])
    return torch.cat([h.expand(*batch, -1), features.expand(*batch, -1)], -1)


def with_context(h: Tensor, context: Context | None, covariates: Mapping[str, Tensor], owner: str) -> Tensor:
    """:func:`beside` of :func:`features_of`."""
    return beside(h, features_of(context, covariates, owner, h.dtype))


def set_context(
    columns: Columns, modalities: Collection[str], own: Mapping[str, nn.Module]
) -> tuple[Context | None, tuple[str, ...], tuple[str, ...]]:
    """
    Of an encoder of sets: its context, the covariates that it reads, and those that it needs.

    :param own: modality -> feature network of the user's, which names its covariates itself.
    :raises ValueError: for a context that no network would read.
    """
    context = context_of(columns)
    if context is not None and set(own) >= set(modalities):
        raise ValueError(
            f"context={list(context.names)}: only the default networks read it, and all modalities have networks of "
            "their own. Fix: let these take the covariates as arguments of forward."
        )
    names = union(own.values(), *(() if context is None else context.names))
    return context, tuple(names), tuple(name for name, needed in names.items() if needed)


def read_context(
    context: Context | None,
    data: Mapping[str, Tensor | None],
    owner: str,
    dtype: torch.dtype,
) -> Tensor | None:  # shape: (B, width)
    """
    The features of a context, its covariates taken from the data.

    :raises ValueError: if one is missing.
    """
    if context is None:
        return None
    return context(**picked(dict.fromkeys(context.names, True), data, owner)).to(dtype)
