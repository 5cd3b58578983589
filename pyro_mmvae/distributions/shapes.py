"""Broadcasting of shapes, quick where they agree.

Layer: distributions.
"""

from __future__ import annotations

import torch

__all__ = ["broadcast"]


def broadcast(*shapes: torch.Size) -> torch.Size:
    """
    The common shape; semantically ``torch.broadcast_shapes``, which is slow Python even for equal shapes.

    Example::

        >>> broadcast(torch.Size([3, 1]), torch.Size([2]))
        torch.Size([3, 2])
    """
    first = shapes[0]
    return first if all(s == first for s in shapes[1:]) else torch.broadcast_shapes(*shapes)
