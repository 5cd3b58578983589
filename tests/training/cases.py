"""Small models and data for the tests of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.datasets import MultimodalDataset


def data(n: int = 40, *, hidden: float = 0.3, dtype: torch.dtype = torch.float32) -> MultimodalDataset:
    """Two modalities that share one number; some missing."""
    g = torch.Generator().manual_seed(5)
    z = torch.randn(n, 1, generator=g)
    x = {m: (z + 0.3 * torch.randn(n, d, generator=g)).to(dtype) for m, d in (("a", 2), ("b", 3))}
    ds = MultimodalDataset(x)
    return ds.hide(hidden, seed=1) if hidden else ds


def vae(*, dropout: float = 0.0, seed: int = 3, decoder: nn.Module | None = None, **options: object) -> mm.MVAE:
    """A tiny MVAE; ``decoder`` replaces the one of "b"."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        enc = {m: mm.nn.MLPEncoder(d, latent_dim=1, hidden=(4,), dropout=dropout) for m, d in (("a", 2), ("b", 3))}
        dec: dict[str, nn.Module] = {m: mm.nn.MLPDecoder(1, d, hidden=(4,)) for m, d in (("a", 2), ("b", 3))}
        if decoder is not None:
            dec["b"] = decoder
        return mm.MVAE(enc, dec, latent_dim=1, **options)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not bit-equal."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]
