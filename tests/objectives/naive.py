"""One row at a time, from the networks themselves: posteriors, draws, scores, divergences; nothing of the library.

Test layer: what the identities of the product family are written with, values and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import pyro_mmvae as mm
from tests.conformance.evaluate import gradients, value
from tests.conformance.problems import Problem

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # the same sums in float64, in another order


def kl(q: Normal, r: Normal) -> Tensor:  # shape: ()
    """KL(q || r) in nats."""
    return kl_divergence(q, r).sum()


def pool(factors: Sequence[tuple[Any, Normal]]) -> Normal:
    """The Gaussian proportional to prod q^w."""
    precision = sum(w / q.scale**2 for w, q in factors)
    return Normal(sum(w * q.loc / q.scale**2 for w, q in factors) / precision, precision**-0.5)


def log_integral(factors: Sequence[tuple[float, Normal]]) -> Tensor:  # shape: ()
    """log of the integral of prod q^w: the product over its normalized self, wherever it is evaluated."""
    at = torch.full_like(factors[0][1].loc, 0.3)
    return (sum(w * q.log_prob(at) for w, q in factors) - pool(factors).log_prob(at)).sum()  # type: ignore[union-attr]


@dataclass
class Networks:
    """A problem's networks, the same objects in the method and in the loops."""

    p: Problem
    encoders: dict[str, nn.Module] = field(init=False)
    decoders: dict[str, nn.Module] = field(init=False)
    private: dict[str, nn.Module] = field(init=False)
    prior: nn.Module = field(init=False)
    eps: dict[str, Tensor] = field(init=False)  # shapes: (B, D), by latent site; the same for all terms

    def __post_init__(self) -> None:
        self.encoders, self.decoders = dict(self.p.encoders()), dict(self.p.decoders())
        self.private, self.prior = dict(self.p.private_encoders()), self.p.prior()
        self.eps = self.p.noise()

    def vae(self, method: Callable[..., mm.MultimodalVAE], **options: Any) -> mm.MultimodalVAE:
        """A method with these networks."""
        if self.private:
            options |= {"private_encoders": self.private, "private_dims": dict.fromkeys(self.private, 1)}
        given = {"latent_dim": self.p.latent_dim, "prior": self.prior, **options}
        return method(self.encoders, self.decoders, **given).double()

    def rows(self) -> list[Row]:
        """Every row."""
        return [Row(self, n, names) for n, names in enumerate(self.p.sets)]

    def agree(self, vae: mm.MultimodalVAE, formula: Callable[[Row], Tensor | float]) -> None:
        """The method's value is the formula's in every row, 0 in an empty one, and so is every gradient."""
        found = value(vae, self.p.data, self.p.obs_mask, self.eps)
        wanted = torch.stack([torch.as_tensor(formula(r) if r.names else 0.0).reshape(()) for r in self.rows()])
        torch.testing.assert_close(found, wanted, **EXACT)
        one, other = gradients(vae, found.sum()), gradients(vae, wanted.sum())
        for name, g in one.items():
            assert torch.allclose(g, other[name], rtol=1e-9, atol=1e-9), f"{name}: {g} against {other[name]}"


@dataclass
class Row:
    """One row of a problem."""

    networks: Networks
    n: int
    names: tuple[str, ...]

    def _normal(self, module: nn.Module, *x: Tensor) -> Normal:
        q = module(*x).base_dist
        return Normal(q.loc.squeeze(0), q.scale.squeeze(0))

    def _x(self, m: str) -> Tensor:  # shape: (1, D_m)
        return self.networks.p.filled[m][self.n : self.n + 1]

    @property
    def prior(self) -> Normal:
        """p(z)."""
        return self._normal(self.networks.prior)

    def expert(self, m: str) -> Normal:
        """q(z | x_m)."""
        return self._normal(self.networks.encoders[m], self._x(m))

    def product(self, names: Sequence[str], exponents: Mapping[str, Tensor] | None = None) -> Normal:
        """The product of the named experts, to powers if they are given."""
        return pool([(1.0 if exponents is None else exponents[m], self.expert(m)) for m in names])

    def private_kl(self, weight: float = 1.0) -> Tensor | float:
        """The divergences of what private latents the row infers."""
        total: Tensor | float = 0.0
        for m in self.names if self.networks.private else ():
            own = self._normal(self.networks.private[m], self._x(m))
            total = total + weight * kl(own, Normal(torch.zeros_like(own.loc), torch.ones_like(own.loc)))
        return total

    def score(
        self, q: Normal, names: Sequence[str] | None = None, rescale: Mapping[str, float] | None = None
    ) -> Tensor | float:
        """sum of lambda_m log p(x_m | z, w_m) at the row's noise, over the named modalities (all observed)."""
        z = q.loc + q.scale * self.networks.eps["z"][self.n]
        total: Tensor | float = 0.0
        for m in self.names if names is None else names:
            latent = z
            if m in self.networks.private:
                own = self._normal(self.networks.private[m], self._x(m))
                latent = torch.cat([z, own.loc + own.scale * self.networks.eps[f"z_{m}"][self.n]])
            density = self.networks.decoders[m](latent).log_prob(self._x(m).squeeze(0))
            total = total + (1.0 if rescale is None else rescale[m]) * density
        return total
