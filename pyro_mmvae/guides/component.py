"""Asking mixture guides for a single component instead of the whole mixture.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["components", "components_wanted"]

_WANTED: ContextVar[bool] = ContextVar("components", default=False)


def components_wanted() -> bool:
    """Whether the guide is run inside :func:`components`."""
    return _WANTED.get()


@contextmanager
def components() -> Iterator[None]:
    """
    Context manager: ``guide(data, S)`` gives the mixture's component that belongs to exactly the set S.

    A table of terms runs mixtures stratified, one row of the plate ``terms`` per component; outside it the guide
    is the mixture itself.
    """
    token = _WANTED.set(True)
    try:
        yield
    finally:
        _WANTED.reset(token)
