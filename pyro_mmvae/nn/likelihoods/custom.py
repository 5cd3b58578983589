"""Any distribution as a likelihood.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_mmvae.nn.likelihoods.base import Likelihood
from pyro_mmvae.nn.mlp import positive_int

__all__ = ["FromCallable"]


class FromCallable(Likelihood):
    r"""
    A likelihood from ``fn(raw) -> Distribution``.

    ``raw`` has the shape (*batch, *event), or (*batch, *event, raw_per_feature) if that is more than 1. The result
    is a Pyro distribution of shape (*batch, *event), with any number of its dimensions declared event dimensions.
    An ``nn.Module`` may be given: its parameters are trained and saved.

    Example::

        >>> import pyro.distributions as dist
        >>> import torch
        >>> lik = FromCallable(lambda raw: dist.Gumbel(raw[..., 0], raw[..., 1].exp()), 2).build(3)
        >>> lik(torch.zeros(5, 3, 2)).event_shape
        torch.Size([3])

    :param fn: raw outputs -> Distribution.
    :param raw_per_feature: raw numbers per feature.
    :param support: support of a feature, or of the last dimensions jointly.
    :param joint_dims: trailing event dimensions over which it does not factorize.
    :param is_density: False if its ``log_prob`` is not normalized.
    :raises TypeError: if ``fn`` is not callable, or what it returns is not a Pyro distribution.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], TorchDistribution],
        raw_per_feature: int = 1,
        support: Constraint = constraints.real,
        *,
        joint_dims: int = 0,
        is_density: bool = True,
    ) -> None:
        super().__init__()
        if not callable(fn):
            raise TypeError(f"FromCallable: fn must be callable, got {type(fn).__name__}.")
        self.fn, self.feature_support = fn, support
        self.raw_per_feature = positive_int(raw_per_feature, "FromCallable: raw_per_feature")
        self.joint_dims, self.is_density = joint_dims, is_density

    def distribution(self, raw: Tensor) -> TorchDistribution:
        fn = self.fn(raw)
        if not hasattr(fn, "to_event"):
            raise TypeError(
                f"FromCallable: expected a Pyro distribution, got {type(fn).__name__}. "
                "Fix: build it from pyro.distributions instead of torch.distributions."
            )
        batch = raw.dim() - len(self.raw_shape())
        shape = fn.batch_shape + fn.event_shape
        if shape != raw.shape[:batch] + self._shape(None):
            raise ValueError(
                f"FromCallable: expected a distribution of shape {tuple(raw.shape[:batch] + self._shape(None))}, "
                f"batch and event together, got {tuple(shape)}."
            )
        return fn
