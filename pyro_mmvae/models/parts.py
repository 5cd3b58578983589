"""What every method is built from: the story, the guide, factors and weights.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, prod
from typing import Literal, SupportsFloat

from torch import nn

from pyro_mmvae.fusion import Fusion, Single
from pyro_mmvae.guides import Fused
from pyro_mmvae.models.networks import Networks, chosen, sites_of, try_out
from pyro_mmvae.objectives import Annealed
from pyro_mmvae.stories import LaplacePrior, NormalPrior, ObservedModel, Shared, SharedPrivate, observe

__all__ = [
    "Networks",
    "Prior",
    "Rescale",
    "chosen",
    "each_beta",
    "factor_of",
    "factors",
    "guide_of",
    "model_of",
    "nonnegative",
    "prior_of",
]

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
    try_out(model, encoders, latent_dim)
    for m, encoder in private.items():
        try_out(model, {m: encoder}, dims[m])
    return model


def factors(model: ObservedModel, rescale: Rescale) -> Mapping[str, float] | float:
    """Factors lambda on the likelihoods: given, 1, or the largest number of dimensions over the modality's own."""
    if rescale is None:
        return 1.0
    if rescale == "dimensions":
        sites = sites_of(model, "rescale={modality: factor} in place of 'dimensions'.")
        sizes = {m: prod(site.event_shape) for m, site in sites.items()}
        return {m: max(sizes.values()) / size for m, size in sizes.items()}
    if not isinstance(rescale, Mapping):
        raise ValueError(f"rescale: expected None, 'dimensions' or modality -> factor, got {rescale!r}.")
    unknown = set(rescale) - set(model.modalities)
    if unknown:
        raise ValueError(f"rescale: unknown modalities {sorted(unknown)}; known are {list(model.modalities)}.")
    nonnegative(**{f"rescale[{m!r}]": factor for m, factor in rescale.items()})
    return dict(rescale)


def factor_of(given: Mapping[str, float] | float, modality: str) -> float:
    """One modality's factor out of :func:`factors`."""
    return given.get(modality, 1.0) if isinstance(given, Mapping) else given


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
