"""Parameters and buffers of a model as named tensors, shared ones stored once, and back.

Layer: io.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

__all__ = ["collect", "first_mismatch", "put", "refuse_stale_store"]


def collect(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """
    The state of a module on the host, each tensor once, and the other names of those that have several.

    Example::

        >>> a = nn.Linear(2, 2)
        >>> tensors, shared = collect(nn.ModuleList([a, a]))
        >>> list(tensors), shared
        (['0.weight', '0.bias'], {'1.weight': '0.weight', '1.bias': '0.bias'})

    :raises TypeError: for state that is no tensor, which a module of the user's may add.
    """
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    seen: dict[object, str] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"save: the state {name!r} is no tensor but {type(value).__name__}. Fix: keep it out of the module's "
                "state_dict (get_extra_state), or make it a buffer."
            )
        key = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and key in seen:
            shared[name] = seen[key]
            continue
        seen[key] = name
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, shared


def first_mismatch(saved: Mapping[str, Tensor], shared: Mapping[str, str], module: nn.Module) -> str | None:
    """
    What first differs between saved tensors and a module, in words, or None.

    :param shared: other name -> name among ``saved``.
    """
    shapes = {name: tuple(x.shape) for name, x in saved.items()}
    for other, name in shared.items():
        if name not in shapes:
            return f"{other!r} is said to be {name!r}, which is not stored"
        shapes[other] = shapes[name]
    own = {name: tuple(x.shape) for name, x in module.state_dict().items()}
    for name in [*shapes, *(n for n in own if n not in shapes)]:
        if name not in own:
            return f"parameter or buffer {name!r} was saved with shape {shapes[name]}, the model has none of that name"
        if name not in shapes:
            return f"the model has a parameter or buffer {name!r} of shape {own[name]}, which was not saved"
        if shapes[name] != own[name]:
            return f"parameter or buffer {name!r} was saved with shape {shapes[name]}, the model has {own[name]}"
    return None


def put(saved: Mapping[str, Tensor], shared: Mapping[str, str], module: nn.Module) -> None:
    """Give a module the saved values and dtypes; names that shared a tensor share it again."""
    floating = [x.dtype for x in saved.values() if x.is_floating_point()]
    if floating:
        module.to(floating[0])  # buffers that are not saved follow
    places = _places(module)
    for other, name in shared.items():
        (parent, leaf), (source, source_leaf) = places[other], places[name]
        for kind in ("_parameters", "_buffers"):
            if leaf in getattr(parent, kind) and source_leaf in getattr(source, kind):
                getattr(parent, kind)[leaf] = getattr(source, kind)[source_leaf]
    for name, value in module.state_dict(keep_vars=True).items():
        value.data = value.data.to(saved[shared.get(name, name)].dtype)
    full = {**saved, **{other: saved[name] for other, name in shared.items()}}
    with torch.no_grad():
        module.load_state_dict(full)


def _places(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """State name -> the module that holds it, and the name it has there."""
    return {f"{path}.{leaf}" if path else leaf: (part, leaf) for path, part, leaf in _leaves(module)}


def _leaves(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for path, part in module.named_modules(remove_duplicate=False):
        for leaf in (*part._parameters, *part._buffers):
            yield path, part, leaf


def refuse_stale_store(module: nn.Module) -> None:
    """
    Refuse to go on while Pyro's param store would hide what is loaded.

    A PyroModule takes its PyroParams from the store if that knows their names, whatever the module itself holds.

    :raises RuntimeError: if the store holds another tensor under such a name.
    """
    store = pyro.get_param_store()
    for part in module.modules():
        if not isinstance(part, PyroModule):
            continue
        for leaf in part._pyro_params:
            full = f"{part._pyro_name}.{leaf}" if part._pyro_name else leaf
            if full in store and store._params[full] is not getattr(part, f"{leaf}_unconstrained"):
                raise RuntimeError(
                    f"load: Pyro's param store holds another {full!r}, which would hide the loaded value. Fix: call "
                    "pyro.clear_param_store() before loading."
                )
