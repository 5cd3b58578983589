"""Encoders: modules from one modality to a distribution over the latent, the expert.

Layer: nn.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import prod

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mmvae.nn.config import Configurable
from pyro_mmvae.nn.covariates import Columns, context_of, names_and_width, with_context
from pyro_mmvae.nn.heads import Family, make_head
from pyro_mmvae.nn.mlp import event_size, flatten_event, mlp, positive_int
from pyro_mmvae.nn.sparse import DropoutRates

__all__ = ["ConvEncoder", "EmbeddingEncoder", "MLPEncoder", "takes_mask"]


def _masked(
    x: Tensor,  # shape: (*batch, *event), filled
    mask: Tensor | None,  # shape: broadcastable to x, bool, True = observed
) -> tuple[Tensor, Tensor]:  # shapes of both: (*batch, *event)
    """The observed entries, zero elsewhere, and the mask as numbers of the same kind."""
    seen = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand(x.shape)
    return torch.where(seen, x, torch.zeros_like(x)), seen.to(x.dtype)


class MLPEncoder(Configurable, nn.Module):
    r"""
    Expert of a vector, or of any event by flattening it: :math:`q(z \mid x) = \mathrm{head}(\mathrm{mlp}(x))`.

    ``enc(x)`` takes filled data of shape (*batch, *event), any kind of number, and returns a Pyro distribution with
    event_shape (latent_dim,). With ``mask=True`` it is ``enc(x, mask)``: the network sees the observed entries (zero
    elsewhere) and, beside them, which ones they are; without, a given mask is not looked at.

    Example::

        >>> enc = MLPEncoder((4, 8), latent_dim=3, hidden=(16,))
        >>> q = enc(torch.zeros(5, 4, 8))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([3]))

    :param shape: event shape; an int is a vector, ``()`` one number per sample.
    :param latent_dim: width of the latent.
    :param hidden: widths of the hidden layers; ``()`` for a linear encoder.
    :param family: "normal" (scale by exp), "normal_softplus", "laplace", "laplace_softmax", "dropout" (variational), or
        a callable ``(features, latent_dim) -> Module`` whose call returns a distribution with event_dim 1.
    :param rates: :class:`~pyro_mmvae.nn.DropoutRates` of the family "dropout", given to several encoders to be shared.
    :param dropout: rate after each hidden layer.
    :param mask: whether the network sees the per-feature mask.
    :param transform: applied to the data first, e.g. ``torch.log1p`` for counts.
    :param context: columns of the covariates that it reads, ``enc(x, mask, age=..., site=...)``: their
        :class:`~pyro_mmvae.nn.Context` is put beside the data.
    :ivar covariates: their names.
    :raises ValueError: for sizes that are not positive, or data of another shape.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        latent_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        family: Family = "normal",
        rates: DropoutRates | None = None,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        mask: bool = False,
        transform: Callable[[Tensor], Tensor] | None = None,
        context: Columns = None,
    ) -> None:
        super().__init__()
        self.event_shape, self.latent_dim, self.mask, self.transform = event_size(shape), latent_dim, mask, transform
        self.context = context_of(context)
        self.covariates, extra = names_and_width(self.context)
        features = prod(self.event_shape) * (2 if mask else 1) + extra
        self.net = mlp(features, hidden, activation=activation, dropout=dropout)
        self.head = make_head(family, hidden[-1] if len(hidden) else features, latent_dim, rates)

    def forward(
        self,
        x: Tensor,  # shape: (*batch, *event)
        mask: Tensor | None = None,  # shape: broadcastable to x, bool, True = observed
        **covariates: Tensor,  # each shape: (*batch,)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: (latent_dim,)
        flat = flatten_event(x, self.event_shape, "MLPEncoder").to(_dtype(self))
        flat = flat if self.transform is None else self.transform(flat)
        if self.mask:
            seen = None if mask is None else flatten_event(mask.expand(x.shape), self.event_shape, "MLPEncoder")
            flat = torch.cat(_masked(flat, seen), -1)
        return self.head(self.net(with_context(flat, self.context, covariates, "MLPEncoder")))


def takes_mask(network: nn.Module) -> bool:
    """Whether a network's signature has ``mask``."""
    return "mask" in inspect.signature(network.forward).parameters


def _dtype(module: nn.Module) -> torch.dtype:
    """The floating type of the parameters."""
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


class ConvEncoder(Configurable, nn.Module):
    r"""
    Expert of an image (C, H, W) of any size: strided 3x3 convolutions, hidden layers, head.

    Each convolution halves height and width, rounding up. Arbitrary leading dimensions; ``mask`` (fed
    as C more channels), ``family``, ``rates``, ``transform`` and ``context`` (which joins after the convolutions) as in
    :class:`MLPEncoder`.

    Example::

        >>> ConvEncoder((1, 28, 28), 16, channels=(8, 16))(torch.zeros(2, 5, 1, 28, 28)).batch_shape
        torch.Size([2, 5])

    :param shape: (C, H, W).
    :param channels: channels of each convolution.
    :param hidden: widths of the layers between the convolutions and the head.
    :param dropout: rate after each hidden layer.
    :raises ValueError: if the shape has not three sizes, or sizes are not positive.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        *,
        channels: Sequence[int] = (32, 64, 128),
        hidden: Sequence[int] = (256,),
        family: Family = "normal",
        rates: DropoutRates | None = None,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        mask: bool = False,
        transform: Callable[[Tensor], Tensor] | None = None,
        context: Columns = None,
    ) -> None:
        super().__init__()
        self.context = context_of(context)
        self.covariates, extra = names_and_width(self.context)
        self.event_shape, self.latent_dim, self.mask, self.transform = image_size(shape), latent_dim, mask, transform
        width, height, breadth = self.event_shape
        width = 2 * width if mask else width
        layers: list[nn.Module] = []
        for size in channels:
            layers += [nn.Conv2d(width, positive_int(size, "every size in channels"), 3, 2, 1), activation()]
            width, height, breadth = size, (height + 1) // 2, (breadth + 1) // 2
        self.conv = nn.Sequential(*layers, nn.Flatten())
        features = width * height * breadth + extra
        self.net = mlp(features, hidden, activation=activation, dropout=dropout)
        self.head = make_head(family, hidden[-1] if len(hidden) else features, latent_dim, rates)

    def forward(
        self,
        x: Tensor,  # shape: (*batch, C, H, W)
        mask: Tensor | None = None,  # shape: broadcastable to x, bool, True = observed
        **covariates: Tensor,  # each shape: (*batch,)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: (latent_dim,)
        batch = flatten_event(x, self.event_shape, "ConvEncoder").shape[:-1]
        image = x.to(_dtype(self))
        image = image if self.transform is None else self.transform(image)
        if self.mask:
            image = torch.cat(_masked(image, mask), -3)
        features = self.conv(image.reshape(-1, *image.shape[-3:]))
        h = with_context(features.reshape(batch + features.shape[1:]), self.context, covariates, "ConvEncoder")
        return self.head(self.net(h))


def image_size(shape: Sequence[int]) -> torch.Size:
    """The shape of an image.

    :raises ValueError: if it has not three positive sizes.
    """
    size = event_size(shape)
    if len(size) != 3:
        raise ValueError(f"Convolutions need an event of shape (C, H, W), got {tuple(size)}. Fix: add the channel.")
    return size


class EmbeddingEncoder(Configurable, nn.Module):
    r"""
    Expert of class numbers: a label per sample, or a grid of tokens; or their one-hot vectors.

    Each class number is embedded, the embeddings of a grid are concatenated, then hidden layers and head.
    ``one_hot=True`` takes floats (*batch, *shape, num_classes) and mixes the embeddings by them, so a one-hot vector
    gives what its class number gives.

    Example::

        >>> EmbeddingEncoder(10, 3)(torch.tensor([1, 7])).batch_shape
        torch.Size([2])
        >>> EmbeddingEncoder(10, 3, shape=(6,))(torch.zeros(2, 6, dtype=torch.long)).batch_shape
        torch.Size([2])

    :param num_classes: class numbers are 0 .. num_classes-1.
    :param shape: shape of the grid of class numbers; ``()`` for a label per sample.
    :param embedding_dim: width of an embedding.
    :param family: and ``rates``: as in :class:`MLPEncoder`.
    :param one_hot: whether the data are one-hot vectors along a last dimension.
    :param mask: as in :class:`MLPEncoder`, one entry per class number.
    :param context: as in :class:`MLPEncoder`.
    :raises TypeError: if class numbers are expected and the data are not integers.
    """

    def __init__(
        self,
        num_classes: int,
        latent_dim: int,
        *,
        shape: int | Sequence[int] = (),
        embedding_dim: int = 32,
        hidden: Sequence[int] = (256,),
        family: Family = "normal",
        rates: DropoutRates | None = None,
        dropout: float = 0.0,
        one_hot: bool = False,
        mask: bool = False,
        context: Columns = None,
    ) -> None:
        super().__init__()
        self.context = context_of(context)
        self.covariates, extra = names_and_width(self.context)
        self.grid, self.latent_dim, self.mask, self.one_hot = event_size(shape), latent_dim, mask, one_hot
        self.num_classes = positive_int(num_classes, "num_classes")
        self.event_shape = torch.Size([*self.grid, num_classes]) if one_hot else self.grid
        self.embedding = nn.Embedding(num_classes, positive_int(embedding_dim, "embedding_dim"))
        features = prod(self.grid) * (embedding_dim + 1 if mask else embedding_dim) + extra
        self.net = mlp(features, hidden, dropout=dropout)
        self.head = make_head(family, hidden[-1] if len(hidden) else features, latent_dim, rates)

    def forward(
        self,
        x: Tensor,  # shape: (*batch, *shape), class numbers; or (*batch, *shape, num_classes) one-hot
        mask: Tensor | None = None,  # shape: broadcastable to x, bool, True = observed
        **covariates: Tensor,  # each shape: (*batch,)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: (latent_dim,)
        batch = flatten_event(x, self.event_shape, "EmbeddingEncoder").shape[:-1]
        embedded = self._embed(x)  # shape: (*batch, *grid, embedding_dim)
        if self.mask:
            seen = None if mask is None else mask.expand(x.shape)
            if seen is not None:
                seen = seen.all(-1, keepdim=True) if self.one_hot else seen.unsqueeze(-1)
            embedded, bits = _masked(embedded, seen)
            embedded = torch.cat([embedded, bits[..., :1]], -1)
        flat = embedded.reshape(*batch, prod(self.grid) * embedded.shape[-1])
        return self.head(self.net(with_context(flat, self.context, covariates, "EmbeddingEncoder")))

    def _embed(self, x: Tensor) -> Tensor:
        if self.one_hot:
            return x.to(self.embedding.weight.dtype) @ self.embedding.weight
        return self.embedding(x.long())  # class numbers may come as floats, e.g. the constants of unobserved rows
