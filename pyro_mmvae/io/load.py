"""Saving a model to a folder, and making it again from there.

Layer: io.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn

from pyro_mmvae.io.build import custom, method, naming, refuse
from pyro_mmvae.io.describe import CUSTOM, model_of, objective_from, objective_of, unsaid
from pyro_mmvae.io.files import Saved, read, write
from pyro_mmvae.io.weights import collect, first_mismatch, put, refuse_stale_store

__all__ = ["load", "save"]

Networks = Mapping[str, nn.Module] | None

_FIXES = {
    "observed": "pyro_mmvae.observe(story, modalities) where it was made so, a program of your own where not",
    "modalities": "pyro_mmvae.observe(story, modalities={was})",
    "covariates": "name the story's arguments {was}",
    "private": "pyro_mmvae.observe(story, modalities, private={was})",
}
_CONSTRUCT = (
    "Fix: construct networks, story and guide with the sizes they were saved with; an AutoGuide makes its parameters "
    "when it is first run, so call guide(data, obs_mask) once before"
)


def save(vae: Any, path: str | os.PathLike[str]) -> None:
    """
    Write a model into a folder: ``config.json`` (how it is made) and ``model.safetensors`` (its parameters, buffers
    and annealing clock).

    Plain JSON and tensors: reading them executes nothing. No training row, sample id or label is in them, but what a
    model itself keeps of its data (a parameter that is an example, a likelihood's total count) is. Pyro's param store
    is not saved.

    :param path: the folder; made if need be, files of an earlier model in it are replaced.
    :raises ValueError: if ``path`` is a file, or an option cannot be said in JSON.
    :raises TypeError: if the model has state that is no tensor.
    """
    tensors, shared = collect(vae)
    write(Path(path), Saved(vae.config, model_of(vae.model), objective_of(vae.objective), shared, tensors))


def load(
    path: str | os.PathLike[str],
    *,
    story: Callable[..., Any] | None = None,
    guide: Callable[..., Any] | None = None,
    objective: PyroELBO | None = None,
    encoders: Networks = None,
    decoders: Networks = None,
    options: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """
    The model that ``vae.save(path)`` wrote.

    A published method with networks of the library needs nothing but the path. What a config cannot hold is given
    again, constructed as before: networks of your own by modality (``encoders``, ``decoders``), other such options of
    a method by name (``options={"prior": ...}``), and for a :class:`pyro_mmvae.MultimodalVAE` its ``story`` and
    ``guide``. Names, shapes and likelihoods of sites, covariates, and names and shapes of parameters are compared
    with the saved ones before anything is changed, and the first difference is named; then the saved values are written
    into what was given. (Of a story with covariates that had not run when it was saved, the sites' shapes are not
    known; of a model not made by ``observe``, parameters alone are compared.) Dtypes are the saved ones, and tensors
    that were
    shared are shared.

    The objective comes back where JSON can say it (ELBO and IWAE with the selectors of this library). Where it cannot
    (weights that are functions, Pyro's own losses), give ``objective``; else ``ELBO()`` takes its place, with a
    warning: the verbs do not depend on it.

    Example::

        >>> import tempfile
        >>> import pyro_mmvae as mm
        >>> nets = {m: mm.nn.MLPEncoder(4, 2) for m in "ab"}, {m: mm.nn.MLPDecoder(2, 4) for m in "ab"}
        >>> vae = mm.MVAE(*nets, latent_dim=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vae.save(folder)
        ...     again = load(folder)
        >>> again.config == vae.config
        True

    :param path: the folder.
    :param story: the story of a custom model, or the observed model itself.
    :param guide: its guide.
    :param device: where the parameters go.
    :return: the model, in training mode, as when it is made.
    :raises FileNotFoundError: if the folder or a file in it is missing; it is named.
    :raises ValueError: if a file is damaged or of another kind, if something must be given, or what was given differs
        from what was saved; the first difference is named.
    :raises RuntimeError: if Pyro's param store would hide loaded values.
    """
    saved = read(path)
    for part in (story, guide):
        if isinstance(part, nn.Module):
            refuse_stale_store(part)
    networks = {"encoders": encoders, "decoders": decoders}
    with naming(saved), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        if saved.config.get("class") == CUSTOM:
            refuse("encoders, decoders and options", saved, *networks.values(), options)
            vae = custom(saved, story, guide)
        else:
            refuse("story and guide", saved, story, guide)
            given = {k: v for k, v in networks.items() if v is not None} | dict({} if options is None else options)
            vae = method(saved, given)
        difference = _first_difference(saved.model, model_of(vae.model, saved.model))
        if difference is None:
            tensors = _with_objective(saved, vae, objective)
            difference = first_mismatch(tensors, saved.shared, vae)
            difference = None if difference is None else f"{difference}. {_CONSTRUCT}"
        if difference is not None:
            raise ValueError(f"load: {str(saved.where)!r} is of another model: {difference}.")
        put(tensors, saved.shared, vae)
    return vae.to(device)


def _first_difference(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """What first differs between the sites of two models, in words, or None."""
    for part, fix in _FIXES.items():
        if saved.get(part) != own.get(part):
            was = saved.get(part)
            return f"{part}: saved {was}, the model has {own.get(part)}. Fix: {fix.format(was=was)}"
    for part, what in (("latents", "latent site"), ("sites", "modality")):
        then, now = saved.get(part), own.get(part)
        if then is None or now is None:
            continue
        for name in [*then, *(n for n in now if n not in then)]:
            if then.get(name) != now.get(name):
                have = f"{what} {name!r}: saved {then.get(name)}, the model has {now.get(name)} (None: not there)"
                if name in then and name in now:
                    return f"{have}. Fix: construct the story with the sizes and likelihoods it was saved with"
                return f"{have}. Fix: name the story's sites as they were saved, {list(then)}; it has {list(now)}"
    return None


def _with_objective(saved: Saved, vae: Any, given: PyroELBO | None) -> dict[str, Tensor]:
    """Put the objective in its place; the tensors to load, whose clock goes on with another objective too."""
    if given is None and objective_of(vae.objective) == saved.objective:
        return saved.tensors
    objective = _nearest(saved, vae.objective) if given is None else given
    del vae.objective  # a loss of Pyro's is no module and cannot replace one
    vae.objective = objective
    tensors = saved.tensors
    own = {name: x for name, x in vae.state_dict().items() if name.startswith("objective.")}
    kept = {name: x for name, x in tensors.items() if not name.startswith("objective.")}
    same = {name: tensors[name] for name in own if name in tensors and tensors[name].shape == own[name].shape}
    return kept | own | same


def _nearest(saved: Saved, built: PyroELBO) -> PyroELBO:
    """The saved objective; where JSON could not say it the one the model was made with, and a warning."""
    missing = list(unsaid(saved.objective))
    if not missing:
        found = objective_from(saved.objective)
        if not isinstance(found, PyroELBO):
            raise ValueError(f"the objective is stored as a {type(found).__name__}")
        return found
    what = ", ".join(was for _, was in missing)
    warnings.warn(
        f"load: the objective of {str(saved.where)!r} was not stored in full ({what}); "
        f"{type(built).__name__}() takes its place. The verbs do not depend on it. Fix: pyro_mmvae.load(path, ..., "
        "objective=objective).",
        stacklevel=4,
    )
    return built
