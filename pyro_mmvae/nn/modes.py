"""Training and evaluation modes, put back as they were.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["modes_restored"]


@contextmanager
def modes_restored(*modules: nn.Module) -> Iterator[None]:
    """
    Context manager: every submodule is afterwards in the training or evaluation mode it was in.

    Example::

        >>> net = nn.Sequential(nn.Dropout())
        >>> with modes_restored(net):
        ...     _ = net.eval()
        >>> net[0].training
        True
    """
    modes = {m: m.training for module in modules for m in module.modules()}
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
