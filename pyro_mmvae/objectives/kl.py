"""Kullback-Leibler divergences in closed form, where they are known.

Layer: objectives.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.distributions.utils import _sum_rightmost

__all__ = ["known_kl"]


def known_kl(q: Any, p: Any) -> Tensor | None:  # shape: (*batch,)
    r"""
    :math:`\mathrm{KL}(q \,\|\, p)` in nats where a closed form is registered, else None.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> float(known_kl(dist.Normal(torch.tensor(1.0), 1.0), dist.Normal(0.0, 1.0)))
        0.5
    """
    if isinstance(q, Independent) and isinstance(p, Independent):
        dims = q.reinterpreted_batch_ndims
        if dims == p.reinterpreted_batch_ndims:
            inner = known_kl(q.base_dist, p.base_dist)
            return None if inner is None else _sum_rightmost(inner, dims)
    if isinstance(q, Normal) and isinstance(p, Normal):
        ratio, shift = q.scale / p.scale, (q.loc - p.loc) / p.scale
        return 0.5 * (ratio * ratio + shift * shift - 1) - ratio.log()
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None
