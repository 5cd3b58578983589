"""Fusing at a latent site of any shape and support.

Layer: fusion.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_mmvae.distributions import Where, base_support, unwrap
from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.pool import gaussian_prior

__all__ = ["posterior_at"]


def posterior_at(
    fusion: Fusion,
    prior: Any,
    experts: Experts,
    mask: Tensor,  # shape: (M, *batch), bool
    *,
    component: bool = False,
    site: str = "z",
) -> Any:  # batch_shape: batch, event_shape: that of prior
    r"""
    The posterior q(z | x_S) of a latent site from its own prior.

    Real vectors are fused as they are. Latents of another support are fused in unconstrained space, with N(0, 1) in
    the prior's place where a rule wants one, and mapped back: :math:`z = T(u), u \sim q(u \mid x_S)`,
    T = ``biject_to(support)``. Where nothing is observed the site keeps its prior.

    :param component: ask the rule for a single component (see :meth:`Fusion.component`).
    :param site: the site's name, for errors.
    :raises ValueError: if the experts have another size than the site.
    """
    rule = fusion.component if component else fusion
    transform = None if base_support(prior.support) is constraints.real else biject_to(prior.support)
    shape = torch.Size(prior.event_shape if transform is None else transform.inverse_shape(prior.event_shape))
    size = shape.numel()
    got = experts.dists[0].event_shape if experts.dists else (size,)  # a rule without experts looks at its own
    if tuple(got) != (size,):
        raise ValueError(
            f"latent site {site!r}: its {'unconstrained ' if transform else ''}size is {size}, but the encoder of "
            f"{experts.names[0]!r} returns experts of event shape {tuple(got)}. Fix: latent_dim={size}."
        )
    if transform is None and len(shape) == 1:
        return rule(prior, experts, mask)
    fused = _shaped(rule(_flat(prior, shape, transform is None, experts.like), experts, mask), shape)
    if transform is not None:
        fused = dist.TransformedDistribution(fused, [transform])
    return Where(mask.any(0), fused, prior)


def _flat(prior: Any, shape: torch.Size, real: bool, like: Tensor) -> Any:
    """The prior as a diagonal Gaussian over a flat vector; N(0, 1) in unconstrained space."""
    if not real:
        return dist.Normal(like.new_zeros(shape.numel()), 1.0).to_event(1)
    full = prior.batch_shape + shape
    loc, scale = (p.expand(full).reshape((*prior.batch_shape, shape.numel())) for p in gaussian_prior(prior)[:2])
    return dist.Normal(loc, scale).to_event(1)


def _shaped(fused: Any, shape: torch.Size) -> Any:
    """A diagonal Gaussian over a flat vector, over the site's own shape."""
    if len(shape) == 1:
        return fused
    base = unwrap(fused)
    if not isinstance(base, dist.Normal):
        raise NotImplementedError("Mixture fusions at latents that are no vectors: use a Product rule there.")
    loc, scale = (p.reshape(p.shape[:-1] + shape) for p in (base.loc, base.scale))
    return dist.Normal(loc, scale).to_event(len(shape))
