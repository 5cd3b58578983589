"""Which method here a class of multivae's is, and its options under their names here.

Layer: compat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_mmvae import models
from pyro_mmvae.compat.multivae.configs import Config, family_of, location_scale
from pyro_mmvae.compat.multivae.default import State
from pyro_mmvae.compat.multivae.priors import put_cmvae, put_mmvae, put_mmvaeplus
from pyro_mmvae.stories import LaplacePrior, NormalPrior

__all__ = ["Recipe", "recipe_of"]


def _nothing(config: Config, state: State, vae: Any) -> None:
    """There is nothing but encoders and decoders."""


@dataclass(frozen=True)
class Recipe:
    """
    How a class of multivae's becomes a method.

    :ivar method: the method's class.
    :ivar options: the config and the names of the modalities -> options of the method.
    :ivar put: takes what is neither encoder nor decoder (priors) out of the state and puts it into the model.
    """

    method: Callable[..., Any]
    options: Callable[[Config, list[str]], dict[str, Any]]
    put: Callable[[Config, State, Any], None] = _nothing


def _mvae(config: Config, names: list[str]) -> dict[str, Any]:
    sampled = bool(config["use_subsampling"])
    k = int(config["k"]) if sampled and len(names) > 2 else 0
    return {"unimodal": sampled, "k": k, "beta": config["beta"]}


def _mmvae(config: Config, names: list[str]) -> dict[str, Any]:
    return {"num_particles": config["K"], "gradient": _gradient(config), "prior": _prior(config, "learn_prior")}


def _gradient(config: Config) -> str:
    return {"dreg_looser": "dreg", "iwae_looser": "path"}[config["loss"]]


def _prior(config: Config, learn: str) -> nn.Module:
    """p(z) around 0, with a scale that is learned or not."""
    size, learned = int(config["latent_dim"]), bool(config[learn])
    if location_scale(config) == "laplace":
        return LaplacePrior(size, learn=learned)
    return NormalPrior(size, learn="scale" if learned else False)


def _mmvaeplus(config: Config, names: list[str]) -> dict[str, Any]:
    prior = {"prior": _prior(config, "learn_shared_prior"), "private_prior": location_scale(config)}
    return _with_private(config) | prior


def _with_private(config: Config) -> dict[str, Any]:
    """The options that MMVAE+ and CMVAE have in common."""
    learned = bool(config["learn_modality_prior"])
    return {
        "num_particles": config["K"],
        "gradient": _gradient(config),
        "beta": config["beta"],
        "auxiliary": "learned" if learned else "prior",
        "predict": "auxiliary" if learned and config["reconstruction_option"] == "single_prior" else "prior",
    }


def _cmvae(config: Config, names: list[str]) -> dict[str, Any]:
    if family_of(config) == "normal_softplus":
        raise NotImplementedError(
            "load: with 'normal_with_softplus' multivae's CMVAE has clusters of scale log 2; MixturePrior has "
            "clusters of scale 1."
        )
    own = {"num_clusters": config["number_of_clusters"], "cluster_prior": location_scale(config)}
    return _with_private(config) | own


def _mopoe(config: Config, names: list[str]) -> dict[str, Any]:
    given = config.get("subsets")
    listed = () if given is None else given.values() if isinstance(given, Mapping) else given
    subsets = [list(s) for s in listed if len(s)]  # it lists the empty one, too
    every = len({frozenset(s) for s in subsets}) == 2 ** len(names) - 1
    return {
        "subsets": subsets if subsets and not every else None,
        "beta": config["beta"],
        "beta_private": config["beta_style"],
    }


def _mvtcae(config: Config, names: list[str]) -> dict[str, Any]:
    return {"alpha": config["alpha"], "beta": config["beta"]}


def _jmvae(config: Config, names: list[str]) -> dict[str, Any]:
    return {"alpha": config["alpha"], "beta": config["beta"], "subset_posterior": "product"}


def _crmvae(config: Config, names: list[str]) -> dict[str, Any]:
    return {"beta": config["beta"]}


def _dmvae(config: Config, names: list[str]) -> dict[str, Any]:
    beta, given = config["beta"], config.get("modalities_specific_betas")
    own = dict.fromkeys(names, 1.0) if given is None else given
    if not beta:
        raise ValueError("beta is 0, which here would take the private latents' divergences away, too")
    return {"beta": beta, "beta_private": {m: own[m] / beta for m in names}, "counting": "multivae"}


_RECIPES = {
    "MVAE": Recipe(models.MVAE, _mvae),
    "MMVAE": Recipe(models.MMVAE, _mmvae, put_mmvae),
    "MoPoE": Recipe(models.MoPoE, _mopoe),
    "MVTCAE": Recipe(models.MVTCAE, _mvtcae),
    "JMVAE": Recipe(models.JMVAE, _jmvae),
    "CRMVAE": Recipe(models.CRMVAE, _crmvae),
    "DMVAE": Recipe(models.DMVAE, _dmvae),
    "MMVAEPlus": Recipe(models.MMVAEPlus, _mmvaeplus, put_mmvaeplus),
    "CMVAE": Recipe(models.CMVAE, _cmvae, put_cmvae),
}

_ABSENT = ("CVAE", "JNF", "MHVAE", "Nexus", "TELBO")


def recipe_of(config: Config) -> Recipe:
    """
    The recipe of a config's class.

    :raises NotImplementedError: for a class of multivae's that has no recipe.
    :raises ValueError: for anything else.
    """
    name = str(config.get("name", "")).removesuffix("Config")
    if name in _RECIPES:
        return _RECIPES[name]
    if name in _ABSENT:
        raise NotImplementedError(
            f"load: multivae's {name} cannot be loaded yet; known are {sorted(_RECIPES)}. Fix: encoder(net) and "
            "decoder(net) of its networks, with a story of your own."
        )
    raise ValueError(f"load: model_config.json names {config.get('name')!r}, no config of a model of multivae's.")
