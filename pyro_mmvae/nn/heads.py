"""Expert families: linear heads from features to a distribution over the latent.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softmax, softplus

from pyro_mmvae.nn.config import Configurable
from pyro_mmvae.nn.mlp import positive_int
from pyro_mmvae.nn.sparse import DropoutRates, VariationalDropoutHead

__all__ = ["Family", "LaplaceHead", "LaplaceSoftmaxHead", "NormalHead", "SoftplusNormalHead", "make_head"]

Family = str | Callable[[int, int], nn.Module]
"""A family's name, or ``(features, latent_dim) -> Module`` whose call returns a Distribution with event_dim 1."""

_FLOOR = 1e-6
_LARGEST_LOG = 30.0  # an expert that knows nothing lets its scale grow without bound, and inf * 0 is NaN


class _LocScaleHead(Configurable, nn.Module):
    """Two linear maps; the second one is mapped to a positive scale by the subclass."""

    distribution: type = dist.Normal

    def __init__(self, features: int, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = positive_int(latent_dim, "latent_dim")
        self.linear = nn.Linear(positive_int(features, "features"), 2 * latent_dim)

    def forward(
        self,
        h: Tensor,  # shape: (*batch, features)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: (latent_dim,)
        loc, raw = self.linear(h).chunk(2, -1)
        return self.distribution(loc, self.scale(raw)).to_event(1)

    def scale(self, raw: Tensor) -> Tensor:
        """The positive scale."""
        raise NotImplementedError


class NormalHead(_LocScaleHead):
    r"""
    Diagonal Gaussian, :math:`q(z \mid h) = \mathcal N(W h + b,\; \exp(W' h + b')^2)`; the exponent is cut at
    :math:`\pm 30`.

    Example::

        >>> import torch
        >>> NormalHead(8, 2)(torch.zeros(5, 8)).event_shape
        torch.Size([2])
    """

    def scale(self, raw: Tensor) -> Tensor:
        """The positive scale; its logarithm stays in a range whose squares and inverse squares float32 can hold."""
        return raw.clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()


class SoftplusNormalHead(_LocScaleHead):
    r"""Diagonal Gaussian with :math:`\sigma = \mathrm{softplus}(W' h + b') + 10^{-6}`."""

    def scale(self, raw: Tensor) -> Tensor:
        """The positive scale."""
        return softplus(raw) + _FLOOR


class LaplaceHead(_LocScaleHead):
    r"""Independent Laplace factors with scale :math:`b = \mathrm{softplus}(W' h + b') + 10^{-6}`."""

    distribution = dist.Laplace

    def scale(self, raw: Tensor) -> Tensor:
        """The positive scale."""
        return softplus(raw) + _FLOOR


class LaplaceSoftmaxHead(_LocScaleHead):
    r"""
    Independent Laplace factors whose scales share a budget, :math:`b = D\,\mathrm{softmax}(W' h + b') + 10^{-6}`.

    The mean scale over the D latent dimensions is 1 (to the floor).

    [1] *Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models*, Shi et al., NeurIPS
    2019, arXiv:1911.03393 (the parametrization of its experiments).
    """

    distribution = dist.Laplace

    def scale(self, raw: Tensor) -> Tensor:
        """The positive scale."""
        return self.latent_dim * softmax(raw, -1) + _FLOOR


_FAMILIES: dict[str, Callable[[int, int], nn.Module]] = {
    "normal": NormalHead,
    "normal_softplus": SoftplusNormalHead,
    "laplace": LaplaceHead,
    "laplace_softmax": LaplaceSoftmaxHead,
}


def make_head(family: Family, features: int, latent_dim: int, rates: DropoutRates | None = None) -> nn.Module:
    """
    A head of the family.

    :param family: "normal", "normal_softplus", "laplace", "laplace_softmax", "dropout", or
        ``(features, latent_dim) -> Module``.
    :param rates: of "dropout", to be shared by several heads; None: rates of its own.
    :raises ValueError: for an unknown name, or rates of another family.
    :raises TypeError: if ``family`` is neither a name nor callable, or makes no module.
    """
    positive_int(latent_dim, "latent_dim")
    if isinstance(family, str) and family == "dropout":
        return VariationalDropoutHead(features, latent_dim, rates=rates)
    if rates is not None:
        raise ValueError(f"rates: only the family 'dropout' has dropout rates, got family={family!r}. Fix: drop one.")
    if isinstance(family, str):
        if family not in _FAMILIES:
            raise ValueError(
                f"Unknown expert family {family!r}. Known: {sorted(_FAMILIES)}, 'dropout', or a Module class."
            )
        return _FAMILIES[family](features, latent_dim)
    if isinstance(family, nn.Module) or not callable(family):
        raise TypeError(f"family: expected a name or (features, latent_dim) -> Module, got {type(family).__name__}.")
    head = family(features, latent_dim)
    if not isinstance(head, nn.Module):
        raise TypeError(f"family must make an nn.Module, got {type(head).__name__}.")
    return head
