"""Checkpoints: everything that a run needs to go on as if it had never stopped, and no training data.

Layer: training.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["read", "refuse_other_run", "write"]

FORMAT = "pyro_mmvae training checkpoint"
VERSION = 1
KEYS = {
    "format", "version", "settings", "seed", "weights", "optimizer", "scheduler", "random", "shuffle",
    "epoch", "step", "seconds", "history", "best",
}  # fmt: skip


def write(path: Path, content: Mapping[str, Any]) -> None:
    """
    Write a checkpoint; the file at ``path`` is at every moment the old one or the new one, whole.

    :raises TypeError: if a part holds more than tensors and plain values, so that reading it would run code.
    """
    whole = _owned({"format": FORMAT, "version": VERSION, **content})
    for name, part in whole.items():
        _refuse_code(name, part)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(whole, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _owned(part: Any) -> Any:
    """Copies on the host: a tensor that is a view would bring all of its storage along."""
    if isinstance(part, Tensor):
        return part.detach().clone().cpu()
    if isinstance(part, Mapping):
        return {k: _owned(v) for k, v in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(_owned(v) for v in part) if type(part) in (list, tuple) else part
    return part


def _refuse_code(name: str, part: Any) -> None:
    """Only what ``weights_only`` reads back: tensors and plain values."""
    if isinstance(part, Tensor) or part is None:
        return
    plain = _without_tensors(part)
    buffer = io.BytesIO()
    try:
        torch.save(plain, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (pickle.UnpicklingError, pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"checkpoint: {name!r} holds more than tensors and plain values, so that reading it would run code. Fix: "
            f"an optimizer, scheduler and modules whose state_dict is plain, or no checkpoint. ({error})"
        ) from error


def _without_tensors(part: Any) -> Any:
    if isinstance(part, Tensor):
        return None
    if isinstance(part, dict):
        return {k: _without_tensors(v) for k, v in part.items()}
    if type(part) in (list, tuple):
        return [_without_tensors(v) for v in part]
    return part


def read(path: Path) -> dict[str, Any]:
    """
    Read a checkpoint onto the host, without executing anything.

    :raises FileNotFoundError: if there is none.
    :raises ValueError: if it is truncated, damaged, or something else.
    """
    if not path.exists():
        raise FileNotFoundError(f"resume: there is no file {str(path)!r}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"resume: {str(path)!r} is no checkpoint of fit, or it is truncated.")
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        found = None if damaged is not None else torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"resume: {str(path)!r} cannot be read as a checkpoint of fit: {error}") from error
    if damaged is not None:
        raise ValueError(f"resume: {str(path)!r} is damaged at {damaged!r}.")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"resume: {str(path)!r} is no checkpoint of fit.")
    if found.get("version") != VERSION or set(found) != KEYS:
        raise ValueError(
            f"resume: {str(path)!r} is a checkpoint of another version ({found.get('version')}); this one reads "
            f"version {VERSION}."
        )
    return found


def refuse_other_run(path: Path, found: Mapping[str, Any], settings: Mapping[str, Any], vae: nn.Module) -> None:
    """
    Check that a checkpoint belongs to this model and this call, before anything is changed.

    :raises ValueError: naming what differs.
    """
    for name, now in settings.items():
        then = found["settings"].get(name)
        if then != now:
            raise ValueError(f"resume: {str(path)!r} was written with {name} = {then!r}, this call has {now!r}.")
    then_shapes = {k: tuple(v.shape) for k, v in found["weights"].items() if isinstance(v, Tensor)}
    now_shapes = {k: tuple(v.shape) for k, v in vae.state_dict().items() if isinstance(v, Tensor)}
    for name in sorted(then_shapes.keys() | now_shapes.keys()):
        then, now = then_shapes.get(name), now_shapes.get(name)
        if then != now:
            raise ValueError(
                f"resume: {str(path)!r} is of another model: parameter or buffer {name!r} has shape {then} there and "
                f"{now} here (None: absent)."
            )
