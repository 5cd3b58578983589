"""Set encoders for the masked bound, and q(z | x_S) of each: a product of linear experts, the library's small ones.

Test layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from tests.conformance.networks import Expert
from tests.conformance.problems import Problem
from tests.oracles.linear_gaussian import Gaussian
from tests.oracles.masked_bound import Posterior
from tests.oracles.products import row_product


class ProductPool(nn.Module):
    """A set encoder by natural parameters: the product of linear experts and a fixed Gaussian."""

    def __init__(self, encoders: Mapping[str, Expert], prior: Gaussian) -> None:
        super().__init__()
        self.modalities = tuple(encoders)
        self.encoders = nn.ModuleDict({f"m_{m}": e for m, e in encoders.items()})
        self.loc, self.scale = (nn.Parameter(p.detach().clone()) for p in prior)

    def features(self, data: Mapping[str, Tensor]) -> Tensor:  # shape: (B, M, 2 L)
        experts = [self.encoders[f"m_{m}"](data[m]).base_dist for m in self.modalities]
        return torch.stack([torch.cat([q.loc / q.scale**2, q.scale**-2], -1) for q in experts], -2)

    def head(self, features: Tensor, mask: Tensor) -> dist.TorchDistribution:  # shapes: (B, M, F), (*lead, B, M)
        pooled = torch.where(mask.unsqueeze(-1), features, 0.0).sum(-2)
        weighted, precision = pooled.chunk(2, -1)
        precision = precision + self.scale**-2
        return dist.Normal((weighted + self.loc / self.scale**2) / precision, precision.rsqrt()).to_event(1)


def by_product(encoders: Mapping[str, Expert], decoders: Mapping[str, nn.Module], **options: Any) -> mm.MaskedVAE:
    """MaskedVAE whose pooling is the product of the encoders and the prior."""
    p = options["prior"]
    return mm.MaskedVAE(None, decoders, pooling=ProductPool(encoders, (p.loc, p.log_scale.exp())), **options)


def by_set(kind: Any, **own: Any) -> Callable[..., mm.MaskedVAE]:
    """MaskedVAE with a small set encoder of the library, the encoders its feature networks."""

    def method(
        encoders: Mapping[str, Expert], decoders: Mapping[str, nn.Module], *, latent_dim: int, **options: Any
    ) -> mm.MaskedVAE:
        shapes = {m: tuple(d.bias.shape) for m, d in decoders.items()}
        networks = {m: mm.nn.ExpertFeatures(e, latent_dim, 8) for m, e in encoders.items()}
        pooling = kind(shapes, latent_dim, networks=networks, features=(8,), hidden=(8,), **own)
        return mm.MaskedVAE(None, decoders, latent_dim=latent_dim, pooling=pooling, **options)

    return method


def set_networks(vae: mm.MultimodalVAE) -> None:
    """Parameters that depend on their names alone, whatever order the modalities are in."""
    for name, parameter in vae.guide.fusion["z"].encoder.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        draws = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.copy_(draws / max(parameter.shape[-1], 16) ** 0.5)


def products(p: Problem) -> Posterior:
    """q(z | x_S) of :class:`ProductPool`."""
    return lambda names, n: row_product(p.experts, names, n, p.model.prior)


def pooled(method: Callable[..., mm.MaskedVAE]) -> Callable[[Problem], Posterior]:
    """q(z | x_S) of the library's set encoder, asked for one row and one set at a time."""

    def rule(p: Problem) -> Posterior:
        vae = method(p.encoders(), p.decoders(), latent_dim=p.latent_dim).double()
        set_networks(vae)
        encoder = vae.guide.fusion["z"].encoder

        def posterior(names: Sequence[str], n: int) -> Gaussian:  # shapes: (L,)
            with torch.no_grad():
                features = encoder.features({m: x[n : n + 1] for m, x in p.filled.items() if m in names})
                q = encoder.head(features, torch.tensor([[m in names for m in encoder.modalities]])).base_dist
            return q.loc[0], q.scale[0]

        return posterior

    return rule
