"""Likelihoods of counts.

Layer: nn.
"""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mmvae.distributions import likelihoods
from pyro_mmvae.nn.likelihoods.base import Likelihood, PositiveParameter
from pyro_mmvae.nn.mlp import positive_int

__all__ = ["Binomial", "NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]


class Binomial(Likelihood):
    r"""
    Counts from 0 to a known total, :math:`x_d \sim \mathrm{Binomial}(n, \sigma(h_d))`. Mean: :math:`n\,\sigma(h)`.

    Example::

        >>> Binomial(16).support((4, 8)).event_dim
        2

    :param total_count: the number n of trials.
    """

    def __init__(self, total_count: int) -> None:
        super().__init__()
        self.total_count = positive_int(total_count, "Binomial: total_count")
        self.feature_support = constraints.integer_interval(0, total_count)

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return likelihoods.Binomial(raw.new_full((), self.total_count), logits=raw)


class Poisson(Likelihood):
    r"""
    :math:`x_d \sim \mathrm{Poisson}(e^{h_d})`. Mean: :math:`e^h`.

    Example::

        >>> import torch
        >>> Poisson().build(2)(torch.zeros(5, 2)).mean[0]
        tensor([1., 1.])
    """

    feature_support = constraints.nonnegative_integer

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return likelihoods.Poisson(raw.exp())


def _negative_binomial(log_mean: Tensor, total_count: Tensor) -> TorchDistribution:
    return likelihoods.NegativeBinomial(total_count, logits=log_mean - total_count.log())


class NegativeBinomial(Likelihood):
    r"""
    Overdispersed counts with mean :math:`\mu_d = e^{h_d}` and variance :math:`\mu_d + \mu_d^2 / r_d`.

    The raw output is the logarithm of the mean; ``total_count`` is r, the inverse dispersion (Poisson as it grows).

    Example::

        >>> import torch
        >>> fn = NegativeBinomial(2.0).build(3)(torch.zeros(5, 3))
        >>> fn.mean[0, 0], fn.variance[0, 0]
        (tensor(1.), tensor(1.5000))

    :param total_count: r: a positive number, "learned" per feature, or "predicted" per sample.
    """

    feature_support = constraints.nonnegative_integer

    def __init__(self, total_count: float | str = "learned", *, floor: float = 1e-3) -> None:
        super().__init__()
        self.total_count = PositiveParameter(total_count, "NegativeBinomial: total_count", floor=floor)
        self.raw_per_feature = 1 + self.total_count.num_raw

    def distribution(self, raw: Tensor) -> TorchDistribution:
        log_mean, *rest = self.split(raw)
        return _negative_binomial(log_mean, self.total_count(log_mean, *rest))


class ZeroInflatedNegativeBinomial(Likelihood):
    r"""
    Zero with probability :math:`\sigma(g_d)`, else negative binomial with mean :math:`e^{h_d}`.

    The raw outputs of a feature are h and g (and the total count, if predicted). Mean: :math:`\sigma(-g)\,e^h`.

    Example::

        >>> ZeroInflatedNegativeBinomial().raw_shape(7)
        torch.Size([7, 2])

    :param total_count: as in :class:`NegativeBinomial`.
    """

    feature_support = constraints.nonnegative_integer

    def __init__(self, total_count: float | str = "learned", *, floor: float = 1e-3) -> None:
        super().__init__()
        self.total_count = PositiveParameter(total_count, "ZeroInflatedNegativeBinomial: total_count", floor=floor)
        self.raw_per_feature = 2 + self.total_count.num_raw

    def distribution(self, raw: Tensor) -> TorchDistribution:
        log_mean, gate, *rest = self.split(raw)
        base = _negative_binomial(log_mean, self.total_count(log_mean, *rest))
        # not Pyro's ZeroInflatedNegativeBinomial: its validation refuses float32 logits above 17
        return dist.ZeroInflatedDistribution(base, gate_logits=gate)
