"""Likelihoods of real numbers.

Layer: nn.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mmvae.distributions import SharedScaleNormal
from pyro_mmvae.distributions.likelihoods import OptimalNormal
from pyro_mmvae.nn.likelihoods.base import Likelihood, PositiveParameter

__all__ = ["Laplace", "Normal", "StudentT"]


class _RunningScale(nn.Module):
    """Root of the running mean of the squared error per feature; 1 before the first update."""

    variance: Tensor
    updates: Tensor

    def __init__(self, floor: float, momentum: float = 0.1) -> None:
        super().__init__()
        self.floor, self.momentum, self.num_raw = floor, momentum, 0
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("updates", torch.tensor(0))

    @torch.no_grad()
    def update(self, total: Tensor, count: Tensor) -> None:
        """Move towards ``total / count``; the first batches count equally, then with the momentum."""
        seen = count > 0
        rate = (1.0 / (self.updates + 1)).clamp(min=self.momentum) * seen
        self.variance.lerp_((total / count.clamp(min=1)).to(self.variance), rate.to(self.variance))
        self.updates.add_(seen)

    def forward(self, like: Tensor) -> Tensor:
        # a copy: the buffer moves in place while graphs of earlier draws are still alive
        return self.variance.to(like.dtype).sqrt().clamp(min=self.floor)


class Normal(Likelihood):
    r"""
    Gaussian, :math:`x_d \sim \mathcal N(h_d, \sigma_d^2)`; the mean is the raw output.

    ``scale`` is the standard deviation: a number; "learned" (a parameter per feature); "predicted" (by the network,
    per sample and feature); or "optimal": in training the maximum-likelihood value of each batch in closed form
    (sigma-VAE [1]), one number over all that is scored, so the loss is a batch statistic and the value of a row depends
    on the others. In evaluation mode, and for draws, "optimal" is a fixed number, the running mean of the training
    batches' (1 before training), as in batch normalization; then log-densities are proper.
    Mean: ``h``. Learned and predicted scales are at least ``floor``.

    Example::

        >>> lik = Normal(scale="learned").build((4, 8))
        >>> lik(torch.zeros(5, 4, 8)).event_shape, lik.raw_shape(), Normal("predicted").raw_shape((4, 8))
        (torch.Size([4, 8]), torch.Size([4, 8]), torch.Size([4, 8, 2]))

    :param scale: positive number, "learned", "predicted" or "optimal".
    :param floor: smallest scale that is not fixed.
    :param init: where a learned or predicted scale starts (MCVAE: log-variance -3, scale 0.22).
    :raises ValueError: for another scale.

    [1] *Simple and Effective VAE Training with Calibrated Decoders*, Rybkin, Daniilidis and Levine, ICML 2021,
    arXiv:2006.13202, eq. (5).
    """

    def __init__(self, scale: float | str = 1.0, *, floor: float = 1e-3, init: float = 1.0) -> None:
        super().__init__()
        self.scale: PositiveParameter | _RunningScale
        if scale == "optimal":
            self.scale = _RunningScale(floor)
        else:
            self.scale = PositiveParameter(scale, "Normal: scale", floor=floor, init=init, also='"optimal", ')
        self.raw_per_feature = 1 + self.scale.num_raw

    def distribution(self, raw: Tensor) -> TorchDistribution:
        loc, *rest = self.split(raw)
        scale = self.scale(loc, *rest)
        if isinstance(self.scale, _RunningScale) and self.training:
            return OptimalNormal(loc, scale, floor=self.scale.floor, report=self.scale.update)
        if self.scale.num_raw:
            return dist.Normal(loc, scale)
        fixed = getattr(self.scale, "value", None)
        return SharedScaleNormal(loc, fixed if isinstance(fixed, int | float) else scale)


class Laplace(Likelihood):
    r"""
    :math:`x_d \sim \mathrm{Laplace}(h_d, b_d)`; the mean and median are the raw output.

    Example::

        >>> Laplace(0.75).build(3)(torch.zeros(5, 3)).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])

    :param scale: the scale b (standard deviation is :math:`\sqrt 2 b`): a positive number, "learned" per feature, or
        "predicted" per sample.
    """

    def __init__(self, scale: float | str = 1.0, *, floor: float = 1e-3) -> None:
        super().__init__()
        self.scale = PositiveParameter(scale, "Laplace: scale", floor=floor)
        self.raw_per_feature = 1 + self.scale.num_raw

    def distribution(self, raw: Tensor) -> TorchDistribution:
        loc, *rest = self.split(raw)
        return dist.Laplace(loc, self.scale(loc, *rest))


class StudentT(Likelihood):
    r"""
    Student's t, :math:`x_d \sim t_{\nu_d}(h_d, s_d)`, for data with outliers; the mean is the raw output.

    Example::

        >>> StudentT().build(3)(torch.zeros(5, 3)).mean.shape
        torch.Size([5, 3])

    :param df: degrees of freedom, a number above 1, or "learned" per feature (from 4, at least 1.01).
    :param scale: the scale s, not the standard deviation: a number, "learned" per feature, or "predicted".
    :raises ValueError: if ``df`` is 1 or less, where there is no mean.
    """

    def __init__(self, df: float | str = 4.0, scale: float | str = "learned", *, floor: float = 1e-3) -> None:
        super().__init__()
        if df == "predicted" or (isinstance(df, (int, float)) and df <= 1):
            raise ValueError(f'StudentT: df must be a number above 1 or "learned", got {df!r}.')
        self.df = PositiveParameter(df, "StudentT: df", floor=1.01, init=4.0)
        self.scale = PositiveParameter(scale, "StudentT: scale", floor=floor)
        self.raw_per_feature = 1 + self.scale.num_raw

    def distribution(self, raw: Tensor) -> TorchDistribution:
        loc, *rest = self.split(raw)
        return dist.StudentT(self.df(loc), loc, self.scale(loc, *rest))
