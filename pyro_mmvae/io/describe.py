"""What a model is, in plain JSON: its call, its sites, its objective as far as JSON can say it.

Layer: io.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae import objectives
from pyro_mmvae.nn import to_json
from pyro_mmvae.objectives import ELBO, IWAE, LearnedWeights, Terms
from pyro_mmvae.stories import ObservedModel, Outline

__all__ = ["call_of", "model_of", "objective_from", "objective_of", "unsaid"]

CUSTOM = "MultimodalVAE"

_PARTS = (
    "Annealed", "AnyContained", "Bernoulli", "Complement", "Each", "Fixed", "Nothing", "Observed", "Only", "Powerset",
    "Random", "Term",
)  # fmt: skip
_DATACLASSES = {name: getattr(objectives, name) for name in _PARTS}
_OBJECTS = {"ELBO": ELBO, "IWAE": IWAE, "Terms": Terms, "LearnedWeights": LearnedWeights}


def call_of(vae: Any) -> dict[str, Any]:
    """
    The constructor call of a model that is no published method; its programs are named, not stored.

    :param vae: has ``model``, ``guide`` and ``objective``.
    """
    cls = type(vae)
    name = cls.__name__ if cls.__module__.startswith("pyro_mmvae.") else f"{cls.__module__}.{cls.__qualname__}"
    return {
        "class": name,
        "model": _model_call(vae.model),
        "guide": _guide_call(vae.guide),
        "objective": objective_of(vae.objective),
    }


def _model_call(model: Any) -> dict[str, Any]:
    if not isinstance(model, ObservedModel):
        return {"class": None, "was": _name(model)}
    options = {"modalities": model.modalities, "private": model.private, "draw": model.draw, "size": model.size}
    return {"class": None, "was": f"observe of {_name(model.story.program)}"} | to_json(options)


def _guide_call(guide: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"class": None, "was": _name(guide)}
    encoders, fusion = getattr(guide, "encoders", None), getattr(guide, "fusion", None)
    if encoders is None or fusion is None:
        return out
    out["encoders"] = {site: {m: to_json(e) for m, e in own.items()} for site, own in encoders.items()}
    out["fusion"] = {site: [type(rule).__name__, to_json(rule.options())] for site, rule in fusion.items()}
    return out


def _name(program: Any) -> str:
    """A name that says nothing of data: of the function, or of the class."""
    return program.__qualname__ if inspect.isroutine(program) else type(program).__name__


def model_of(model: Any, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """
    Names, shapes and likelihoods of a model's sites.

    A story with covariates shows its sites with those that it has been run with; ``covariate_shapes`` says which. They
    are left out (None) where it has not been run, and everything is where the model was not made by ``observe``.

    :param like: the same of a saved model: covariates of its shapes are made up to look at this one.
    """
    if not isinstance(model, ObservedModel):
        return {"observed": False}
    out: dict[str, Any] = {
        "observed": True,
        "modalities": list(model.modalities),
        "covariates": list(model.covariates),
        "private": dict(model.private),
        "draw": list(model.draw),
        "size": model.size,
        "sites": None,
        "latents": None,
    }
    shapes = _covariate_shapes(model) if like is None else like.get("covariate_shapes")
    out["covariate_shapes"] = shapes
    outline = _outline(model, {} if shapes is None else shapes)
    if outline is not None:
        out["sites"] = {
            m: {"event_shape": list(site.event_shape), "likelihood": site.likelihood}
            for m, site in outline.modalities.items()
        }
        out["latents"] = {name: list(site.event_shape) for name, site in outline.latents.items()}
    return out


def _covariate_shapes(model: ObservedModel) -> dict[str, Any] | None:
    """Shapes of one row and dtypes of the covariates that the story was run with; None if that is not known."""
    keys: Any = model.door._outlines
    for key in keys:
        if set(model.story.required) <= {name for name, _, _ in key}:
            return {name: [list(shape), str(dtype).removeprefix("torch.")] for name, shape, dtype in key} or None
    return None


def _outline(model: ObservedModel, shapes: Mapping[str, Any]) -> Outline | None:
    """The model's sites; None where its covariates are not known, or the story refuses those that are made up."""
    if not set(model.story.required) <= set(shapes) <= set(model.covariates):
        return None
    try:
        return model.door.outline(_made_up(shapes))
    except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
        if not shapes or "no sample sites" in str(error):
            raise
        return None


def _made_up(shapes: Mapping[str, Any]) -> dict[str, Tensor]:  # each shape: (1, ...)
    """Covariates of one row: ones, or class 0."""
    out = {}
    for name, (shape, kind) in shapes.items():
        dtype = getattr(torch, kind, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"the covariate {name!r} is stored with the dtype {kind!r}, which is none of torch's")
        make = torch.ones if dtype.is_floating_point else torch.zeros
        out[name] = make((1, *shape), dtype=dtype)
    return out


def objective_of(value: Any) -> Any:
    """
    An objective in plain JSON; what JSON cannot say (functions, losses of Pyro's) becomes a marker.

    Example::

        >>> objective_of(IWAE(num_particles=5))["num_particles"]
        5
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    known = {**_DATACLASSES, **_OBJECTS}
    name = next((name for name, cls in known.items() if type(value) is cls), None)
    if name in _DATACLASSES:
        return {"class": name} | {f.name: objective_of(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if name in _OBJECTS:
        return {"class": name} | {option: objective_of(getattr(value, option)) for option in _options(_OBJECTS[name])}
    if isinstance(value, frozenset):
        return {"class": "set", "items": sorted(value)}
    if isinstance(value, tuple | list):
        return [objective_of(item) for item in value]
    if isinstance(value, Mapping):
        return {"class": "mapping", "items": [[objective_of(k), objective_of(v)] for k, v in value.items()]}
    return {"class": None, "was": _name(value)}


def objective_from(value: Any) -> Any:
    """
    The inverse of :func:`objective_of`; only the classes of this library's objectives are made.

    :raises ValueError: for an unknown class or a marker.
    """
    if isinstance(value, list):
        return tuple(objective_from(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    name, rest = value.get("class"), {k: v for k, v in value.items() if k != "class"}
    if name == "set":
        return frozenset(rest["items"])
    if name == "mapping":
        return {objective_from(k): objective_from(v) for k, v in rest["items"]}
    known = {**_DATACLASSES, **_OBJECTS}
    if name not in known:
        raise ValueError(f"the objective has a part {name!r}, which is not one of {list(known)}")
    return known[name](**{option: objective_from(v) for option, v in rest.items()})


def _options(cls: type) -> list[str]:
    return list(inspect.signature(cls).parameters)


def unsaid(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """
    What a config could not hold: where it stood, and what it was.

    Example::

        >>> list(unsaid({"encoders": {"a": {"class": None, "was": "MyEncoder"}}}))
        [(('encoders', 'a'), 'MyEncoder')]
    """
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from unsaid(item, (*where, str(i)))
    elif isinstance(value, Mapping) and value.get("class", "") is None:
        yield where, str(value.get("was"))
    elif isinstance(value, Mapping):
        pairs = value["items"] if value.get("class") == "mapping" else value.items()
        for key, item in pairs:
            yield from unsaid(item, (*where, str(key)))
