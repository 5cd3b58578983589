"""The digits and the networks that all rows of the table share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.quickstart.scores import MODALITIES

__all__ = ["LATENT", "PRIVATE", "Digits", "Networks", "digits", "joint_encoder", "networks", "set_encoder"]

LATENT, HIDDEN, LABEL_HIDDEN, DROPOUT = 16, (128, 128), (64,), 0.1
SHAPES: dict[str, tuple[int, ...]] = {"top": (4, 8), "bottom": (4, 8), "label": ()}
#: sizes of the private latents, of methods that have them
PRIVATE = dict.fromkeys(MODALITIES, 4)


@dataclass(frozen=True)
class Digits:
    """Training digits with half of their entries hidden, held-out digits complete and with half hidden."""

    train: mm.MultimodalDataset
    held_out: mm.MultimodalDataset
    held_out_hidden: mm.MultimodalDataset


@dataclass(frozen=True)
class Networks:
    """One encoder and one decoder per modality; private encoders where a method has private latents."""

    encoders: dict[str, nn.Module]
    decoders: dict[str, nn.Module]
    private_encoders: dict[str, nn.Module]


def digits(seed: int) -> Digits:
    """The standard split; what is hidden depends on the seed in training, never in the held-out digits."""
    train, held_out = mm.datasets.digits().split(0.8, seed=0)
    return Digits(train.hide(0.5, seed=seed), held_out, held_out.hide(0.5, seed=1000))


def networks(*, private: bool = False, modalities: Sequence[str] = MODALITIES, family: str = "normal") -> Networks:
    """
    New networks, initialized from torch's random state.

    :param private: with private latents, of :data:`PRIVATE` dimensions.
    :param family: of the experts.
    """
    sizes = PRIVATE if private else {}
    return Networks(
        {m: _encoder(m, LATENT, family) for m in modalities},
        {m: _decoder(m, LATENT + sizes.get(m, 0)) for m in modalities},
        {m: _encoder(m, sizes[m], family) for m in modalities if m in sizes},
    )


def joint_encoder() -> mm.nn.JointEncoder:
    """One encoder of all modalities, of the same widths."""
    width, *rest = HIDDEN
    return mm.nn.JointEncoder(
        SHAPES, LATENT, features=(width,), hidden=rest, dropout=DROPOUT, num_classes={"label": 10}
    )


def set_encoder() -> mm.nn.SumPoolingEncoder:
    """One encoder of all sets of modalities, by a sum of their features; it takes the encoders' place."""
    return mm.nn.SumPoolingEncoder(SHAPES, LATENT, features=(256,), hidden=(256,), num_classes={"label": 10})


def _encoder(modality: str, size: int, family: str) -> nn.Module:
    if modality == "label":
        return mm.nn.EmbeddingEncoder(10, size, hidden=LABEL_HIDDEN, family=family)
    return mm.nn.MLPEncoder(SHAPES[modality], size, hidden=HIDDEN, dropout=DROPOUT, transform=_to_unit, family=family)


def _decoder(modality: str, size: int) -> nn.Module:
    if modality == "label":
        return mm.nn.MLPDecoder(size, (), likelihood=mm.nn.Categorical(10), hidden=LABEL_HIDDEN)
    return mm.nn.MLPDecoder(size, SHAPES[modality], likelihood=mm.nn.Binomial(16), hidden=HIDDEN)


def _to_unit(x: Tensor) -> Tensor:  # shape: that of x
    """Grey levels 0..16 as numbers in [0, 1]."""
    return x / 16
