"""Everything a program could change, taken before and put back after.

Layer: checks, private.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn

__all__ = ["Ambient", "Snapshot", "networks_of", "seeded", "untouched"]


def networks_of(program: object) -> dict[str, nn.Module]:
    """
    The networks of a program by name: itself, or those that a function's closure and globals hold.

    Example::

        >>> net = nn.Linear(1, 1)
        >>> def program():
        ...     return net
        >>> list(networks_of(program))
        ['net']
    """
    if isinstance(program, nn.Module):
        observed = getattr(program, "observed", None)
        return {"": program} | ({"observed": observed} if isinstance(observed, nn.Module) else {})
    if isinstance(program, partial):
        parts: dict[Any, Any] = dict(enumerate(program.args))
        return {**networks_of(program.func), **_modules({**parts, **program.keywords})}
    inner: Any = inspect.unwrap(program) if callable(program) else program
    if isinstance(inner, nn.Module):
        return {"": inner}
    if inspect.ismethod(inner):
        held = {"self": inner.__self__, **getattr(inner.__self__, "__dict__", {})}
        return {**_modules(held), **networks_of(inner.__func__)}
    if not inspect.isfunction(inner):
        return _modules(getattr(inner, "__dict__", {}))
    names = inspect.getclosurevars(inner)
    return _modules({**names.globals, **names.nonlocals})


def _modules(held: dict[Any, Any]) -> dict[str, nn.Module]:
    """Networks among values, one container deep."""
    out = {}
    for name, value in held.items():
        inside: Any = value.items() if isinstance(value, dict) else ()
        inside = enumerate(value) if isinstance(value, list | tuple) else inside
        pairs = [(f"{name}", value), *((f"{name}[{key!r}]", item) for key, item in inside)]
        out.update({key: item for key, item in pairs if isinstance(item, nn.Module)})
    return out


class Ambient:
    """Global state beside random numbers: default dtype and device, gradient mode, validation, Pyro's handlers."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {
            "default dtype": torch.get_default_dtype(),
            "default device": torch.get_default_device(),
            "gradient mode": torch.is_grad_enabled(),
            "validation": torch.distributions.Distribution._validate_args,
            "Pyro's validation": pyro.settings.get("validate_poutine"),
            "number of Pyro's handlers": len(_PYRO_STACK),
        }

    def changes(self) -> list[str]:
        """What is different now, one line each."""
        now = Ambient().values
        return [f"{what}: {old} became {now[what]}" for what, old in self.values.items() if now[what] != old]

    def restore(self) -> None:
        """Put everything back."""
        if not self.changes():
            return
        torch.set_default_dtype(self.values["default dtype"])
        device = self.values["default device"]
        torch.set_default_device(None if device == torch.device("cpu") else device)
        torch.set_grad_enabled(self.values["gradient mode"])
        torch.distributions.Distribution.set_default_validate_args(self.values["validation"])
        pyro.settings.set(validate_poutine=self.values["Pyro's validation"])
        del _PYRO_STACK[self.values["number of Pyro's handlers"] :]


class Snapshot:
    """
    Modules with their parameters, buffers, gradients, modes and parts, and Pyro's store.

    :param modules: by name; each counts with all its submodules.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.parts: dict[int, tuple[nn.Module, dict[str, Any], dict[str, dict[Any, Any]]]] = {}
        self.tensors: dict[int, tuple[str, Tensor, Tensor, Tensor | None, Tensor | None]] = {}
        for root, module in modules.items():
            for part in module.modules():
                inner = {k: dict(v) for k, v in part.__dict__.items() if isinstance(v, dict)}
                self.parts[id(part)] = part, dict(part.__dict__), inner
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                self._keep(f"{root}.{name}" if root else name, tensor)
        store = pyro.get_param_store()
        self.store = dict(store._params), dict(store._param_to_name), dict(store._constraints)
        for name, tensor in self.store[0].items():
            self._keep(name, tensor)

    def _keep(self, name: str, tensor: Tensor) -> None:
        grad = tensor.grad if tensor.is_leaf else None
        copied = None if grad is None else grad.clone()
        self.tensors.setdefault(id(tensor), (name, tensor, tensor.detach().clone(), grad, copied))

    def changes(self) -> list[str]:
        """Parameters whose values or gradients are others now, and modules in another mode."""
        out = []
        for name, tensor, value, grad, copied in self.tensors.values():
            if isinstance(tensor, nn.Parameter) and not torch.equal(tensor, value):
                out.append(f"parameter {name!r}")
            elif tensor.is_leaf and (tensor.grad is not grad or not _same(grad, copied)):
                out.append(f"the gradient of {name!r}")
        modes = [type(m).__name__ for m, held, _ in self.parts.values() if m.training != held["training"]]
        return out + [f"the mode of a {name}" for name in dict.fromkeys(modes)]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, the very same tensors."""
        for module, held, inner in self.parts.values():
            module.__dict__.clear()
            module.__dict__.update(held)
            for name, items in inner.items():
                held[name].clear()
                held[name].update(items)
        for _, tensor, value, grad, copied in self.tensors.values():
            if not _same(tensor, value):
                tensor.copy_(value)
            if grad is not None and copied is not None and not _same(grad, copied):
                grad.copy_(copied)
            if tensor.is_leaf and tensor.grad is not grad:
                tensor.grad = grad
        store = pyro.get_param_store()
        params, names, constraints = self.store
        store._params, store._param_to_name, store._constraints = dict(params), dict(names), dict(constraints)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Bit by bit, NaN like NaN."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


@contextmanager
def untouched(modules: dict[str, nn.Module]) -> Iterator[None]:
    """Context manager: modules, param store, random and global state are afterwards what they were; no warnings."""
    random, ambient, snapshot = _random_state(), Ambient(), Snapshot(modules)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        ambient.restore()
        snapshot.restore()
        random()


def _random_state() -> Callable[[], None]:
    """A function that puts all random states back."""
    state = get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []

    def restore() -> None:
        set_rng_state(state)
        for i, device in enumerate(devices):
            torch.cuda.set_rng_state(device, i)

    return restore


def seeded(seed: int) -> None:
    """Random numbers start from ``seed``; for use inside :func:`untouched`."""
    torch.set_rng_state(torch.Generator(device="cpu").manual_seed(seed).get_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            state = torch.Generator(device=f"cuda:{i}").manual_seed(seed).get_state()
            torch.cuda.set_rng_state(state, i)
