"""Per-feature masks inside an event: mask the features a likelihood factorizes over.

Layer: distributions.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

__all__ = ["factorized_dims", "mask_event"]


def _unwrap(fn: TorchDistribution) -> tuple[TorchDistribution, int]:
    """Strip ``Independent`` layers; the base and the number of dimensions they reinterpreted."""
    dims = 0
    while isinstance(fn, torch.distributions.Independent):
        dims, fn = dims + fn.reinterpreted_batch_ndims, fn.base_dist
    return fn, dims


def factorized_dims(fn: TorchDistribution) -> int:
    """How many event dimensions, from the left, are products of independent features."""
    return _unwrap(fn)[1]


def mask_event(
    fn: TorchDistribution,  # event_shape: event
    mask: Tensor,  # shape: (*batch, *event or ones), bool
    name: str = "the modality",
) -> TorchDistribution:
    r"""
    The density of the observed features alone.

    .. math:: \log p(x_{\mathrm{obs}}) = \sum_{d : \mathrm{mask}_d} \log p(x_d)

    Example::

        >>> fn = dist.Normal(0.0, 1.0).expand([2, 3]).to_event(1)
        >>> seen = torch.tensor([[True, False, False], [False, False, False]])
        >>> mask_event(fn, seen).log_prob(torch.zeros(2, 3)).shape
        torch.Size([2])

    :raises ValueError: naming the site, if the likelihood does not factorize over the masked dimensions.
    """
    base, dims = _unwrap(fn)
    joint = base.event_dim
    if any(size != 1 for size in mask.shape[mask.dim() - joint :]) or (dims == 0 and fn.event_dim > 0):
        raise ValueError(
            f"{name}: a per-feature obs_mask needs a likelihood that factorizes over the masked features, but "
            f"{type(base).__name__} is joint over its last {joint} event dimension(s). Fix: mask whole samples, "
            "shape (B,), or use a likelihood of independent features (.to_event)."
        )
    inner = mask.reshape(mask.shape[: mask.dim() - joint])
    if isinstance(base, dist.MaskedDistribution) and isinstance(base._mask, Tensor):
        base, inner = base.base_dist, base._mask & inner
    return base.mask(inner).to_event(dims)
