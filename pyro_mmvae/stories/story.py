"""A generative story as a module, and what one look at it tells: sites, shapes, supports.

Layer: stories, above handlers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyro_mmvae.distributions import Lazy, bounds, factorized_dims, fill_value, stand_ins
from pyro_mmvae.nn import modes_restored
from pyro_mmvae.nn.covariates import declared
from pyro_mmvae.stories.refused import (
    check_batch_shape,
    explained,
    refuse_hidden_networks,
    refuse_plates,
    require_distribution,
)

__all__ = ["LatentSite", "ModalitySite", "Outline", "Story", "outline"]


@dataclass(frozen=True)
class ModalitySite:
    """
    One modality of a story: its shape, its support, a constant inside it, its likelihood's class.

    :ivar cost: multiply-adds per row that a lazy likelihood saves where it is not scored; 0 for one that runs anyway,
        None if unknown.
    :ivar joint: trailing event dimensions over which the likelihood does not factorize; None if unknown.
    :ivar fixed: whether the support is known to be the same for all samples.
    """

    event_shape: torch.Size
    support: Constraint
    fill: Tensor
    likelihood: str
    cost: int | None = 0
    joint: int | None = None
    fixed: bool = True


@dataclass(frozen=True)
class LatentSite:
    """One latent of a story, in the order of sampling."""

    event_shape: torch.Size
    support: Constraint
    enumerated: bool
    has_rsample: bool


@dataclass(frozen=True)
class Outline:
    """What a dry run of a story shows; ``nesting`` counts its plates, ``data`` included."""

    modalities: dict[str, ModalitySite] = field(default_factory=dict)
    latents: dict[str, LatentSite] = field(default_factory=dict)
    nesting: int = 1


class Story(nn.Module):
    """
    A generative program of one sample, as an ``nn.Module``.

    An ``nn.Module`` whose ``forward`` is the program is taken as it is. A function is accepted together with the
    networks it uses, ``modules={...}``; a function whose closure or globals hold networks that were not given is
    refused, since they would silently be neither trained nor saved. Either may be wrapped in Pyro's handlers.

    The arguments are the covariates. A program with an attribute ``covariates``, a tuple of names, takes these as
    keywords, whatever its signature; all are needed, or those in ``required_covariates``.

    Example::

        >>> import pyro.distributions as dist
        >>> net = nn.Linear(2, 3)
        >>> def program():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ...     pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1))
        >>> Story(program, modules={"net": net}).covariates
        ()

    :raises TypeError: if the program is not callable, or takes ``*args``.
    :raises ValueError: if networks in its closure were not given.
    """

    def __init__(self, program: Callable[..., Any], modules: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        if not callable(program):
            raise TypeError(f"story: expected an nn.Module or a function, got {type(program).__name__}.")
        given = [] if modules is None else list(modules.values())
        inner = inspect.unwrap(program)  # what Pyro's handlers wrap
        if isinstance(inner, nn.Module):
            signature = inspect.signature(inner.forward)
            given += [inner] if inner is not program else []
        else:
            signature = inspect.signature(program)
            refuse_hidden_networks(inner, given)
        self.modules_given = nn.ModuleList(given)
        if isinstance(program, nn.Module):
            self.program = program
        else:
            object.__setattr__(self, "program", program)
        own = declared(inner)
        arguments = _arguments(signature) if own is None else own
        self.covariates = tuple(arguments)
        self.required = tuple(name for name, needed in arguments.items() if needed)

    def forward(self, **covariates: Tensor) -> Any:
        """Run the program once."""
        return self.program(**covariates)


def _arguments(signature: inspect.Signature) -> dict[str, bool]:
    """Argument -> whether it has no default."""
    for p in signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            raise TypeError(
                f"story: argument {p} has no fixed name. Fix: name every covariate, e.g. def story(batch, size), "
                "or in an attribute covariates."
            )
    return {p.name: p.default is p.empty for p in signature.parameters.values()}


class _OutlineMessenger(Messenger):
    """Run a story without its likelihoods' networks: modality sites get a constant of their support."""

    def __init__(self, modalities: Collection[str]) -> None:
        super().__init__()
        self.names = frozenset(modalities)
        self.modalities: dict[str, ModalitySite] = {}
        self.latents: dict[str, LatentSite] = {}
        self.nesting = 1

    def _pyro_sample(self, msg: Message) -> None:
        fn: Any = msg["fn"]
        name = msg["name"]
        if isinstance(fn, _Subsample):
            return
        if name in self.names:
            if name in self.modalities:
                raise ValueError(
                    f"{name!r} names two sites of the story, such as a modality and a latent site, and is taken. Fix: "
                    "rename one of them."
                )
            require_distribution(name, fn)
            value = fill_value(fn.support, fn.event_shape)
            cost = fn.cost if isinstance(fn, Lazy) else 0
            likelihood, joint = _family(fn)
            self.modalities[name] = ModalitySite(fn.event_shape, fn.support, value, likelihood, cost, joint)
            msg["value"] = value.expand(fn.batch_shape + fn.event_shape)
            msg["done"] = True

    def _pyro_post_sample(self, msg: Message) -> None:
        fn, name = msg["fn"], msg["name"]
        if isinstance(fn, _Subsample):
            return
        self.nesting = max([self.nesting, *(-f.dim for f in msg["cond_indep_stack"] if f.dim is not None)])
        if name in self.names:
            plates = {f.dim: f for f in msg["cond_indep_stack"] if f.dim is not None}
            check_batch_shape(name, fn, {dim: f.size for dim, f in plates.items()})
            refuse_plates(name, fn, [f for f in plates.values() if f.name != "data" and f.size != 1])
        deterministic = msg["infer"].get("_deterministic", False)
        if name not in self.names and not msg["is_observed"] and not deterministic:
            enumerated = msg["infer"].get("enumerate") is not None
            self.latents[name] = LatentSite(fn.event_shape, fn.support, enumerated, fn.has_rsample)


def _family(fn: TorchDistribution) -> tuple[str, int | None]:
    """The likelihood's class, and the event dimensions over which it is joint; for a lazy one its decoder's."""
    if isinstance(fn, Lazy):
        own = getattr(getattr(fn.fn, "__self__", None), "likelihood", fn)
        return type(own).__name__, getattr(own, "joint_dims", None)
    joint = fn.event_dim - factorized_dims(fn)
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return type(fn).__name__, joint


@contextmanager
def _untouched(module: nn.Module, like: Mapping[str, Tensor]) -> Iterator[None]:
    """Evaluation mode, no gradient, the random state as before."""
    devices = {t.device for t in [*module.parameters(), *like.values()] if t.device.type == "cuda"}
    with modes_restored(module), torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        module.eval()
        yield


def outline(
    story: Story,
    modalities: Collection[str],
    covariates: Mapping[str, Tensor],  # each shape: (B, ...)
) -> Outline:
    """
    Run the story on one row, in evaluation mode, without gradient and without moving the random state.

    Once; twice if a support has bounds that are tensors, to see whether they depend on the latents.

    :raises ValueError: if a modality is no site of the story, or a reserved or clashing name is used.
    """
    row = {name: x[:1] for name, x in covariates.items()}

    def look() -> _OutlineMessenger:
        messenger = _OutlineMessenger(modalities)
        with poutine.block(), stand_ins(), pyro.plate("data", 1, dim=-1), messenger, explained(story):
            story(**row)
        return messenger

    with _untouched(story, covariates):
        messenger = look()
        moving = [m for m, site in messenger.modalities.items() if bounds(site.support)]
        other = look().modalities if moving and not covariates else {}
    missing = [m for m in modalities if m not in messenger.modalities]
    if missing:
        raise ValueError(
            f"modalities {missing} are no sample sites of the story; its sites are "
            f"{[*messenger.latents, *messenger.modalities]}. Fix: pyro.sample({missing[0]!r}, ...) in the story, or "
            "another name in modalities."
        )
    ordered = {m: messenger.modalities[m] for m in modalities}
    for m in moving:
        ordered[m] = replace(ordered[m], fixed=m in other and _same_bounds(ordered[m], other[m]))
    return Outline(ordered, messenger.latents, messenger.nesting)


def _same_bounds(a: ModalitySite, b: ModalitySite) -> bool:
    """Whether bounds that are tensors agree between two draws of the latents."""
    return all(torch.equal(x, y) for x, y in zip(bounds(a.support), bounds(b.support), strict=True))
