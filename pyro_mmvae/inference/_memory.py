"""How many draws fit into memory, measured on a probe.

Layer: inference, private.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["CACHE_BYTES", "Allocated", "measured"]

#: On a CPU chunks beyond this gain nothing: they leave the cache, and the allocator asks the system for each tensor.
CACHE_BYTES = 100_000_000


class Allocated(TorchDispatchMode):
    """
    Adds up the memory of all tensors that operations make, as if none were ever freed.

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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        old = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in old:
                size = t.untyped_storage().nbytes()
                self.bytes, self.largest = self.bytes + size, max(self.largest, size)
        return out


def measured(probe: Callable[[int], object], device: torch.device) -> float:
    """
    Bytes per draw: what ``probe(5)`` allocates beyond ``probe(1)``, by 4; the random state stays as it was.

    An upper bound of what lives at any time, since nothing counts as freed.
    """
    totals = []
    for draws in (1, 5):
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), Allocated() as made:
            probe(draws)
        totals.append(made.bytes)
    return max((totals[1] - totals[0]) / 4, 1.0)
