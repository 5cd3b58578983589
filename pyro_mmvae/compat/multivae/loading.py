"""Models that multivae saved, as methods of this library with the same options and weights.

Layer: compat.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_mmvae.compat.multivae.configs import Config, family_of, private_dims, rescale_of
from pyro_mmvae.compat.multivae.default import State, default_decoder, default_encoder, default_joint_encoder
from pyro_mmvae.compat.multivae.methods import recipe_of
from pyro_mmvae.compat.multivae.networks import Dist, decoder, encoder, joint_encoder, likelihood

__all__ = ["load"]

CONFIG, WEIGHTS = "model_config.json", "model.pt"
Networks = Mapping[str, nn.Module] | None
_NO_DIMS = "model_config.json has no input_dims, which default networks are made from"


def load(
    path: str | os.PathLike[str],
    *,
    encoders: Networks = None,
    decoders: Networks = None,
    joint_encoder: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    r"""
    The model that multivae saved in a folder, as the method of the same name here.

    Options and weights are the saved ones; what multivae cannot do (masks, likelihoods, conditionals on any subset)
    the method's verbs then do. Default networks are rebuilt of this library's modules, so multivae need not be
    installed. Nothing is unpickled: ``model.pt`` is read as tensors alone, and networks of your own are given again,
    constructed as before; the saved weights are written into them.

    Annealing is over: multivae counts ``warmup`` in epochs, and the model comes back with ``warmup=0``.

    Example::

        >>> vae = load("folder")
        Traceback (most recent call last):
            ...
        FileNotFoundError: load: 'folder' has no model_config.json. Expected a folder that multivae's save() wrote.

    :param path: the folder, with ``model_config.json`` and ``model.pt``.
    :param encoders: modality -> network of multivae's, where the model was made with ``encoders``.
    :param decoders: likewise.
    :param joint_encoder: likewise, for JMVAE.
    :param device: where the parameters go.
    :return: the method, in training mode, as when it is made.
    :raises FileNotFoundError: if a file is missing.
    :raises ValueError: if a file is damaged or of another kind, if networks must be given, or if weights do not fit.
    :raises NotImplementedError: for a model that has no counterpart here.
    """
    folder = Path(path)
    config, state = _config(folder), _state(folder)
    recipe = recipe_of(config)
    given = {"encoders": encoders, "decoders": decoders, "joint_encoder": joint_encoder}
    _check_given(config, given, folder)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        try:
            parts = _Parts(config, state, given)
            options = {**parts.networks(), **recipe.options(config, parts.names), "rescale": rescale_of(config)}
            vae = recipe.method(latent_dim=int(config["latent_dim"]), **options).to(parts.dtype)
            recipe.put(config, state, vae)
        except NotImplementedError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ValueError(f"load: the model of {str(folder)!r} cannot be made: {kind}{error}") from error
    if state:
        raise ValueError(f"load: {str(folder / WEIGHTS)!r} has parameters without a place here: {sorted(state)}.")
    return vae.to(device)


def _config(folder: Path) -> dict[str, Any]:
    file = _file(folder, CONFIG)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"load: {str(file)!r} is no JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"load: {str(file)!r} holds a {type(config).__name__}, expected a mapping.")
    return config


def _state(folder: Path) -> State:
    file = _file(folder, WEIGHTS)
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"load: {str(file)!r} is damaged, or holds more than tensors: {error}.") from error
    if not isinstance(saved, Mapping) or "model_state_dict" not in saved:
        raise ValueError(f"load: {str(file)!r} has no 'model_state_dict'.")
    return dict(saved["model_state_dict"])


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"load: {str(folder)!r} has no {name}. Expected a folder that multivae's save() wrote.")
    return folder / name


def _check_given(config: Config, given: Mapping[str, Any], folder: Path) -> None:
    """Networks that were the user's own are given; a default joint encoder of such encoders is one of them."""
    needed = [name for name in config.get("custom_architectures", ()) if name in given]
    if "joint_encoder" not in needed and config.get("name") == "JMVAEConfig" and given["encoders"] is not None:
        needed.append("joint_encoder")
    missing = [name for name in dict.fromkeys(needed) if given[name] is None]
    if missing:
        parts = [f"{n}=network" if n == "joint_encoder" else f"{n}={{modality: network}}" for n in missing]
        raise ValueError(
            f"load: {str(folder)!r} was saved with {', '.join(missing)} of your own, stored as pickles, which are not "
            f"opened. Fix: construct them as before, load(path, {', '.join(parts)})."
        )


@dataclass
class _Parts:
    """The networks of one folder; what they use of the state is taken out."""

    config: Config
    state: State
    given: Mapping[str, Any]
    names: list[str] = field(init=False)
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        dims = self.config.get("input_dims")
        own = self.given["decoders"] if dims is None else dims
        if own is None:
            raise ValueError(_NO_DIMS)
        self.names = list(own)
        self.shapes = None if dims is None else {m: tuple(int(n) for n in shape) for m, shape in dims.items()}
        self.private = private_dims(self.config, self.names)
        self.dtype = next(x.dtype for x in self.state.values() if x.is_floating_point())

    def networks(self) -> dict[str, Any]:
        """The networks, as options of a method."""
        shared, private = self._encoders()
        out: dict[str, Any] = {"encoders": shared, "decoders": {m: self._decoder(m) for m in self.names}}
        if self.private:
            out |= {"private_encoders": private, "private_dims": self.private}
        if self.config["name"] == "JMVAEConfig":
            out["joint_encoder"] = self._joint()
        return out

    def _encoders(self) -> tuple[dict[str, nn.Module], dict[str, Any]]:
        family, given = family_of(self.config), self.given["encoders"]
        shared: dict[str, nn.Module] = {}
        private: dict[str, Any] = {}
        for m in self.names:
            prefix = f"encoders.{m}."
            if given is None:
                style = m in self.private
                shared[m], private[m] = default_encoder(self.state, prefix, self._shape(m), family=family, style=style)
                continue
            net = self._filled(given, m, prefix)
            shared[m], private[m] = encoder(net, family=family), encoder(net, family=family, private=True)
        return shared, private

    def _decoder(self, m: str) -> nn.Module:
        kinds, options = (self.config.get(name) for name in ("decoders_dist", "decoder_dist_params"))
        dist: Dist = "normal" if kinds is None else kinds[m]
        scale = ({} if options is None else options).get(m, {}).get("scale", 1.0)
        prefix, given = f"decoders.{m}.", self.given["decoders"]
        if given is not None:
            shape = None if self.shapes is None else self.shapes[m]
            return decoder(self._filled(given, m, prefix), dist, scale, shape=shape)
        width = int(self.config["latent_dim"]) + self.private.get(m, 0)
        return default_decoder(self.state, prefix, width, self._shape(m), likelihood(dist, scale))

    def _joint(self) -> nn.Module:
        prefix, net = "joint_encoder.", self.given["joint_encoder"]
        if net is not None:
            return joint_encoder(self._filled({"": net}, "", prefix), self.names)
        shapes = {m: self._shape(m) for m in self.names}
        return default_joint_encoder(self.state, prefix, shapes, int(self.config["latent_dim"]))

    def _shape(self, m: str) -> tuple[int, ...]:
        if self.shapes is None:
            raise ValueError(_NO_DIMS)
        return self.shapes[m]

    def _filled(self, given: Mapping[str, nn.Module], m: str, prefix: str) -> nn.Module:
        """A given network with the saved weights."""
        if m not in given:
            raise ValueError(f"no network is given for {m!r}; given are {list(given)}")
        own = {name: self.state.pop(name) for name in [n for n in self.state if n.startswith(prefix)]}
        given[m].load_state_dict({name.removeprefix(prefix): x for name, x in own.items()})
        return given[m].to(self.dtype)
