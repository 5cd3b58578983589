"""What every method is built from: checked networks, the story, factors on likelihoods.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, prod
from typing import Any, Literal, SupportsFloat

import torch
from torch import Tensor, nn
from torch.distributions.constraints import one_hot

from pyro_mmvae.distributions import base_support
from pyro_mmvae.fusion import Fusion, Single
from pyro_mmvae.guides import Fused
from pyro_mmvae.guides.encode import takes_mask
from pyro_mmvae.nn import AttentionEncoder, ExpertFeatures, JointEncoder, SumPoolingEncoder, modes_restored
from pyro_mmvae.objectives import Annealed
from pyro_mmvae.stories import LaplacePrior, NormalPrior, ObservedModel, Shared, SharedPrivate, observe

__all__ = [
    "Networks",
    "Prior",
    "Rescale",
    "chosen",
    "default_joint_encoder",
    "each_beta",
    "factors",
    "guide_of",
    "model_of",
    "nonnegative",
    "prior_of",
    "set_encoder_of",
]

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
        if isinstance(value, str) or not isinstance(value, SupportsFloat) or not 0 <= float(value) < inf:
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}.")


def chosen(**options: tuple[object, tuple[object, ...]]) -> None:
    """
    Each option is one of its known values; an argument is ``name=(value, known)``.

    :raises ValueError: naming the one that is not.
    """
    for name, (value, known) in options.items():
        if value not in known:
            raise ValueError(f"{name}: expected one of {list(known)}, got {value!r}.")


def model_of(
    encoders: Networks,
    decoders: Networks,
    latent_dim: int,
    *,
    prior: nn.Module,
    private_encoders: Networks | None = None,
    private_dims: Mapping[str, int] | None = None,
    private_priors: Networks | None = None,
    every: bool = True,
) -> ObservedModel:
    """
    The story of a shared latent (with private ones where asked), observed; all networks tried once.

    :param encoders: of the shared latent.
    :param every: whether each modality needs an encoder.
    :raises ValueError: if keys differ, sizes do not fit, or ``latent_dim`` is below 1.
    """
    for name, networks in (("encoders", encoders), ("decoders", decoders), ("private_encoders", private_encoders)):
        if networks is not None and not isinstance(networks, Mapping):
            raise TypeError(f"{name}: expected a mapping from modality to module, got {type(networks).__name__}.")
    if private_dims is not None and not isinstance(private_dims, Mapping):
        raise TypeError(f"private_dims: expected a mapping from modality to size, got {private_dims!r}.")
    if not isinstance(latent_dim, int) or latent_dim < 1:
        raise ValueError(f"latent_dim: expected a positive integer, got {latent_dim!r}.")
    if not set(encoders) <= set(decoders) or (every and set(encoders) != set(decoders)):
        raise ValueError(
            f"encoders and decoders need the same modalities: encoders have {list(encoders)}, decoders "
            f"{list(decoders)}. Fix: one encoder and one decoder per modality."
        )
    private = {} if private_encoders is None else private_encoders
    dims = {} if private_dims is None else dict(private_dims)
    if set(private) != set(dims):
        raise ValueError(
            f"private_encoders and private_dims need the same modalities, got {list(private)} and {list(dims)}."
        )
    story = SharedPrivate(decoders, prior, dims, private_priors) if dims else Shared(decoders, prior)
    model = observe(story, tuple(decoders), private=getattr(story, "private", None))
    _try_out(model, encoders, latent_dim)
    for m, encoder in private.items():
        _try_out(model, {m: encoder}, dims[m])
    return model


def _try_out(model: ObservedModel, encoders: Networks, size: int) -> None:
    """One dry call of every encoder on one row of constants."""
    sites = model.door.outline().modalities
    unknown = sorted(set(encoders) - set(sites))
    if unknown:
        raise ValueError(f"encoders for unknown modalities {unknown}; those with decoders are {list(sites)}.")
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
    return JointEncoder(_shapes(model), latent_dim, num_classes=_classes(model, decoders))


def set_encoder_of(
    model: ObservedModel,
    encoders: Networks | None,
    decoders: Networks,
    latent_dim: int,
    pooling: str | nn.Module,
    num_components: int,
) -> nn.Module:
    """
    Sum-pooling or attention over all modalities, or the module given.

    :param encoders: what features come from; other modalities have MLPs, class numbers one-hot.
    :raises ValueError: for options that the module given would not use, or one that lacks a modality.
    """
    if isinstance(pooling, nn.Module):
        lacking = [m for m in model.modalities if m not in getattr(pooling, "modalities", model.modalities)]
        if encoders is not None or num_components != 1 or lacking:
            raise ValueError(
                f"pooling: a module of your own needs encoders=None, num_components=1 and all modalities; {lacking} "
                "are missing."
            )
        return pooling
    chosen(pooling=(pooling, ("sum", "attention")))
    own = {} if encoders is None else dict(encoders)
    _try_out(model, own, latent_dim)
    classes = {m: c for m, c in _classes(model, decoders).items() if m not in own}
    kind: Any = SumPoolingEncoder if pooling == "sum" else AttentionEncoder
    width = 256 if pooling == "sum" else 128
    networks = {m: ExpertFeatures(encoder, latent_dim, width) for m, encoder in own.items()}
    features = (width,) if pooling == "sum" else (256, width)
    options: dict[str, Any] = {"networks": networks} if networks else {}
    return kind(
        _shapes(model), latent_dim, features=features, num_classes=classes, num_components=num_components, **options
    )


def _shapes(model: ObservedModel) -> dict[str, tuple[int, ...]]:
    return {m: tuple(site.event_shape) for m, site in model.door.outline().modalities.items()}


def _classes(model: ObservedModel, decoders: Networks) -> dict[str, int]:
    """How many classes a modality of class numbers has."""
    supports = {m: base_support(site.support) for m, site in model.door.outline().modalities.items()}
    numbers = [m for m, support in supports.items() if support.is_discrete and support is not one_hot]
    classes: Any = {m: getattr(getattr(decoders[m], "likelihood", None), "num_classes", None) for m in numbers}
    return {m: count for m, count in classes.items() if count is not None}


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
    nonnegative(**{f"rescale[{m!r}]": factor for m, factor in rescale.items()})
    return dict(rescale)


def guide_of(
    model: ObservedModel,
    encoders: Networks,
    rule: Fusion,
    private_encoders: Networks | None = None,
    single: Mapping[str, Fusion] | None = None,
) -> Fused:
    """
    The rule at the shared latent, each private latent by its own encoder.

    :param single: modality -> rule of its private latent; those left out have :class:`pyro_mmvae.fusion.Single`.
    """
    private = {} if private_encoders is None else private_encoders
    rules = {m: Single() for m in private} | ({} if single is None else dict(single))
    sites = {"z": encoders} | {f"z_{m}": {m: encoder} for m, encoder in private.items()}
    return Fused(model, sites, fusion={"z": rule} | {f"z_{m}": rules[m] for m in private})


def each_beta(
    beta: float,
    warmup: int = 0,
    private: Networks | None = None,
    beta_private: float | Mapping[str, float] = 1.0,
) -> dict[str, Annealed]:
    """The weight of the KL at each latent site: beta, times ``beta_private`` at private ones; all annealed."""
    names = () if private is None else tuple(private)
    if isinstance(beta_private, Mapping):
        unknown = set(beta_private) - set(names)
        if unknown:
            raise ValueError(f"beta_private: {sorted(unknown)} have no private latent; those that do: {list(names)}.")
    given = beta_private if isinstance(beta_private, Mapping) else dict.fromkeys(names, beta_private)
    nonnegative(beta=beta, **{f"beta_private[{m!r}]": b for m, b in given.items()})
    if not isinstance(beta_private, Mapping):
        nonnegative(beta_private=beta_private)
    own = {m: given.get(m, 1.0) for m in names}
    return {"": Annealed(beta, warmup)} | {f"z_{m}": Annealed(beta * b, warmup) for m, b in own.items()}
