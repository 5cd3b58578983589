"""Registering a program's parameters with Pyro's store, for stock SVI.

Layer: handlers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import pyro
from pyro import poutine
from torch import nn

__all__ = ["Registered", "own_parameters", "unregistered"]

_COUNTER = itertools.count()
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def unregistered() -> Iterator[None]:
    """Programs run inside do not touch the param store: objectives that hold the parameters themselves."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


@contextmanager
def own_parameters() -> Iterator[None]:
    """
    PyroModules inside use their own parameters, whatever the store holds under their names, and show them to no
    handler: whoever owns these modules registers the parameters.

    Pyro swaps the store's contents meanwhile and forgets what leads from a parameter to its unconstrained form, which
    stock ``SVI`` asks for after the step; here it is put back.
    """
    held = [(p, p.unconstrained) for p in pyro.get_param_store()._params.values() if hasattr(p, "unconstrained")]
    try:
        with pyro.settings.context(module_local_params=True), poutine.block(hide_types=["param"]):
            yield
    finally:
        for p, unconstrained in held:
            p.unconstrained = unconstrained  # type: ignore[attr-defined]


class Registered:
    """
    A thin ``pyro.module`` under a name unique per object, so that stock ``SVI`` finds the parameters.

    :param kind: readable part of the name, e.g. ``"model"``.
    """

    def __init__(self, kind: str) -> None:
        self.name = f"pyro_mmvae.{kind}.{next(_COUNTER)}"

    def __call__(self, module: nn.Module) -> None:
        """
        Register ``module``'s parameters.

        :raises RuntimeError: if the store holds other tensors under this name.
        """
        if _QUIET.get():
            return
        store = pyro.get_param_store()
        for name, p in module.named_parameters():
            full = f"{self.name}$$${name}"
            if full in store and store._params[full] is not p:
                raise RuntimeError(
                    f"The param store holds another tensor under {full!r} (a copied or reloaded model). "
                    "Fix: call pyro.clear_param_store() before training this object with SVI."
                )
        if any(True for _ in module.parameters()):
            pyro.module(self.name, module)
