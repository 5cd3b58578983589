"""Cross-entropy on [0, 1] in the place of a likelihood.

Layer: distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

__all__ = ["BernoulliCrossEntropy"]


class BernoulliCrossEntropy(TorchDistribution):
    r"""
    The Bernoulli log-probability, read at any value between 0 and 1.

    .. math:: \log \tilde p(x) = x \log \sigma(l) + (1 - x) \log \sigma(-l), \qquad x \in [0, 1]

    **Not a density**: it integrates to less than 1 (``is_density`` is False), and values of it are no
    log-likelihoods. It is what much of the literature trains on gray levels;
    :class:`~pyro_mmvae.distributions.likelihoods.ContinuousBernoulli` is the normalized form.
    ``sample`` draws from the Bernoulli whose cross-entropy it is, so draws are 0 or 1; ``mean`` is :math:`\sigma(l)`.
    Law: at 0 and 1 it equals ``Bernoulli(logits=l)``.

    Example::

        >>> BernoulliCrossEntropy(torch.zeros(3)).log_prob(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-0.6931, -0.6931, -0.6931])

    :param logits: real, any shape.
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval
    is_density = False

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> BernoulliCrossEntropy:
        new = self._get_checked_instance(BernoulliCrossEntropy, _instance)
        batch_shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(batch_shape)
        super(BernoulliCrossEntropy, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        return self.logits.sigmoid() * (-self.logits).sigmoid()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return value * logsigmoid(self.logits) + (1 - value) * logsigmoid(-self.logits)
