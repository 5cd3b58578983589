"""How many draws fit into memory, measured on a probe.

Layer: inference, private.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["CACHE_BYTES", "Allocated", "measured"]

#: On a CPU chunks beyond this (as :func:`measured` counts) gain nothing: they leave the cache, and the allocator asks
#: the system for each tensor.
CACHE_BYTES = 60_000_000


class Allocated(TorchFunctionMode):
    """
    Adds up the memory of all tensors that functions of torch return, as if none were ever freed.

    (``TorchDispatchMode`` would see more, but imports the compiler, which takes seconds.)

    Example::

        >>> with Allocated() as made:
        ...     _ = torch.zeros(10).expand(7, 10) + 1.0
        >>> made.bytes
        320

    :ivar bytes: the sum.
    :ivar largest: the largest single tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.largest = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if made:
            old = {_storage(t).data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            sizes = [_storage(t).nbytes() for t in made if _storage(t).data_ptr() not in old]
            self.bytes, self.largest = self.bytes + sum(sizes), max([self.largest, *sizes])
        return out


def _storage(t: Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():
        return t.untyped_storage()


def measured(probe: Callable[[int], object], device: torch.device, draws: int = 5) -> float:
    """
    Bytes per draw: what ``probe(draws)`` allocates, by the number of draws; the random state stays as it was.

    An upper bound of what lives at any time, since nothing counts as freed.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), Allocated() as made:
        probe(draws)
    return max(made.bytes / draws, 1.0)
