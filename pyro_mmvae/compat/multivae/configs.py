"""What multivae's configs say of families, private latents and factors.

Layer: compat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pyro_mmvae.compat.multivae.networks import Family

__all__ = ["Config", "family_of", "location_scale", "private_dims", "rescale_of"]

Config = Mapping[str, Any]

_FAMILIES: dict[str, Family] = {
    "normal": "normal",
    "normal_with_softplus": "normal_softplus",
    "laplace_with_softmax": "laplace_softmax",
}


def family_of(config: Config) -> Family:
    """The family of the experts."""
    return _FAMILIES[config.get("prior_and_posterior_dist", "normal")]


def location_scale(config: Config) -> Literal["laplace", "normal"]:
    """The family of experts and priors, without what makes the scale."""
    return "laplace" if family_of(config) == "laplace_softmax" else "normal"


def private_dims(config: Config, names: list[str]) -> dict[str, int]:
    """Sizes of the private latents; empty if there are none."""
    given = config.get("modalities_specific_dim")
    return {} if given is None else {m: int(given[m] if isinstance(given, Mapping) else given) for m in names}


def rescale_of(config: Config) -> Any:
    """Factors on the likelihoods, as the methods here take them."""
    if not config.get("uses_likelihood_rescaling", False):
        return None
    given = config.get("rescale_factors")
    return "dimensions" if given is None else given
