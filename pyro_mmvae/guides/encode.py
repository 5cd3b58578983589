"""Running encoders on the rows that are observed.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.distributions import fill_value, map_params
from pyro_mmvae.handlers.observe import GATHER_WORK, all_rows_wanted
from pyro_mmvae.nn import modes_restored

__all__ = ["encode_rows", "network_cost"]


def network_cost(module: nn.Module) -> int | None:
    """Multiply-adds per row, roughly the number of weights; None for networks whose rows must be chosen exactly."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
        return None
    if any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules()):
        return None
    return sum(p.numel() for p in module.parameters())


def encode_rows(
    encoder: nn.Module,
    name: str,
    x: Tensor,  # shape: (B, *event), filled
    mask: Tensor,  # shape: (B, *event or ones), bool
    rows: Tensor,  # shape: (B,), bool
    covariates: Mapping[str, Tensor] | None = None,  # each shape: (B, ...)
    *,
    index: Tensor | None = None,  # shape: (R,)
    cost: int | None = None,
    with_mask: bool = False,
) -> Any:  # batch_shape: (B,), event_shape: (D,)
    """
    The expert of one modality for a batch; the network sees the observed rows, and those of its covariates.

    Rows without an observation hold constants inside each parameter's constraint. All rows run where leaving some
    out would save less than gathering costs.

    :raises TypeError: if the encoder returns no Distribution.
    :raises ValueError: if the expert's batch shape is not ``(B,)``.
    """
    count = x.shape[0]
    given = {} if covariates is None else covariates
    seen = mask.expand_as(x) if with_mask else None
    if all_rows_wanted():
        return _call(encoder, name, x, seen, given)
    if index is None:
        index = rows.nonzero().squeeze(-1)
    saved = count - index.numel()
    if saved and (cost is None or saved * cost >= GATHER_WORK):
        if index.numel() == 0:
            return _nothing(encoder, name, x, seen, given)
        own = {c: value.index_select(0, index) for c, value in given.items()}
        shown = None if seen is None else seen.index_select(0, index)
        gathered = _call(encoder, name, x.index_select(0, index), shown, own)
        return map_params(gathered, lambda p, constraint, k: _scatter(p, constraint, k, index, count))
    return _call(encoder, name, x, seen, given)


def _nothing(encoder: nn.Module, name: str, x: Tensor, seen: Tensor | None, covariates: Mapping[str, Tensor]) -> Any:
    """An expert for a batch that never shows this modality: one row in evaluation mode tells the family."""
    with modes_restored(encoder), torch.no_grad():
        encoder.eval()
        own = {c: value[:1] for c, value in covariates.items()}
        one = _call(encoder, name, x[:1], None if seen is None else seen[:1], own)
    return one.expand((x.shape[0],))


def _call(encoder: nn.Module, name: str, x: Tensor, mask: Tensor | None, covariates: Mapping[str, Tensor]) -> Any:
    try:
        expert = encoder(x, **covariates) if mask is None else encoder(x, mask=mask, **covariates)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"encoder of {name!r}: it normalizes over the batch (BatchNorm), but a single row is observed in this "
            "batch. Try one of the following fixes:\n1. nn.LayerNorm or nn.GroupNorm in place of BatchNorm\n"
            "2. larger batches\n3. encoder.eval()"
        ) from error
    if not isinstance(expert, torch.distributions.Distribution):
        raise TypeError(
            f"encoder of {name!r}: expected a Distribution over z, got {type(expert).__name__}. Fix: return e.g. "
            "dist.Normal(loc, scale).to_event(1)."
        )
    if tuple(expert.batch_shape) != (x.shape[0],) or len(expert.event_shape) != 1:
        raise ValueError(
            f"encoder of {name!r}: expected batch shape ({x.shape[0]},) and event shape (D,), got "
            f"{tuple(expert.batch_shape)} and {tuple(expert.event_shape)}. Fix: .to_event(1) on the last dimension."
        )
    return expert


def _scatter(p: Tensor, constraint: Any, event_dim: int, index: Tensor, count: int) -> Tensor:
    """Rows of a parameter put back at ``index``; a constant inside the constraint elsewhere."""
    if p.dim() <= event_dim:
        return p
    constant = fill_value(constraint, p.shape[1:]).to(p)
    full = constant.expand((count, *p.shape[1:]))
    return full.index_copy(0, index, p.expand((index.numel(), *p.shape[1:])))
