"""Likelihoods of numbers between 0 and 1, and of positive numbers.

Layer: nn.
"""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_mmvae.distributions import likelihoods
from pyro_mmvae.nn.likelihoods.base import Likelihood, PositiveParameter

__all__ = ["Beta", "ContinuousBernoulli", "LogNormal", "RelaxedBernoulli"]


class ContinuousBernoulli(Likelihood):
    r"""
    Exponential density on [0, 1], :math:`p(x_d) \propto e^{h_d x_d}`, for gray levels; normalized.

    Mean: :math:`1/(1 - e^{-h}) - 1/h`, not :math:`\sigma(h)`.

    Example::

        >>> import torch
        >>> ContinuousBernoulli().build(3)(torch.zeros(5, 3)).log_prob(torch.ones(5, 3))  # uniform
        tensor([0., 0., 0., 0., 0.])

    [1] Loaiza-Ganem and Cunningham, NeurIPS 2019, arXiv:1907.06845, eq. (4).
    """

    feature_support = constraints.unit_interval

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return likelihoods.ContinuousBernoulli(raw)


class RelaxedBernoulli(Likelihood):
    r"""
    Cross-entropy on [0, 1], :math:`x_d \log \sigma(h_d) + (1 - x_d) \log \sigma(-h_d)`: widely trained, not a density.

    ``is_density`` is False. Mean: :math:`\sigma(h)`; draws are 0 or 1, from the Bernoulli of that mean.

    Example::

        >>> RelaxedBernoulli().is_density, RelaxedBernoulli().support((2, 2)).event_dim
        (False, 2)
    """

    is_density = False
    feature_support = constraints.unit_interval

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return likelihoods.BernoulliCrossEntropy(raw)


class Beta(Likelihood):
    r"""
    :math:`x_d \sim \mathrm{Beta}(a_d, b_d)` with :math:`a = \mathrm{softplus}(h) + 10^{-3}`, b likewise; 0 < x < 1.

    Values of exactly 0 or 1 are outside the support. Mean: :math:`a / (a + b)`.

    Example::

        >>> Beta().raw_shape((4,))
        torch.Size([4, 2])
    """

    raw_per_feature = 2
    feature_support = likelihoods.open_unit_interval

    def distribution(self, raw: Tensor) -> TorchDistribution:
        a, b = self.split(raw)
        return likelihoods.OpenBeta(softplus(a) + 1e-3, softplus(b) + 1e-3)


class LogNormal(Likelihood):
    r"""
    :math:`\log x_d \sim \mathcal N(h_d, \sigma_d^2)`, for positive numbers. Mean: :math:`\exp(h + \sigma^2 / 2)`.

    Example::

        >>> import torch
        >>> LogNormal(1.0).build(3)(torch.zeros(5, 3)).mean[0, 0].log()
        tensor(0.5000)

    :param scale: standard deviation of the logarithm: a number, "learned" per feature, or "predicted" per sample.
    """

    feature_support = constraints.positive

    def __init__(self, scale: float | str = "learned", *, floor: float = 1e-3) -> None:
        super().__init__()
        self.scale = PositiveParameter(scale, "LogNormal: scale", floor=floor)
        self.raw_per_feature = 1 + self.scale.num_raw

    def distribution(self, raw: Tensor) -> TorchDistribution:
        loc, *rest = self.split(raw)
        return dist.LogNormal(loc, self.scale(loc, *rest))
