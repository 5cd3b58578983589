"""Likelihoods of binary, categorical and ordered values.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus

from pyro_mmvae.nn.likelihoods.base import Likelihood, PerFeature
from pyro_mmvae.nn.mlp import positive_int

__all__ = ["Bernoulli", "Categorical", "OneHotCategorical", "Ordinal"]


def _num_classes(value: int, name: str) -> int:
    if positive_int(value, f"{name}: num_classes") < 2:
        raise ValueError(f"{name}: num_classes must be 2 or more, got {value}.")
    return value


class Bernoulli(Likelihood):
    r"""
    :math:`x_d \sim \mathrm{Bernoulli}(\sigma(h_d))`, values exactly 0 or 1. Mean: :math:`\sigma(h)`.

    Example::

        >>> Bernoulli().build(3)(torch.zeros(5, 3)).mean[0]
        tensor([0.5000, 0.5000, 0.5000])
    """

    feature_support = constraints.boolean

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return dist.Bernoulli(logits=raw)


class Categorical(Likelihood):
    r"""
    Class numbers 0 .. C-1, :math:`x_d \sim \mathrm{Categorical}(\mathrm{softmax}(h_d))`, for labels and token grids.

    The distribution has no mean (torch gives NaN); :func:`~pyro_mmvae.nn.expected` gives the class probabilities.

    Example::

        >>> lik = Categorical(10).build(())  # one label per sample
        >>> lik(torch.zeros(5, 10)).log_prob(torch.zeros(5)).exp()
        tensor([0.1000, 0.1000, 0.1000, 0.1000, 0.1000])

    :param num_classes: the number C of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = self.raw_per_feature = _num_classes(num_classes, "Categorical")
        self.feature_support = constraints.integer_interval(0, num_classes - 1)

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return dist.Categorical(logits=raw)


class OneHotCategorical(Likelihood):
    r"""
    Classes as one-hot vectors along the last event dimension, which is one joint draw. Mean: the class probabilities.

    Example::

        >>> lik = OneHotCategorical().build((7, 10))  # seven draws of ten classes
        >>> lik.joint_dims, lik(torch.zeros(5, 7, 10)).mean.shape
        (1, torch.Size([5, 7, 10]))

    :param num_classes: checked against the last dimension of the event, if given.
    """

    joint_dims = 1
    feature_support = constraints.one_hot

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = None if num_classes is None else _num_classes(num_classes, "OneHotCategorical")

    def raw_shape(self, event_shape: int | Sequence[int] | None = None) -> torch.Size:
        shape = super().raw_shape(event_shape)
        if self.num_classes is not None and shape[-1] != self.num_classes:
            raise ValueError(f"OneHotCategorical({self.num_classes}) got events of shape {tuple(shape)}.")
        return shape

    def distribution(self, raw: Tensor) -> TorchDistribution:
        return dist.OneHotCategorical(logits=raw)


class _CutPoints(PerFeature):
    """Increasing cut points per feature, first those of equal probabilities at 0."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def build(self, event_shape: torch.Size) -> None:
        points = torch.logit(torch.arange(1, self.num_classes, dtype=torch.float64) / self.num_classes)
        first, gaps = points[:1], torch.log(torch.expm1((points.diff() - 1e-3).clamp(min=1e-6)))  # inverse of forward
        start = torch.cat([first, gaps]).to(torch.get_default_dtype())
        self.raw = nn.Parameter(start.expand(event_shape + start.shape).clone())

    def forward(self) -> Tensor:  # shape: (*event, C - 1)
        first, gaps = self.raw[..., :1], softplus(self.raw[..., 1:]) + 1e-3
        return torch.cat([first, first + gaps.cumsum(-1)], -1)


class Ordinal(Likelihood):
    r"""
    Ordered classes 0 .. C-1 by cumulative logits: one raw output and C-1 learned cut points per feature.

    .. math:: p(x_d \le c \mid h_d) = \sigma(\tau_{dc} - h_d), \qquad \tau_{d0} < \dots < \tau_{d,C-2}

    Returned as a ``Categorical`` of these probabilities, differenced in log space: far from the cut points
    ``pyro.distributions.OrderedLogistic`` differences sigmoids, which underflows and stops the gradient.
    ``expected`` gives the class probabilities.

    Example::

        >>> lik = Ordinal(4).build(())
        >>> lik(torch.zeros(5)).probs[0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500], grad_fn=<SelectBackward0>)

    :param num_classes: the number C of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = _num_classes(num_classes, "Ordinal")
        self.feature_support = constraints.integer_interval(0, num_classes - 1)
        self.cut_points = _CutPoints(num_classes)

    def distribution(self, raw: Tensor) -> TorchDistribution:
        points = self.cut_points()
        below = points - raw.unsqueeze(-1)  # shape: (*batch, *event, C - 1)
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u))
        middle = torch.log(-torch.expm1(-points.diff()))
        inner = logsigmoid(below[..., 1:]) + logsigmoid(-below[..., :-1]) + middle
        logits = torch.cat([logsigmoid(below[..., :1]), inner, logsigmoid(-below[..., -1:])], -1)
        return dist.Categorical(logits=logits)
