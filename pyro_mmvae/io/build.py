"""Making the model of a saved folder: published methods from their config, custom ones from what is given.

Layer: io.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyro.infer import ELBO as PyroELBO

from pyro_mmvae.io.describe import CUSTOM, unsaid
from pyro_mmvae.io.files import CONFIG, Saved
from pyro_mmvae.nn import from_config
from pyro_mmvae.stories import ObservedModel, observe

__all__ = ["custom", "method", "naming", "refuse"]


@contextmanager
def naming(saved: Saved) -> Iterator[None]:
    """Whatever fails inside becomes a ValueError that names the folder."""
    where = str(saved.where)
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and where in str(error):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"load: the model of {where!r} cannot be made: {kind}{error}") from error


def refuse(what: str, saved: Saved, *given: Any) -> None:
    """
    Refuse arguments that this kind of model does not have.

    :raises ValueError: if one of them is given.
    """
    if any(g is not None for g in given):
        raise ValueError(f"load: {str(saved.where)!r} holds a {saved.config.get('class')}: {what} have no place in it.")


def custom(saved: Saved, story: Any, guide: Any) -> Any:
    """
    A model of the user's own, of the story and guide given.

    :raises ValueError: if one of them is not.
    """
    if story is None or guide is None:
        was = ", ".join(f"{name} ({what})" for (name, *_), what in unsaid(saved.config) if name in ("model", "guide"))
        raise ValueError(
            f"load: {str(saved.where)!r} holds a model of your own: {was}, and programs are not stored. "
            "Fix: pyro_mmvae.load(path, story=story, guide=guide), both constructed as before."
        )
    # the class is above this layer; it is known by name like every class of a config
    cls = from_config({"class": "function", "name": CUSTOM})
    return cls(_model(saved, story, guide), guide)


def _model(saved: Saved, story: Any, guide: Any) -> Any:
    """The observed model: as given, the guide's own, or made with the saved options."""
    if isinstance(story, ObservedModel) or not saved.model.get("observed"):
        return story
    own = getattr(guide, "observed", None)
    names = list(saved.model.get("modalities", ()))
    if isinstance(own, ObservedModel) and own.story.program is story and list(own.modalities) == names:
        return own
    was = saved.model
    return observe(story, names, private=was.get("private"), draw=was.get("draw", ()), size=was.get("size"))


def method(saved: Saved, given: Mapping[str, Any]) -> Any:
    """
    A published method, from its config and what replaces parts of it.

    :raises ValueError: if the config cannot hold a part that is not given, or has no such part.
    """
    file = str(saved.where / CONFIG)
    config = dict(saved.config)
    unknown = sorted(set(given) - set(config))
    if unknown:
        known = [name for name in config if name != "class"]
        raise ValueError(f"load: {file!r}: {config.get('class')} was saved without {unknown}; its options are {known}.")
    for name, value in given.items():
        config[name] = _merged(config[name], value, name, file)
    missing = list(unsaid(config))
    if missing:
        raise ValueError(_how_to_give(missing, config, file))
    vae = from_config(config)
    if not isinstance(getattr(vae, "objective", None), PyroELBO):
        raise ValueError(f"load: {file!r} describes a {type(vae).__name__}, which is no model.")
    return vae


def _merged(saved: Any, value: Any, name: str, file: str) -> Any:
    """Given networks in the place of saved configs; modalities that are not given keep theirs."""
    if not isinstance(value, Mapping):
        return value
    was = saved if isinstance(saved, Mapping) else {}
    own = dict(was["items"]) if was.get("class") == "mapping" else dict(was)
    unknown = sorted(str(m) for m in set(value) - set(own))
    if unknown:
        raise ValueError(f"load: {name}: {unknown} are no modalities of the model in {file!r}; known are {list(own)}.")
    return {"class": "mapping", "items": [[m, value.get(m, config)] for m, config in own.items()]}


def _how_to_give(missing: list[tuple[tuple[str, ...], str]], config: Mapping[str, Any], file: str) -> str:
    what = ", ".join(f"{'.'.join(where)} ({was})" for where, was in missing)
    names = list(dict.fromkeys(where[0] for where, _ in missing))
    if "model" in names:
        return (
            f"load: {file!r} holds a {config['class']}, a class of your own without a config. Fix: derive it from "
            "pyro_mmvae.nn.Configurable too, or save pyro_mmvae.MultimodalVAE(vae.model, vae.guide, vae.objective)."
        )
    parts = [f"{name}={{modality: network}}" for name in names if name in ("encoders", "decoders")]
    others = [name for name in names if name not in ("encoders", "decoders")]
    parts += [f"options={{{', '.join(f'{name!r}: ...' for name in others)}}}"] if others else []
    return (
        f"load: {file!r} has the weights of {what}, but a config cannot hold them. Fix: construct them as before, "
        f"pyro_mmvae.load(path, {', '.join(parts)})."
    )
