"""What pictures share: arrays, axes, colors.
Layer: plotting; matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MISSING", "OBSERVED", "as_array", "axes_of"]

MISSING = "#d8dee9"  # light blue-grey: no grey level of an image, and weak enough to stay in the background
OBSERVED = "#2e5a88"


def as_array(name: str, value: Any) -> np.ndarray:
    """A float array from a tensor on any device, or from whatever numpy takes."""
    try:
        return np.asarray(value.detach().cpu().double() if isinstance(value, Tensor) else value, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: expected a tensor or array of numbers, got {type(value).__name__} ({error})."
        ) from error


def axes_of(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """The axes given, or those of a new pyplot figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=figsize, layout="constrained")[1]
