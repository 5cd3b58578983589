"""The folder of a saved model: ``config.json`` and ``model.safetensors``, read without executing anything.

Layer: io.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["CONFIG", "FORMAT", "VERSION", "WEIGHTS", "Saved", "read", "write"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT, VERSION = "pyro_mmvae model", 1
_PARTS = {"config": dict, "model": dict, "objective": dict, "shared": dict}


@dataclass
class Saved:
    """
    What a folder holds.

    :ivar config: the call that makes the model, ``vae.config``.
    :ivar model: names, shapes and likelihoods of the model's sites, to compare with.
    :ivar objective: the objective, in plain JSON as far as that can say it.
    :ivar shared: tensors stored once: other name -> the name it is stored under.
    :ivar tensors: parameters and buffers.
    :ivar where: the folder, for messages.
    """

    config: dict[str, Any]
    model: dict[str, Any]
    objective: dict[str, Any]
    shared: dict[str, str]
    tensors: dict[str, Tensor] = field(repr=False)
    where: Path = Path()


def write(folder: Path, saved: Saved) -> None:
    """
    Write both files; each is at every moment the old one or the new one, whole.

    :raises ValueError: if ``folder`` is a file, or an option is infinite or NaN, which JSON cannot say.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"save: {str(folder)!r} is a file; expected a folder, which is made if need be.")
    head = {"format": FORMAT, "format_version": VERSION, "versions": _versions()}
    parts = {name: getattr(saved, name) for name in _PARTS}
    try:
        text = json.dumps(head | parts, indent=2, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"save: an option of the model is infinite or NaN, which JSON cannot say: {error}.") from error
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f".{os.getpid()}.tmp"
    try:
        save_file(saved.tensors, folder / (WEIGHTS + suffix), metadata={"format": "pt"})
        (folder / (CONFIG + suffix)).write_text(text + "\n", encoding="utf-8")
        for name in (WEIGHTS, CONFIG):
            os.replace(folder / (name + suffix), folder / name)
    finally:
        for name in (WEIGHTS, CONFIG):
            (folder / (name + suffix)).unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> Saved:
    """
    Read a saved model's description and tensors, onto the host; nothing is built and nothing executed.

    :param path: the folder that ``vae.save`` wrote.
    :raises FileNotFoundError: if the folder or one of its files is missing.
    :raises ValueError: if a file is damaged, not of this kind, or written by a newer version; it is named.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"load: there is no folder {str(folder)!r}.")
    if not folder.is_dir():
        raise ValueError(
            f"load: {str(folder)!r} is a file; expected the folder that vae.save wrote, with {CONFIG} and {WEIGHTS}."
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"load: there is no file {str(folder / name)!r}; a saved model has both files.")
    found = _json(folder / CONFIG)
    return Saved(**{name: found[name] for name in _PARTS}, tensors=_tensors(folder / WEIGHTS), where=folder)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, truncated, or nested without end
        raise ValueError(f"load: {str(file)!r} is no JSON file, or it is truncated: {error}.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"load: {str(file)!r} does not describe a pyro_mmvae model: it has no format {FORMAT!r}.")
    version = found.get("format_version")
    if isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"load: {str(file)!r} has format version {version}, this library reads up to {VERSION}. "
            "Fix: pip install --upgrade pyro-mmvae."
        )
    if version != VERSION:
        raise ValueError(f"load: {str(file)!r} has format version {version!r}; expected {VERSION}.")
    for name, kind in _PARTS.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"load: {str(file)!r} has no part {name!r}; it is damaged or was edited.")
    if not all(isinstance(name, str) for name in found["shared"].values()):
        raise ValueError(f"load: {str(file)!r}: 'shared' must map names to names; the file is damaged or was edited.")
    return found


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file, device="cpu")
    except SafetensorError as error:
        raise ValueError(f"load: {str(file)!r} is no safetensors file, or it is truncated: {error}.") from error


def _versions() -> Mapping[str, str]:
    out = {}
    for name in ("pyro-mmvae", "pyro-ppl", "torch"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a folder, not installed
            out[name] = "unknown"
    return out
