"""Decoders: modules from the latent to a lazy likelihood of one modality.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mmvae.distributions import Lazy
from pyro_mmvae.nn.config import Configurable
from pyro_mmvae.nn.covariates import Columns, beside, context_of, features_of, names_and_width
from pyro_mmvae.nn.encoders import image_size
from pyro_mmvae.nn.likelihoods import Likelihood, resolve
from pyro_mmvae.nn.mlp import event_size, mlp, multiply_adds, positive_int

__all__ = ["ConvDecoder", "LinearDecoder", "MLPDecoder"]


def _lazy(decoder: MLPDecoder | ConvDecoder, z: Tensor, covariates: Mapping[str, Tensor]) -> Lazy:
    """The likelihood at z, whose network has not run."""
    if z.dim() == 0 or z.shape[-1] != decoder.latent_dim:
        raise ValueError(
            f"{type(decoder).__name__} expected a latent (*batch, {decoder.latent_dim}), got shape {tuple(z.shape)}. "
            "Fix: its latent_dim is the total width of the latents it is fed, shared and private."
        )
    features = features_of(decoder.context, covariates, type(decoder).__name__, z.dtype)
    inputs = (z,) if features is None else (z, features)
    support = decoder.likelihood.support()
    return Lazy(decoder.dense, *inputs, event_shape=decoder.event_shape, support=support, cost=decoder.cost)


def _input(decoder: MLPDecoder | ConvDecoder, z: Tensor, features: Tensor | None) -> Tensor:
    """What the network reads: z, and the features of its context."""
    if (features is None) != (decoder.context is None):
        takes = "no features" if decoder.context is None else "the features of its context"
        raise ValueError(f"{type(decoder).__name__}.dense takes {takes}. Fix: dense(z, dec.context(age=...)).")
    return beside(z, features)


class MLPDecoder(Configurable, nn.Module):
    r"""
    Likelihood of a vector, or of any event: :math:`p(x \mid z) = \mathrm{likelihood}(\mathrm{mlp}(z))`.

    The call returns a :class:`~pyro_mmvae.distributions.Lazy`: the network runs when a density, a draw or a mean is
    asked for, and only on the rows that are scored. ``dec.dense(z)`` runs it at once. Nothing squashes the outputs but
    the likelihood. With a context it is ``dec(z, age=..., site=...)``, :math:`p(x \mid z, c)`.

    Example::

        >>> dec = MLPDecoder(3, (4, 8), likelihood="normal_learned", hidden=(16,))
        >>> p = dec(torch.zeros(7, 5, 3))
        >>> p.batch_shape, p.event_shape, p.log_prob(torch.zeros(5, 4, 8)).shape
        (torch.Size([7, 5]), torch.Size([4, 8]), torch.Size([7, 5]))

    :param latent_dim: total width of what it is fed (shared and private latents concatenated).
    :param shape: event shape; an int is a vector, ``()`` one number per sample.
    :param likelihood: a name or an object of ``pyro_mmvae.nn``, e.g. ``"bernoulli"`` or ``Binomial(16)``.
    :param hidden: widths of the hidden layers; ``()`` for a linear decoder.
    :param dropout: rate after each hidden layer.
    :param context: columns of the covariates that it reads: their :class:`~pyro_mmvae.nn.Context` is put beside z.
    :ivar covariates: their names.
    :raises ValueError: for sizes that are not positive, unknown likelihoods, or a latent of another width.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: int | Sequence[int],
        *,
        likelihood: str | Likelihood = "normal",
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        context: Columns = None,
    ) -> None:
        super().__init__()
        self.context = context_of(context)
        self.covariates, extra = names_and_width(self.context)
        self.latent_dim, self.event_shape = positive_int(latent_dim, "latent_dim"), event_size(shape)
        self.likelihood = resolve(likelihood).build(self.event_shape)
        self.raw_shape = self.likelihood.raw_shape()
        self.net = mlp(latent_dim + extra, hidden, prod(self.raw_shape), activation=activation, dropout=dropout)
        self.cost = multiply_adds(self.net)

    def forward(
        self,
        z: Tensor,  # shape: (*batch, latent_dim)
        **covariates: Tensor,  # each shape: (*batch,) or fewer leading dimensions
    ) -> Lazy:  # batch_shape: batch, event_shape: event
        return _lazy(self, z, covariates)

    def dense(
        self,
        z: Tensor,  # shape: (*batch, latent_dim)
        features: Tensor | None = None,  # shape: (*batch, width) or fewer leading dimensions
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: event
        """Run the network; ``features`` are those of its context, if it has one."""
        h = _input(self, z, features)
        return self.likelihood(self.net(h).reshape(h.shape[:-1] + self.raw_shape))


def LinearDecoder(
    latent_dim: int,
    shape: int | Sequence[int],
    *,
    likelihood: str | Likelihood = "normal",
    context: Columns = None,
) -> MLPDecoder:
    """
    A decoder without hidden layers: ``MLPDecoder(latent_dim, shape, likelihood=likelihood, hidden=())``.

    Example::

        >>> LinearDecoder(3, 2).net
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    return MLPDecoder(latent_dim, shape, likelihood=likelihood, hidden=(), context=context)


class ConvDecoder(Configurable, nn.Module):
    r"""
    Likelihood of an image (C, H, W) of any size, the mirror of :class:`~pyro_mmvae.nn.ConvEncoder`.

    Hidden layers, then one 4x4 transposed convolution of stride 2 per entry of ``channels``, cropped to the size the
    encoder has at that depth, so that odd sizes fit. Lazy as :class:`MLPDecoder`.

    Example::

        >>> dec = ConvDecoder(16, (3, 28, 21), likelihood="laplace", channels=(16, 8))
        >>> dec(torch.zeros(5, 16)).mean.shape
        torch.Size([5, 3, 28, 21])

    :param latent_dim: total width of what it is fed.
    :param shape: (C, H, W).
    :param channels: channels before each transposed convolution.
    :param hidden: widths of the layers before the convolutions.
    :param context: as in :class:`MLPDecoder`.
    :raises ValueError: if ``channels`` is empty, the shape has not three sizes, or the latent has another width.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        *,
        likelihood: str | Likelihood = "normal",
        channels: Sequence[int] = (128, 64, 32),
        hidden: Sequence[int] = (256,),
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        context: Columns = None,
    ) -> None:
        super().__init__()
        self.context = context_of(context)
        self.covariates, extra = names_and_width(self.context)
        self.latent_dim, self.event_shape = positive_int(latent_dim, "latent_dim"), image_size(shape)
        if not len(channels):
            raise ValueError("ConvDecoder: channels is empty. Fix: MLPDecoder for a network without convolutions.")
        widths = [positive_int(size, "every size in channels") for size in channels]
        self.likelihood = resolve(likelihood).build(self.event_shape)
        raw = self.likelihood.raw_shape()
        self.num_raw = prod(raw[len(self.event_shape) :])
        sizes = [tuple(self.event_shape[1:])]
        for _ in widths:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        self.sizes = sizes[::-1]
        self.start = torch.Size([widths[0], *self.sizes[0]])
        self.net = mlp(latent_dim + extra, [*hidden, prod(self.start)], activation=activation, dropout=dropout)
        outs = [*widths[1:], self.event_shape[0] * self.num_raw]
        ups = [nn.ConvTranspose2d(i, o, 4, 2, 1) for i, o in zip(widths, outs, strict=True)]
        self.ups = nn.ModuleList(ups)
        self.activations = nn.ModuleList(activation() for _ in outs[1:])
        pixels = [height * width for height, width in self.sizes[:-1]]
        self.cost = multiply_adds(self.net) + sum(up.weight.numel() * n for up, n in zip(ups, pixels, strict=True))

    def forward(
        self,
        z: Tensor,  # shape: (*batch, latent_dim)
        **covariates: Tensor,  # each shape: (*batch,) or fewer leading dimensions
    ) -> Lazy:  # batch_shape: batch, event_shape: (C, H, W)
        return _lazy(self, z, covariates)

    def dense(
        self,
        z: Tensor,  # shape: (*batch, latent_dim)
        features: Tensor | None = None,  # shape: (*batch, width) or fewer leading dimensions
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: (C, H, W)
        """Run the network; ``features`` are those of its context, if it has one."""
        h = _input(self, z, features)
        x = self.net(h).reshape(-1, *self.start)
        for i, (up, (height, width)) in enumerate(zip(self.ups, self.sizes[1:], strict=True)):
            x = up(x)[..., :height, :width]
            x = self.activations[i](x) if i < len(self.activations) else x
        channels, height, width = self.event_shape
        if self.num_raw > 1:
            x = x.reshape(-1, channels, self.num_raw, height, width).movedim(-3, -1)
        return self.likelihood(x.reshape(h.shape[:-1] + self.likelihood.raw_shape()))
