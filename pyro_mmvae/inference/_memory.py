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

__all__ = ["CACHE_BYTES", "Allocated", "keep_freed", "measured"]

#: On a CPU chunks beyond this (as :func:`measured` counts) gain nothing: they leave the cache.
CACHE_BYTES = 120_000_000

_LARGEST_KEPT = 33_000_000


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


def keep_freed(device: torch.device, memory: float) -> None:
    """
    Let the C library keep what one chunk frees for the next one.

    By default glibc hands the end of its heap back to the system once a few of the largest tensors' sizes are free
    there, and every chunk would fault its pages in anew, at the cost of its arithmetic. Freeing one large block
    raises that threshold (malloc's dynamic ``M_MMAP_THRESHOLD``, at most 32 MiB); the block itself is never touched.

    :param memory: what may be used; nothing is done where it is small.
    """
    if device.type == "cpu" and memory >= 4 * _LARGEST_KEPT:
        torch.empty(_LARGEST_KEPT, dtype=torch.uint8)
