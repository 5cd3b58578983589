"""Stopping gradients: programs run with detached parameters.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Holder", "call_swapped", "with_parameters_detached"]

T = TypeVar("T")


class Holder(nn.Module):
    """Holds modules so that ``functional_call`` can swap their parameters while a thunk runs."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)

    def forward(self, thunk: Callable[[], Any]) -> Any:
        """Call the thunk."""
        return thunk()


def with_parameters_detached(programs: Sequence[object], thunk: Callable[[], T]) -> T:
    """
    Call ``thunk`` while all parameters of ``programs`` are replaced by detached copies.

    The gate holds inside the program: lazy likelihoods are forced while it runs.

    :raises NotImplementedError: for a program with parameters that cannot be found (no ``nn.Module``).
    """
    modules = []
    for program in programs:
        if not isinstance(program, nn.Module):
            raise NotImplementedError(
                f"Stopping the gradient of {program!r} needs its parameters, but it is no nn.Module. Fix: write the "
                "program as an nn.Module with forward()."
            )
        modules.append(program)
    run = Holder(modules)
    return call_swapped(run, {id(p): p.detach() for p in run.parameters()}, thunk)


def call_swapped(holder: Holder, tensors: Mapping[int, Tensor], thunk: Callable[[], T]) -> T:
    """
    Call ``thunk`` while parameters and buffers are replaced, whatever their number of names.

    A module that is reached by several paths (shared networks) is swapped once: with all its names
    ``functional_call`` puts the replacement back in place of the parameter.

    :param tensors: id of the parameter or buffer -> what replaces it.
    """
    names = {
        f"{path}.{name}": tensors[id(own)]
        for path, part in holder.named_modules()
        for name, own in (*part._parameters.items(), *part._buffers.items())
        if own is not None and id(own) in tensors
    }
    return functional_call(holder, names, (thunk,), tie_weights=False)
