"""Multi-layer perceptrons and the checks of sizes that all networks share.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from numbers import Integral

import torch
from torch import Tensor, nn

__all__ = ["event_size", "mlp", "multiply_adds", "positive_int"]


def positive_int(value: int, name: str) -> int:
    """The value, if it is a positive integer.

    :raises ValueError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def event_size(shape: int | Sequence[int], name: str = "shape") -> torch.Size:
    """
    The event shape as a ``torch.Size``; an int is a vector.

    Example::

        >>> event_size(3), event_size([4, 8]), event_size(())
        (torch.Size([3]), torch.Size([4, 8]), torch.Size([]))

    :raises ValueError: if a size is not a positive integer.
    """
    sizes = list(shape) if isinstance(shape, Sequence) else [shape]
    return torch.Size([positive_int(size, f"every size in {name}") for size in sizes])


def mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int | None = None,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dropout: float = 0.0,
) -> nn.Sequential:
    """
    Linear layers with an activation and dropout after each hidden one; linear output of ``out_features``, if given.

    Example::

        >>> mlp(3, (8, 8), 2)(torch.zeros(5, 3)).shape
        torch.Size([5, 2])

    :param hidden: widths of the hidden layers; empty for none.
    :raises ValueError: if a width is not positive or ``dropout`` is not in [0, 1).
    """
    if isinstance(hidden, Integral):
        raise ValueError(f"hidden is a sequence of widths, got {hidden!r}. Fix: hidden=({hidden},).")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}.")
    layers: list[nn.Module] = []
    width = positive_int(in_features, "in_features")
    for size in hidden:
        layers += [nn.Linear(width, positive_int(size, "every width in hidden")), activation()]
        layers += [nn.Dropout(dropout)] if dropout > 0.0 else []
        width = size
    if out_features is not None:
        layers.append(nn.Linear(width, positive_int(out_features, "out_features")))
    return nn.Sequential(*layers)


def multiply_adds(network: nn.Module) -> int:
    """Multiply-adds of the linear layers of a network, per row."""
    return sum(prod(layer.weight.shape) for layer in network.modules() if isinstance(layer, nn.Linear))


def flatten_event(
    x: Tensor,  # shape: (*batch, *event)
    shape: torch.Size,
    name: str,
) -> Tensor:  # shape: (*batch, prod(event))
    """The event dimensions as one.

    :raises ValueError: if the trailing dimensions are not ``shape``.
    """
    batch = x.shape[: x.dim() - len(shape)]
    if x.dim() < len(shape) or x.shape[len(batch) :] != shape:
        raise ValueError(f"{name} expected data of shape (*batch, {', '.join(map(str, shape))}), got {tuple(x.shape)}.")
    return x.reshape(*batch, prod(shape))
