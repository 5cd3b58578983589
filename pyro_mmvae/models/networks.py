"""The networks of the methods: tried once, and made where a method needs one that was not given.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.constraints import one_hot

from pyro_mmvae.columns import Column
from pyro_mmvae.distributions import base_support
from pyro_mmvae.nn import (
    AttentionEncoder,
    Columns,
    ExpertFeatures,
    JointEncoder,
    SumPoolingEncoder,
    TableFeatures,
    modes_restored,
    takes_mask,
)
from pyro_mmvae.nn.covariates import required_of
from pyro_mmvae.stories import ModalitySite, ObservedModel

__all__ = ["Networks", "chosen", "default_joint_encoder", "set_encoder_of", "sites_of", "try_out"]

Networks = Mapping[str, nn.Module]


def chosen(**options: tuple[object, tuple[object, ...]]) -> None:
    """
    Each option is one of its known values; an argument is ``name=(value, known)``.

    :raises ValueError: naming the one that is not.
    """
    for name, (value, known) in options.items():
        if value not in known:
            raise ValueError(f"{name}: expected one of {list(known)}, got {value!r}.")


def _contexts(networks: Iterable[object]) -> dict[str, Column]:
    """The columns of the covariates of the library's networks, by name; the first of a name."""
    contexts = [context for n in networks if (context := getattr(n, "context", None)) is not None]
    columns = [c for context in contexts for c in getattr(getattr(context, "features", None), "columns", ())]
    return {c.name: c for c in reversed(columns)}


def _possible_sites(model: ObservedModel) -> dict[str, ModalitySite] | None:
    """
    The modality sites; None where they cannot be seen before data come, since the shapes of covariates are not known.

    Covariates that the library's networks read are one number per row. Those of a user's are tried as a number and as a
    class.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    known = _contexts(model.story.program.modules()) if isinstance(model.story.program, nn.Module) else {}
    zeros = like.new_zeros(1)
    kinds = [(zeros,) if name in known else (zeros, zeros.long()) for name in model.story.required]
    trials = [dict(zip(model.story.required, trial, strict=True)) for trial in islice(product(*kinds), 16)]
    if len(trials) == 1:
        return model.door.outline(trials[0]).modalities
    for trial in trials:
        try:
            return model.door.outline(trial).modalities
        except Exception:  # a user's network, given what may not be its covariate, raises anything
            continue
    return None


def sites_of(model: ObservedModel, fix: str) -> dict[str, ModalitySite]:
    """
    The modality sites, by dry runs on stand-ins for covariates.

    :param fix: what to do without them.
    :raises ValueError: if no stand-in will do.
    """
    sites = _possible_sites(model)
    if sites is None:
        raise ValueError(
            f"the decoders' covariates {list(model.story.required)} have unknown shapes, and so have the modalities. "
            f"Fix: {fix}"
        )
    return sites


def try_out(model: ObservedModel, encoders: Networks, size: int) -> None:
    """One dry call of every encoder on one row of constants; not of those with covariates of unknown shape."""
    unknown = sorted(set(encoders) - set(model.modalities))
    if unknown:
        known = list(model.modalities)
        raise ValueError(f"encoders for unknown modalities {unknown}; those with decoders are {known}.")
    sites = _possible_sites(model)
    for m, encoder in encoders.items():
        context = _contexts([encoder])
        if sites is None or any(name not in context for name in required_of(encoder)):
            continue
        site = sites[m]
        x = site.fill.expand((1, *site.event_shape))
        like = next((p for p in encoder.parameters() if p.is_floating_point()), x)
        expert = _called(encoder, x.to(like), {name: x.to(like).new_zeros(1) for name in context})
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


def _called(encoder: nn.Module, x: Tensor, covariates: Mapping[str, Tensor]) -> Any:
    """The encoder's answer in evaluation mode; modes and the random state stay as they were."""
    devices = [x.device] if x.device.type == "cuda" else []
    mask = {"mask": torch.ones_like(x, dtype=torch.bool)} if takes_mask(encoder) else {}
    with modes_restored(encoder), torch.no_grad(), torch.random.fork_rng(devices=devices):
        return encoder.eval()(x, **mask, **covariates)


def default_joint_encoder(model: ObservedModel, decoders: Networks, latent_dim: int) -> JointEncoder:
    """A masked MLP over all modalities, tables standardized, class numbers one-hot; it reads the decoders' contexts."""
    sites = sites_of(model, "give a joint_encoder.")
    context = list(_contexts(decoders.values()).values())
    tables = _table_features(decoders, sites, 256, context)
    options: dict[str, Any] = {"networks": tables} if tables else {}
    if len(tables) < len(sites):
        options["context"] = context
    return JointEncoder(_shapes(sites), latent_dim, num_classes=_classes(sites, decoders), **options)


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

    :param encoders: what features come from; other modalities have MLPs, class numbers one-hot, which read the contexts
        of the decoders.
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
    try_out(model, own, latent_dim)
    sites = sites_of(model, "give a set encoder of your own as pooling.")
    classes = {m: c for m, c in _classes(sites, decoders).items() if m not in own}
    kind: Any = SumPoolingEncoder if pooling == "sum" else AttentionEncoder
    width = 256 if pooling == "sum" else 128
    context = list(_contexts(decoders.values()).values())
    networks: dict[str, nn.Module] = _table_features(decoders, set(sites) - set(own), width, context)
    networks |= {m: ExpertFeatures(encoder, latent_dim, width) for m, encoder in own.items()}
    features = (width,) if pooling == "sum" else (256, width)
    options: dict[str, Any] = {"networks": networks} if networks else {}
    if set(networks) < set(sites):
        options["context"] = context
    return kind(
        _shapes(sites), latent_dim, features=features, num_classes=classes, num_components=num_components, **options
    )


def _table_features(
    decoders: Networks, names: Collection[str], width: int, context: list[Column]
) -> dict[str, nn.Module]:
    """Networks for the modalities whose likelihood is one of columns: their cells have the units of the data."""
    found: dict[str, nn.Module] = {}
    for m in decoders:
        likelihood = getattr(decoders[m], "likelihood", None)
        if m in names and isinstance(likelihood, Columns):
            found[m] = TableFeatures(likelihood.columns, width, context=context)
    return found


def _shapes(sites: Mapping[str, ModalitySite]) -> dict[str, tuple[int, ...]]:
    return {m: tuple(site.event_shape) for m, site in sites.items()}


def _classes(sites: Mapping[str, ModalitySite], decoders: Networks) -> dict[str, int]:
    """How many classes a modality of class numbers has."""
    supports = {m: base_support(site.support) for m, site in sites.items()}
    numbers = [m for m, support in supports.items() if support.is_discrete and support is not one_hot]
    classes: Any = {m: getattr(getattr(decoders[m], "likelihood", None), "num_classes", None) for m in numbers}
    return {m: count for m, count in classes.items() if count is not None}
