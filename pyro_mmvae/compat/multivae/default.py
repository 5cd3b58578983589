"""multivae's default networks, made of this library's modules.

Layer: compat.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from math import prod
from typing import TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mmvae.compat.multivae.networks import Family
from pyro_mmvae.distributions import Lazy
from pyro_mmvae.nn import Configurable, JointEncoder, MLPEncoder
from pyro_mmvae.nn.likelihoods import Likelihood
from pyro_mmvae.nn.mlp import event_size, mlp, multiply_adds

__all__ = ["SigmoidDecoder", "State", "default_decoder", "default_encoder", "default_joint_encoder"]

WIDTH = 512  # of every hidden layer

Module = TypeVar("Module", bound=nn.Module)

State = MutableMapping[str, Tensor]
"""Tensors of a checkpoint by name; what is used is taken out."""


class SigmoidDecoder(Configurable, nn.Module):
    r"""
    multivae's default decoder: one hidden layer, and a sigmoid on its outputs whatever the likelihood.

    .. math:: p(x \mid z) = \mathrm{likelihood}(\sigma(\mathrm{mlp}(z)))

    It is there to read old models: means are confined to (0, 1), and Bernoulli probabilities to [0.5, 0.731].
    For new ones take :class:`pyro_mmvae.nn.MLPDecoder`.

    Example::

        >>> from pyro_mmvae.nn import Normal
        >>> SigmoidDecoder(2, (3,), likelihood=Normal())(torch.zeros(5, 2)).event_shape
        torch.Size([3])

    :param latent_dim: width of what it is fed.
    :param shape: event shape.
    :param likelihood: with one raw number per feature.
    :param hidden: widths of the hidden layers.
    """

    def __init__(
        self, latent_dim: int, shape: Sequence[int], *, likelihood: Likelihood, hidden: Sequence[int] = (WIDTH,)
    ) -> None:
        super().__init__()
        self.latent_dim, self.event_shape = latent_dim, event_size(shape)
        self.likelihood = likelihood.build(self.event_shape)
        self.net = mlp(latent_dim, hidden, prod(self.event_shape))
        self.cost = multiply_adds(self.net)

    def forward(
        self,
        z: Tensor,  # shape: (*batch, latent_dim)
    ) -> Lazy:  # batch_shape: batch, event_shape: event
        support = self.likelihood.support()
        return Lazy(self.dense, z, event_shape=self.event_shape, support=support, cost=self.cost)

    def dense(
        self,
        z: Tensor,  # shape: (*batch, latent_dim)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: event
        """Run the network."""
        return self.likelihood(self.net(z).sigmoid().reshape(z.shape[:-1] + self.event_shape))


def default_encoder(
    state: State,
    prefix: str,
    shape: Sequence[int],
    *,
    family: Family = "normal",
    style: bool = False,
) -> tuple[MLPEncoder, MLPEncoder | None]:
    """
    A default encoder with its weights, and the one of the private latent, which shares the hidden layers.

    :param state: takes ``prefix`` + names out.
    :param style: whether there is a private latent.
    """
    trunk = _layers(state, prefix, style)
    shared = _encoder(state, prefix, trunk, shape, "", family)
    if not style:
        return shared, None
    private = _encoder(state, prefix, trunk, shape, "style_", family)
    private.net = shared.net
    return shared, private


def _layers(state: State, prefix: str, style: bool) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the hidden layers: two, or one where there is a private latent."""
    return [_linear(state, f"{prefix}layers.{i}.0") for i in range(1 if style else 2)]


def _encoder(
    state: State,
    prefix: str,
    trunk: Sequence[tuple[Tensor, Tensor]],
    shape: Sequence[int],
    head: str,
    family: Family,
) -> MLPEncoder:
    (loc, loc_bias), (raw, raw_bias) = (_linear(state, f"{prefix}{head}{name}") for name in ("embedding", "log_var"))
    half = 0.5 if family == "normal" else 1.0  # log of a standard deviation here, of a variance there
    net = MLPEncoder(shape, len(loc), hidden=(WIDTH,) * len(trunk), family=family)
    last = torch.cat([loc, half * raw]), torch.cat([loc_bias, half * raw_bias])
    return _fill(net, [*trunk, last])


def default_decoder(
    state: State, prefix: str, latent_dim: int, shape: Sequence[int], likelihood: Likelihood
) -> SigmoidDecoder:
    """A default decoder with its weights."""
    layers = [_linear(state, f"{prefix}layers.{i}.0") for i in range(2)]
    return _fill(SigmoidDecoder(latent_dim, shape, likelihood=likelihood), layers)


def default_joint_encoder(
    state: State, prefix: str, shapes: Mapping[str, Sequence[int]], latent_dim: int
) -> JointEncoder:
    """
    The default joint encoder with its weights: equal to multivae's on complete samples.

    Its copies of the encoders end in a linear map that goes straight into the next one: both are one here.
    """
    first, first_bias = _linear(state, f"{prefix}enc.0.0")
    features, columns, bias = [], [], first_bias
    for own, m in zip(first.split(latent_dim, -1), shapes, strict=True):
        features += _layers(state, f"{prefix}encoders.{m}.", False)
        embedding, offset = _linear(state, f"{prefix}encoders.{m}.embedding")
        _linear(state, f"{prefix}encoders.{m}.log_var")  # there, and never used
        columns.append(own @ embedding)
        bias = bias + own @ offset
    mask = first.new_zeros(WIDTH, len(shapes))
    second = _linear(state, f"{prefix}enc.1.0")
    (loc, loc_bias), (raw, raw_bias) = (_linear(state, f"{prefix}{name}") for name in ("fc1", "fc2"))
    last = torch.cat([loc, 0.5 * raw]), torch.cat([loc_bias, 0.5 * raw_bias])
    joint = JointEncoder(shapes, latent_dim, hidden=(WIDTH, WIDTH), features=(WIDTH, WIDTH))
    return _fill(joint, [*features, (torch.cat([*columns, mask], -1), bias), second, last])


def _linear(state: State, name: str) -> tuple[Tensor, Tensor]:
    return state.pop(f"{name}.weight"), state.pop(f"{name}.bias")


def _fill(module: Module, layers: Sequence[tuple[Tensor, Tensor]]) -> Module:
    """
    A module with these weights and biases in its linear layers, in order; its dtype becomes theirs.

    :raises ValueError: for another number of layers, or other shapes.
    """
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    module.to(layers[0][0].dtype)
    for linear, (weight, bias) in zip(linears, layers, strict=True):
        if linear.weight.shape != weight.shape:
            raise ValueError(f"expected weights {tuple(linear.weight.shape)}, got {tuple(weight.shape)}")
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
    return module
