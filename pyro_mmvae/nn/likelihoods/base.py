"""What a likelihood module is, and its per-feature parameters.

Layer: nn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from pyro_mmvae.nn.config import Configurable
from pyro_mmvae.nn.mlp import event_size

__all__ = ["Likelihood", "PerFeature", "PositiveParameter"]


class PerFeature(nn.Module):
    """Part of a likelihood that makes its parameters once the event shape is known."""

    def build(self, event_shape: torch.Size) -> None:
        """Make the parameters of each feature."""
        raise NotImplementedError


class PositiveParameter(PerFeature):
    r"""
    A positive number per feature: fixed, learned, or put out by the network.

    .. math:: \text{learned: } \epsilon + e^{w_d}, \qquad \text{predicted: } \epsilon + \mathrm{softplus}(h_d)

    Example::

        >>> scale = PositiveParameter("learned", init=2.0)
        >>> scale.build(torch.Size([3]))
        >>> scale(torch.zeros(5, 3)).detach()
        tensor([2., 2., 2.])

    :param value: a positive number, "learned" (one parameter per feature) or "predicted" (one more raw output each).
    :param floor: the smallest value of a learned or predicted one.
    :param init: where a learned one starts.
    :param also: further choices, as the error message names them.
    :raises ValueError: for anything else.
    """

    def __init__(
        self, value: float | str, name: str = "scale", *, floor: float = 1e-3, init: float = 1.0, also: str = ""
    ) -> None:
        super().__init__()
        fixed = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
        if not fixed and value not in ("learned", "predicted"):
            raise ValueError(f'{name} must be a positive number, {also}"learned" or "predicted", got {value!r}.')
        if not 0 <= floor < init:
            raise ValueError(f"{name}: floor must be at least 0 and below {init}, where it starts, got {floor!r}.")
        self.value, self.floor, self.init = value, floor, init
        self.num_raw = int(value == "predicted")
        self.log: nn.Parameter | None = None

    def build(self, event_shape: torch.Size) -> None:
        """Make the parameters of each feature."""
        if self.value == "learned":
            self.log = nn.Parameter(torch.full(event_shape, math.log(self.init - self.floor)))

    def forward(
        self,
        like: Tensor,  # shape: (*batch, *event)
        *raw: Tensor,  # shape: (*batch, *event), if predicted
    ) -> Tensor:  # shape: broadcastable to (*batch, *event)
        if self.log is not None:
            return self.floor + self.log.exp()
        if raw:
            return self.floor + softplus(raw[0])
        return like.new_full((), float(self.value))


class Likelihood(Configurable, nn.Module):
    r"""
    From the raw outputs of a network to a distribution over one modality.

    A likelihood says how many raw numbers it needs (:meth:`raw_shape`), makes the distribution (``forward``), and knows
    the support and the dimensions it factorizes over without running a network. It holds the parameters that do not
    depend on the latent, such as a learned scale per feature; :meth:`build`, called by the decoder, makes them.
    Raw outputs are real and unbounded: nothing is squashed but by the likelihood itself.

    Attributes: ``is_density`` (False: values of ``log_prob`` are no log-likelihoods), ``joint_dims`` (number of
    trailing event dimensions that are one joint draw; 0 if every feature is independent given the raw outputs).

    Subclasses set ``raw_per_feature`` and ``feature_support`` and implement ``distribution(raw)``.
    """

    is_density: bool = True
    joint_dims: int = 0
    raw_per_feature: int = 1
    feature_support: Constraint = constraints.real

    def __init__(self) -> None:
        super().__init__()
        self.event_shape: torch.Size | None = None

    @property
    def name(self) -> str:
        """Name of the family."""
        return type(self).__name__

    @property
    def factorizes(self) -> bool:
        """Whether single features may be missing: True if the density is a product over all features."""
        return self.joint_dims == 0

    def build(self, event_shape: int | Sequence[int]) -> Self:
        """
        Bind to an event shape and make the parameters of each feature; a second call with the same shape does nothing.

        :raises ValueError: if bound to another shape already, or if the shape does not fit the likelihood.
        """
        shape = event_size(event_shape, "event_shape")
        if self.event_shape is None:
            self.raw_shape(shape)
            for part in self.children():
                if isinstance(part, PerFeature):
                    part.build(shape)
            self.event_shape = shape
        if self.event_shape != shape:
            raise ValueError(
                f"This {self.name} likelihood has events of shape {tuple(self.event_shape)}, got {tuple(shape)}. "
                "Fix: make one likelihood object per decoder."
            )
        return self

    def raw_shape(self, event_shape: int | Sequence[int] | None = None) -> torch.Size:
        """Shape of the raw outputs for one sample: the event's, with a last dimension if it takes several per feature.

        :raises ValueError: if the shape does not fit the likelihood.
        """
        shape = self._shape(event_shape)
        if len(shape) < self.joint_dims:
            raise ValueError(f"{self.name} needs an event of {self.joint_dims} or more dimensions, got {tuple(shape)}.")
        return shape if self.raw_per_feature == 1 else torch.Size([*shape, self.raw_per_feature])

    def support(self, event_shape: int | Sequence[int] | None = None) -> Constraint:
        """The support of one event, known without a network."""
        dims = len(self._shape(event_shape)) - self.feature_support.event_dim
        return constraints.independent(self.feature_support, dims) if dims > 0 else self.feature_support

    def forward(
        self,
        raw: Tensor,  # shape: (*batch, *raw_shape)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: event
        event, expected = self._shape(None), self.raw_shape()
        if raw.shape[raw.dim() - len(expected) :] != expected:
            raise ValueError(f"{self.name}: expected raw outputs (*batch, *{tuple(expected)}), got {tuple(raw.shape)}.")
        if raw.dtype in (torch.float16, torch.bfloat16):  # log-densities under autocast
            raw = raw.float()
        fn = self.distribution(raw)
        return fn.to_event(len(event) - fn.event_dim)

    def distribution(self, raw: Tensor) -> TorchDistribution:
        """The distribution of the features, before ``to_event``."""
        raise NotImplementedError(f"{self.name} must implement distribution(raw).")

    def split(self, raw: Tensor) -> tuple[Tensor, ...]:
        """The raw outputs of each feature, one tensor (*batch, *event) each."""
        return raw.unbind(-1) if self.raw_per_feature > 1 else (raw,)

    def _shape(self, event_shape: int | Sequence[int] | None) -> torch.Size:
        if event_shape is not None:
            return event_size(event_shape, "event_shape")
        if self.event_shape is None:
            raise ValueError(f"This {self.name} likelihood knows no event shape. Fix: .build(event_shape) first.")
        return self.event_shape
