"""Streaming sums of importance weights, in chunks of any size, and what they say about the estimate.

Layer: inference, private.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mmvae.inference._pareto import pareto_k, tail_length

__all__ = ["Weights"]


class Weights:
    r"""
    The log-mean of weights that come in chunks, shifted by their maximum throughout.

    .. math:: \log \hat p = \log \tfrac1K \sum_k w_k, \qquad
        \widehat{\mathrm{se}}^2 = \frac{K / \mathrm{ESS} - 1}{K - 1}, \qquad
        \mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}

    The standard error is the delta method's, sd(w) / (mean(w) sqrt(K)). Sums are in float64.

    Example::

        >>> w = Weights(4, tail=False)
        >>> w.add(torch.zeros(3, 1)); w.add(torch.zeros(1, 1))
        >>> w.ess.tolist(), w.standard_error.tolist()
        ([4.0], [0.0])

    :param count: the number of weights that will come, K.
    :param tail: keep the largest ones for Pareto's k.
    """

    def __init__(self, count: int, *, tail: bool) -> None:
        self.count, self.keep = count, tail_length(count) + 1 if tail else 0
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self.largest: Tensor | None = None

    def add(
        self,
        log_weight: Tensor,  # shape: (k, B)
    ) -> None:
        """Take the next chunk."""
        w = log_weight if log_weight.device.type == "mps" else log_weight.double()
        first, second = w.logsumexp(0), (2 * w).logsumexp(0)
        self.first = first if self.first is None else torch.logaddexp(self.first, first)
        self.second = second if self.second is None else torch.logaddexp(self.second, second)
        if self.keep:
            pool = w if self.largest is None else torch.cat([self.largest, w])
            self.largest = pool.topk(min(self.keep, pool.shape[0]), 0).values

    @property
    def value(self) -> Tensor:  # shape: (B,)
        """The log of the mean weight."""
        return self._sums()[0] - math.log(self.count)

    @property
    def ess(self) -> Tensor:  # shape: (B,)
        """The effective number of weights, between 1 and K."""
        first, second = self._sums()
        return (2 * first - second).exp().clamp(max=self.count)

    @property
    def standard_error(self) -> Tensor:  # shape: (B,)
        """Of the log of the mean; NaN for a single weight."""
        if self.count == 1:
            return torch.full_like(self.value, torch.nan)
        return ((self.count / self.ess - 1) / (self.count - 1)).clamp(min=0.0).sqrt()

    @property
    def pareto_k(self) -> Tensor:  # shape: (B,)
        """Shape of the tail of the weights, see :func:`pareto_k`."""
        if self.largest is None:
            raise ValueError("Weights(tail=True) keeps what Pareto's k needs.")
        return pareto_k(self.largest, self.count)

    def _sums(self) -> tuple[Tensor, Tensor]:
        if self.first is None or self.second is None:
            raise ValueError("No weights came.")
        return self.first, self.second
