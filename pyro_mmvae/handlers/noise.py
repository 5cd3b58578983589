"""Supplying the noise of reparametrized draws, for comparisons at equal noise.

Layer: handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_mmvae.distributions import Where
from pyro_mmvae.handlers.observe import in_plates

__all__ = ["NoiseMessenger", "noise"]


def _place(fn: TorchDistribution, eps: Tensor) -> Tensor:
    """loc + scale * eps, for location-scale families (wrappers removed)."""
    if isinstance(fn, Where):
        rows = fn.condition.reshape(fn.condition.shape + (1,) * len(fn.event_shape))
        return torch.where(rows, _place(fn.first, eps), _place(fn.second, eps))
    base = fn
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if isinstance(base, dist.Normal | dist.Laplace):
        return base.loc + base.scale * eps
    raise NotImplementedError(f"noise: {type(base).__name__} is no location-scale family. Fix: condition on draws.")


class NoiseMessenger(Messenger):
    """
    Draw named latent sites as loc + scale * eps with the eps given.

    :param eps: site -> Tensor broadcastable to the draw, or a function from the site's distribution to one.
    """

    def __init__(self, eps: Mapping[str, Tensor | Callable[[TorchDistribution], Tensor]]) -> None:
        super().__init__()
        self.eps = dict(eps)

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] not in self.eps or msg["is_observed"] or msg["done"]:
            return
        fn = in_plates(msg["fn"])
        eps = self.eps[msg["name"]]
        msg["value"] = _place(fn, eps(fn) if callable(eps) else eps)
        msg["done"] = True


def noise(eps: Mapping[str, Tensor | Callable[[TorchDistribution], Tensor]]) -> NoiseMessenger:
    """
    Context manager: supply the noise of Normal and Laplace latent sites.

    Example::

        >>> import pyro
        >>> with noise({"z": torch.tensor(2.0)}):
        ...     z = pyro.sample("z", dist.Normal(1.0, 3.0))
        >>> float(z)
        7.0
    """
    return NoiseMessenger(eps)
