"""What a story cannot be, said with the way out.

Layer: stories.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import nn

__all__ = ["check_batch_shape", "explained", "refuse_hidden_networks", "refuse_plates", "require_distribution"]


def refuse_hidden_networks(program: Callable[..., Any], given: Collection[nn.Module]) -> None:
    """Networks in a function's closure or globals that were not given."""
    if not inspect.isfunction(program) and not inspect.ismethod(program):
        return
    known = {id(m) for module in given for m in module.modules()}
    names = inspect.getclosurevars(program)
    own = {"self": program.__self__} if inspect.ismethod(program) else {}
    hidden = [
        name
        for name, value in {**names.globals, **names.nonlocals, **own}.items()
        if any(id(m) not in known for m in _networks(value))
    ]
    if hidden:
        raise ValueError(
            f"story {program.__name__!r} uses networks that were not given: {hidden}; they would be neither trained "
            "nor saved. Try one of the following fixes:\n"
            f"1. modules={{{', '.join(f'{name!r}: {name}' for name in hidden)}}}\n"
            "2. write the story as an nn.Module with forward()"
        )


def _networks(value: object) -> Iterator[nn.Module]:
    """Networks in a value, one container deep."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, list | tuple):
        yield from (v for v in value if isinstance(v, nn.Module))
    elif isinstance(value, dict):
        yield from (v for v in value.values() if isinstance(v, nn.Module))


def require_distribution(name: str, fn: object) -> None:
    """A likelihood is a Distribution."""
    if not isinstance(fn, torch.distributions.Distribution):
        raise TypeError(
            f"modality {name!r}: expected a Distribution over it, got {type(fn).__name__}. Fix: a decoder returns e.g. "
            "dist.Normal(loc, scale).to_event(1)."
        )


def check_batch_shape(name: str, fn: TorchDistribution, plates: Mapping[int, int]) -> None:
    """All dimensions of a modality are event dimensions."""
    sizes = enumerate(reversed(fn.batch_shape), start=1)
    if any(size not in (1, plates.get(-i, 1)) for i, size in sizes):
        raise ValueError(
            f"modality {name!r}: on one row its likelihood has batch shape {tuple(fn.batch_shape)}, event shape "
            f"{tuple(fn.event_shape)}; expected batch shape (1,). Fix: .to_event so that all dimensions of the "
            "modality are event dimensions, and one likelihood per row of the latent."
        )


def refuse_plates(name: str, fn: TorchDistribution, plates: Sequence[Any]) -> None:
    """One value per sample would count once for each element of a plate around its site."""
    if plates:
        inside = " and ".join(f"{f.name!r} of size {f.size}" for f in plates)
        raise ValueError(
            f"modality {name!r} is inside plate {inside}: its value of event shape {tuple(fn.event_shape)} would count "
            "once for each element. Try one of the following fixes:\n"
            f"1. no plate around {name!r}, its elements as event dimensions: likelihood.to_event(1), data (B, elements)"
            f"\n2. a native model(data, obs_mask) with the plates 'data' (dim=-1) and {plates[0].name!r} (dim=-2) and "
            "handlers.observe around its sites: data (B, elements), masked one by one"
        )


@contextmanager
def explained(story: nn.Module) -> Iterator[None]:
    """Torch's words for a network whose weights are drawn per sample, in those of the library."""
    try:
        yield
    except RuntimeError as error:
        weights = [
            f"{path}.{name}".removeprefix("program.")
            for path, module in story.named_modules()
            for name in getattr(module, "_pyro_samples", ())
        ]
        if not weights:
            raise
        raise ValueError(
            f"story: it fails on one row ({error}). Its PyroSample attributes {weights} are sample sites inside the "
            "plate 'data', so every sample has weights of its own, with a batch dimension on the left, which layers "
            "such as nn.Linear do not take. Try one of the following fixes:\n"
            "1. one draw for the whole data set: a native model(data, obs_mask) that reads the network's weights "
            "outside its plate 'data', with handlers.observe around its modalities\n"
            "2. weights per sample: write the layer with them, e.g. (weight @ z.unsqueeze(-1)).squeeze(-1)"
        ) from error
