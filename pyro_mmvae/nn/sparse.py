"""Variational dropout: experts whose noise is proportional to their location, with one rate per latent dimension.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mmvae.distributions.log_uniform import LOC_FLOOR
from pyro_mmvae.nn.config import Configurable
from pyro_mmvae.nn.mlp import positive_int

__all__ = ["DropoutRates", "VariationalDropoutHead", "share_rates"]

_LARGEST_LOG = 30.0  # squares and inverse squares of the scale stay numbers in float32
_OFF_SCALE = 1e-6  # far above the floor under |loc|: a dimension that is off counts as one of largest noise


class DropoutRates(Configurable, nn.Module):
    r"""
    The dropout rate of each latent dimension, learned, one for all encoders that are given this object.

    .. math:: p_d = \frac{\alpha_d}{1 + \alpha_d}, \qquad \log \alpha_d \sim N(0, 0.01^2) \text{ at the start}

    Encoders of ``family="dropout"`` take it as ``rates``, see :class:`VariationalDropoutHead`. A dimension whose rate
    goes to 1 carries noise only. Encoders that share it share one parameter, which is saved once and shared again by
    ``load``; ``from_config`` alone makes separate ones, which :func:`share_rates` joins.

    Example::

        >>> from pyro_mmvae.nn import MLPEncoder
        >>> rates = DropoutRates(5, threshold=0.2)
        >>> encoders = {m: MLPEncoder(4, 5, hidden=(), family="dropout", rates=rates) for m in ("a", "b")}
        >>> [round(p, 1) for p in rates.rates.tolist()]
        [0.5, 0.5, 0.5, 0.5, 0.5]

    :param latent_dim: size of z.
    :param threshold: in evaluation mode, dimensions with at least this rate are switched off; None: none are. The
        paper [1] takes 0.2.
    :raises ValueError: if ``latent_dim`` is no positive integer, or the threshold is not in (0, 1].

    [1] *Sparse Multi-Channel Variational Autoencoder for the Joint Analysis of Heterogeneous Data*, Antelmi, Ayache,
    Robert and Lorenzi, ICML 2019, PMLR 97:302-311.
    """

    def __init__(self, latent_dim: int, *, threshold: float | None = None) -> None:
        super().__init__()
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold: expected None or a dropout rate in (0, 1], got {threshold!r}.")
        self.latent_dim, self.threshold = positive_int(latent_dim, "latent_dim"), threshold
        self.log_alpha = nn.Parameter(torch.empty(latent_dim).normal_(0.0, 0.01))

    @property
    def rates(self) -> Tensor:  # shape: (latent_dim,)
        """The rates p, without gradient."""
        return self.log_alpha.detach().sigmoid()

    @property
    def dropped(self) -> Tensor:  # shape: (latent_dim,), bool
        """Dimensions that evaluation mode switches off."""
        threshold = torch.inf if self.threshold is None else self.threshold
        return self.rates >= threshold


class VariationalDropoutHead(Configurable, nn.Module):
    r"""
    Diagonal Gaussian whose noise is proportional to its location, :math:`q(z \mid h) = \mathcal N(\mu, \alpha \mu^2)`,
    :math:`\mu = W h + b` [1].

    The ratio :math:`\alpha_d` does not depend on the data: a dimension is noise for all samples or for none. Beside a
    :class:`~pyro_mmvae.distributions.LogUniform` prior, whose divergence depends on :math:`\alpha` alone, dimensions
    that the likelihoods do not need are dropped. The scale is :math:`\sqrt{\alpha} (|\mu| + 10^{-8})`, its logarithm
    cut at :math:`\pm 30`. In evaluation mode, dimensions above the threshold of ``rates`` have location 0 and scale
    1e-6 in every expert.

    Example::

        >>> head = VariationalDropoutHead(8, 2)
        >>> q = head(torch.randn(5, 8)).base_dist
        >>> torch.allclose(q.scale, head.rates.log_alpha.exp().sqrt() * q.loc.abs(), atol=1e-6)
        True

    :param rates: the rates, shared by all heads that are given the same object; None: rates of its own.
    :raises ValueError: if ``rates`` are those of another number of dimensions.

    [1] *Sparse Multi-Channel Variational Autoencoder for the Joint Analysis of Heterogeneous Data*, Antelmi, Ayache,
    Robert and Lorenzi, ICML 2019, PMLR 97:302-311.
    """

    def __init__(self, features: int, latent_dim: int, *, rates: DropoutRates | None = None) -> None:
        super().__init__()
        self.latent_dim = positive_int(latent_dim, "latent_dim")
        if rates is not None and rates.latent_dim != latent_dim:
            raise ValueError(
                f"DropoutRates: the rates are of {rates.latent_dim} dimensions, the encoder's latent has {latent_dim}. "
                f"Fix: DropoutRates({latent_dim})."
            )
        self.linear = nn.Linear(positive_int(features, "features"), latent_dim)
        self.rates = DropoutRates(latent_dim) if rates is None else rates

    def forward(
        self,
        h: Tensor,  # shape: (*batch, features)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: (latent_dim,)
        loc = self.linear(h)
        log_scale = 0.5 * self.rates.log_alpha + (loc.abs() + LOC_FLOOR).log()
        scale = log_scale.clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
        if not self.training and self.rates.threshold is not None:
            loc, scale = loc.masked_fill(self.rates.dropped, 0.0), scale.masked_fill(self.rates.dropped, _OFF_SCALE)
        return dist.Normal(loc, scale).to_event(1)


def share_rates(modules: Iterable[nn.Module]) -> DropoutRates | None:
    """
    Let all dropout heads in some modules use the rates of the first one, which are returned; None without such heads.

    Example::

        >>> heads = [VariationalDropoutHead(3, 2), VariationalDropoutHead(4, 2)]
        >>> share_rates(heads) is heads[1].rates
        True

    :raises ValueError: if their latent sizes or thresholds differ.
    """
    heads = [part for module in modules for part in module.modules() if isinstance(part, VariationalDropoutHead)]
    for head in heads:
        own, first = head.rates, heads[0].rates
        if (own.latent_dim, own.threshold) != (first.latent_dim, first.threshold):
            raise ValueError(
                f"DropoutRates to be shared differ: latent_dim {first.latent_dim} and {own.latent_dim}, threshold "
                f"{first.threshold} and {own.threshold}. Fix: make one DropoutRates and give it to every encoder."
            )
        head.rates = first
    return heads[0].rates if heads else None
