"""What every method is built from: checked networks, the story, factors on likelihoods.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions.constraints import one_hot

from pyro_mmvae.distributions import base_support
from pyro_mmvae.guides.encode import takes_mask
from pyro_mmvae.nn import JointEncoder, modes_restored
from pyro_mmvae.stories import LaplacePrior, NormalPrior, ObservedModel, Shared, SharedPrivate, observe

__all__ = ["Networks", "Prior", "Rescale", "default_joint_encoder", "factors", "model_of", "nonnegative", "prior_of"]

Networks = Mapping[str, nn.Module]
Prior = Literal["normal", "laplace"] | nn.Module
Rescale = Literal["dimensions"] | Mapping[str, float] | None


def prior_of(prior: Prior, latent_dim: int, learn: bool) -> nn.Module:
    """The prior's module from its name, or the module itself."""
    if isinstance(prior, nn.Module):
        return prior
    if prior not in ("normal", "laplace"):
        raise ValueError(f"prior: expected 'normal', 'laplace' or a module that returns p(z), got {prior!r}.")
    return (NormalPrior if prior == "normal" else LaplacePrior)(latent_dim, learn=learn)


def nonnegative(**weights: float) -> None:
    """
    Weights of terms are finite and not negative.

    :raises ValueError: naming the one that is.
    """
    for name, value in weights.items():
        if not 0 <= value < inf:
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}.")


def model_of(
    encoders: Networks,
    decoders: Networks,
    latent_dim: int,
    *,
    prior: nn.Module,
    private_encoders: Networks | None = None,
    private_dims: Mapping[str, int] | None = None,
) -> ObservedModel:
    """
    The story of a shared latent (with private ones where asked), observed; all networks tried once.

    :raises ValueError: if keys differ, sizes do not fit, or ``latent_dim`` is below 1.
    """
    if not isinstance(latent_dim, int) or latent_dim < 1:
        raise ValueError(f"latent_dim: expected a positive integer, got {latent_dim!r}.")
    if set(encoders) != set(decoders):
        raise ValueError(
            f"encoders and decoders need the same modalities: encoders have {list(encoders)}, decoders "
            f"{list(decoders)}. Fix: one encoder and one decoder per modality."
        )
    dims = {} if private_dims is None else dict(private_dims)
    story = SharedPrivate(decoders, prior, dims) if dims else Shared(decoders, prior)
    model = observe(story, tuple(decoders), private=getattr(story, "private", None))
    _try_out(model, encoders, latent_dim)
    for m, encoder in ({} if private_encoders is None else private_encoders).items():
        _try_out(model, {m: encoder}, dims[m])
    return model


def _try_out(model: ObservedModel, encoders: Networks, size: int) -> None:
    """One dry call of every encoder on one row of constants."""
    sites = model.door.outline().modalities
    for m, encoder in encoders.items():
        site = sites[m]
        x = site.fill.expand((1, *site.event_shape))
        like = next((p for p in encoder.parameters() if p.is_floating_point()), x)
        expert = _called(encoder, x.to(like))
        if not isinstance(expert, torch.distributions.Distribution):
            raise TypeError(
                f"encoder of {m!r}: expected a Distribution over z, got {type(expert).__name__}. Fix: return e.g. "
                "dist.Normal(loc, scale).to_event(1)."
            )
        if tuple(expert.event_shape) != (size,):
            raise ValueError(
                f"encoder of {m!r}: expected experts of event shape ({size},), got {tuple(expert.event_shape)}. Fix: "
                f"latent_dim={size} in the encoder, or another latent_dim here."
            )


def _called(encoder: nn.Module, x: Tensor) -> Any:
    """The encoder's answer in evaluation mode; modes and the random state stay as they were."""
    devices = [x.device] if x.device.type == "cuda" else []
    mask = (torch.ones_like(x, dtype=torch.bool),) if takes_mask(encoder) else ()
    with modes_restored(encoder), torch.no_grad(), torch.random.fork_rng(devices=devices):
        return encoder.eval()(x, *mask)


def default_joint_encoder(model: ObservedModel, decoders: Networks, latent_dim: int) -> JointEncoder:
    """A masked MLP over all modalities, class numbers one-hot."""
    sites = model.door.outline().modalities
    classes = {m: getattr(getattr(d, "likelihood", None), "num_classes", None) for m, d in decoders.items()}
    integer = {m: c for m, c in classes.items() if c is not None and base_support(sites[m].support).is_discrete}
    integer = {m: c for m, c in integer.items() if base_support(sites[m].support) is not one_hot}
    shapes = {m: tuple(site.event_shape) for m, site in sites.items()}
    return JointEncoder(shapes, latent_dim, num_classes=integer)


def factors(model: ObservedModel, rescale: Rescale) -> Mapping[str, float] | float:
    """Factors lambda on the likelihoods: given, 1, or the largest number of dimensions over the modality's own."""
    if rescale is None:
        return 1.0
    if rescale == "dimensions":
        sizes = {m: prod(site.event_shape) for m, site in model.door.outline().modalities.items()}
        return {m: max(sizes.values()) / size for m, size in sizes.items()}
    if not isinstance(rescale, Mapping):
        raise ValueError(f"rescale: expected None, 'dimensions' or modality -> factor, got {rescale!r}.")
    unknown = set(rescale) - set(model.modalities)
    if unknown:
        raise ValueError(f"rescale: unknown modalities {sorted(unknown)}; known are {list(model.modalities)}.")
    return dict(rescale)
