"""The coordinates in which a latent's posterior is near N(0, I): those that standardize its prior.

Layer: guides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_mmvae.distributions import base_support, unwrap

__all__ = ["Coordinates", "coordinates", "unconstrained", "unconstrained_shape"]


@dataclass
class Coordinates:
    r"""
    :math:`z = T(\mu_0 + S_0 y)`, T = ``biject_to(support)``.

    :ivar transform: T; None: the identity.
    :ivar shape: of a latent in unconstrained space.
    :ivar loc: :math:`\mu_0`, ``(*batch, D)``.
    :ivar scale: :math:`S_0`, ``(*batch, D)``, or lower triangular, ``(*batch, D, D)``.
    """

    transform: Any
    shape: torch.Size
    loc: Tensor
    scale: Tensor
    matrix: bool = False

    def inverse(self, z: Tensor) -> Tensor:  # shapes: (*batch, *event), (*batch, D)
        """y from z."""
        return self.standard(unconstrained(z, self.transform, self.shape))

    def standard(self, u: Tensor) -> Tensor:  # shapes: (*batch, D)
        """y from u."""
        x = u - self.loc
        if not self.matrix:
            return x / self.scale
        root = self.scale.expand(x.shape[:-1] + self.scale.shape[-2:])
        return torch.linalg.solve_triangular(root, x.unsqueeze(-1), upper=False).squeeze(-1)


def unconstrained(z: Tensor, transform: Any, shape: torch.Size) -> Tensor:  # shape: (*batch, D)
    """u from z, flat."""
    u = z if transform is None else transform.inv(z)
    return u.reshape((*u.shape[: u.dim() - len(shape)], shape.numel()))


def unconstrained_shape(fn: Any, transform: Any) -> torch.Size:
    """The event shape in unconstrained space; bounds may have the batch's dimensions, and then T has them."""
    if transform is None:
        return torch.Size(fn.event_shape)
    return torch.Size(transform.inverse_shape(fn.batch_shape + fn.event_shape)[len(fn.batch_shape) :])


def bijection(support: Any) -> Any:
    """``biject_to(support)``, keeping its last pair of values; None for real latents."""
    return None if base_support(support) is constraints.real else biject_to(support).with_cache(1)


def coordinates(
    prior: Any,
    static: tuple[Tensor, Tensor],  # shapes: (D,)
    *,
    fixed: bool = False,
) -> Coordinates:
    """
    Those that standardize a prior, exactly where it is Normal, by its moments where they are known.

    Example::

        >>> c = coordinates(dist.Normal(3.0, 2.0), (torch.zeros(1), torch.ones(1)))
        >>> c.inverse(torch.tensor(7.0))
        tensor([2.])

    :param static: location and scale of its draws, for priors whose moments are not known.
    :param fixed: take the static ones whatever the prior is.
    """
    transform = bijection(prior.support)
    shape = unconstrained_shape(prior, transform)
    base = unwrap(prior)
    if isinstance(base, torch.distributions.TransformedDistribution) and transform is not None:
        log_normal = len(base.transforms) == 1 and isinstance(base.transforms[0], torch.distributions.ExpTransform)
        base = unwrap(base.base_dist) if log_normal and base_support(prior.support) is constraints.positive else base
    if not fixed and isinstance(base, dist.MultivariateNormal) and len(shape) == 1:
        return Coordinates(transform, shape, base.loc, base.scale_tril, matrix=True)
    known = None if fixed else _moments(base, prior)
    if known is None:
        return Coordinates(transform, shape, *static)
    full = prior.batch_shape + shape
    loc, scale = (p.expand(full).reshape((*prior.batch_shape, shape.numel())) for p in known)
    return Coordinates(transform, shape, loc, scale)


def _moments(base: Any, prior: Any) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation in unconstrained space."""
    kind = type(base)
    if kind in (dist.Normal, torch.distributions.Normal):
        return base.loc, base.scale
    if kind is dist.Gamma or kind is dist.Chi2:
        a, rate = base.concentration, base.rate
        return a.digamma() - rate.log(), a.polygamma(1).sqrt()
    if kind is dist.Exponential:
        one = torch.ones_like(base.rate)
        return one.digamma() - base.rate.log(), one.polygamma(1).sqrt()
    if kind is dist.InverseGamma:
        inverse = base.base_dist
        return inverse.rate.log() - inverse.concentration.digamma(), inverse.concentration.polygamma(1).sqrt()
    if kind is dist.Beta:
        a, b = base.concentration1, base.concentration0
        return a.digamma() - b.digamma(), (a.polygamma(1) + b.polygamma(1)).sqrt()
    if kind is dist.Dirichlet:
        return _sticks(base.concentration)
    if base is not None and kind in (dist.Laplace, dist.Logistic, dist.Uniform) and prior.support is constraints.real:
        return base.mean, base.variance.sqrt()
    return None


def _sticks(concentration: Tensor) -> tuple[Tensor, Tensor]:  # shapes: (*batch, K), (*batch, K - 1)
    """A Dirichlet in stick-breaking coordinates is a product of Betas."""
    rest = concentration.flip(-1).cumsum(-1).flip(-1)
    a, b = concentration[..., :-1], rest[..., 1:]
    left = torch.arange(concentration.shape[-1] - 1, 0, -1, device=concentration.device).to(concentration)
    return a.digamma() - b.digamma() + left.log(), (a.polygamma(1) + b.polygamma(1)).sqrt()
