"""Objects that remember their constructor arguments as plain JSON and can be rebuilt from them.

Layer: nn.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pyro_mmvae.columns import Column

__all__ = ["Configurable", "from_config", "register_function", "to_json"]

_CLASSES: dict[str, type[Configurable]] = {}
_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _key(cls: type) -> str:
    """Library classes are known by their bare name, classes of a user by module and name."""
    return cls.__name__ if cls.__module__.startswith("pyro_mmvae.") else f"{cls.__module__}.{cls.__qualname__}"


class Configurable:
    r"""
    Mixin: ``module.config`` is the constructor call as plain JSON, and :func:`from_config` repeats the call.

    The arguments are captured when the object is made, with the defaults filled in; nested configurables nest.
    Parameters are not part of it: ``from_config(m.config)`` plus ``load_state_dict(m.state_dict())`` is a copy.
    A class is known by its name once its module is imported; nothing is imported or executed by a config.

    Example::

        >>> class Scaled(Configurable, nn.Module):
        ...     def __init__(self, size, *, factor=2.0):
        ...         super().__init__()
        ...         self.size, self.factor = size, factor
        >>> config = Scaled((3, 4)).config
        >>> config["size"], config["factor"]
        ([3, 4], 2.0)
        >>> from_config(config).size
        [3, 4]

    :raises TypeError: at class creation, if the constructor takes ``*args`` or ``**kwargs``.
    :raises ValueError: at class creation, if a library class of that name exists.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        key = _key(cls)
        known = _CLASSES.get(key)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"Two configurable classes are named {key!r}: {known!r} and {cls!r}. Fix: rename one.")
        _CLASSES[key] = cls
        if "__init__" in cls.__dict__:
            cls.__init__ = _capturing(cls.__dict__["__init__"])  # type: ignore[method-assign]

    @property
    def config(self) -> dict[str, Any]:
        """The constructor call as plain JSON: ``{"class": name, option: value, ...}``."""
        return copy.deepcopy(self.__dict__.get("_config", {"class": _key(type(self))}))


def _capturing(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor, storing its bound arguments unless a subclass has stored its own."""
    signature = inspect.signature(init)
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in signature.parameters.values()):
        raise TypeError(f"{init.__qualname__}: a configurable constructor names every argument (no *args, **kwargs).")
    if "class" in signature.parameters:
        raise TypeError(f"{init.__qualname__}: an argument cannot be named 'class'.")

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_config" not in self.__dict__:
            bound = _bound(type(self), signature, self, *args, **kwargs)
            bound.apply_defaults()
            options = list(bound.arguments.items())[1:]
            self.__dict__["_config"] = {"class": _key(type(self))} | {k: to_json(v) for k, v in options}
        init(self, *args, **kwargs)

    return wrapped


def _bound(cls: type, signature: inspect.Signature, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
    """The arguments by name; one too few or too many is an error that says whose they are."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        options = ", ".join(list(signature.parameters)[1:])
        raise TypeError(f"{cls.__name__}: {error}. Its arguments: {options}.") from None


def register_function(name: str, function: Callable[..., Any]) -> None:
    """Let ``function`` stand in configs under ``name``, e.g. an activation class.

    :raises ValueError: if the name stands for another function.
    """
    if _FUNCTIONS.get(name, function) is not function:
        raise ValueError(f"The name {name!r} stands for {_FUNCTIONS[name]!r} already. Fix: choose another name.")
    _FUNCTIONS[name] = function


for _activation in (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
):
    register_function(_activation.__name__, _activation)
for _function in (torch.log1p, torch.sqrt, torch.tanh, torch.sigmoid):
    register_function(_function.__name__, _function)


def to_json(value: Any) -> Any:
    """
    The value in plain JSON; what JSON cannot say becomes a marker that :func:`from_config` refuses.

    Example::

        >>> to_json({"hidden": (8, 8), "activation": nn.ReLU})
        {'hidden': [8, 8], 'activation': {'class': 'function', 'name': 'ReLU'}}
        >>> to_json(lambda x: x)["class"] is None
        True
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Configurable):
        return value.config
    if isinstance(value, Column):
        return to_json(value.to_dict())
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and "class" not in value:
            return {key: to_json(item) for key, item in value.items()}
        return {"class": "mapping", "items": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if isinstance(value, Sequence):
        return [to_json(item) for item in value]
    if isinstance(value, type) and issubclass(value, Configurable):
        return {"class": "object", "name": _key(value)}
    for name, function in _FUNCTIONS.items():
        if function is value:
            return {"class": "function", "name": name}
    named = inspect.isroutine(value) or isinstance(value, type)
    return {"class": None, "was": value.__qualname__ if named else type(value).__name__}  # no repr: it may show data


def from_config(config: Mapping[str, Any]) -> Any:
    """
    Rebuild what ``module.config`` describes, with fresh parameters.

    Example::

        >>> from pyro_mmvae.nn import MLPEncoder
        >>> from_config(MLPEncoder((2, 3), 4, hidden=()).config)(torch.zeros(5, 2, 3)).event_shape
        torch.Size([4])

    :param config: as given by :attr:`Configurable.config`, e.g. read from a JSON file.
    :raises ValueError: if it names an unknown class or option, or holds something that was not JSON.
    :raises TypeError: if it is not a mapping with a ``"class"``.
    """
    if not isinstance(config, Mapping) or "class" not in config:
        raise TypeError(f'A config is a mapping with a "class", got {type(config).__name__}.')
    return _from_json(config, "config")


def _from_json(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_from_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if "class" not in value:
        return {key: _from_json(item, f"{where}.{key}") for key, item in value.items()}
    name = value["class"]
    if name is None:
        raise ValueError(
            f"{where} was {value.get('was')}, which a config cannot hold. "
            "Fix: construct the object in Python as before, then load its state_dict."
        )
    if name == "mapping":
        return {_from_json(k, where): _from_json(v, f"{where}[{k!r}]") for k, v in value["items"]}
    if name in ("object", "function"):
        known: Mapping[str, Any] = _CLASSES if name == "object" else _FUNCTIONS
        if value["name"] not in known:
            raise ValueError(f"{where}: {value['name']!r} is not known. Fix: import the module that registers it.")
        return known[value["name"]]
    return _construct(name, {k: _from_json(v, f"{where}.{k}") for k, v in value.items() if k != "class"}, where)


def _construct(name: str, options: dict[str, Any], where: str) -> Any:
    if name not in _CLASSES:
        raise ValueError(f"{where}: no class {name!r} is known. Fix: import the module that defines it first.")
    accepted = list(inspect.signature(_CLASSES[name].__init__).parameters)[1:]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"{where}: {name} has no option {unknown}. It has {accepted}.")
    return _CLASSES[name](**options)
