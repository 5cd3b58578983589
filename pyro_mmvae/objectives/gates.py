"""Stopping gradients: programs run with detached parameters.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.func import functional_call

__all__ = ["Holder", "with_parameters_detached"]

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
    detached = {name: p.detach() for name, p in run.named_parameters()}
    return functional_call(run, detached, (thunk,))
