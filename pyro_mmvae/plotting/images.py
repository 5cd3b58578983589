"""Images in rows and columns.
Layer: plotting; matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_mmvae.plotting._common import MISSING, as_array, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["grid"]


def grid(
    images: Any,  # shape: (R, C, H, W), (R, C, 1, H, W) or (R, C, 3, H, W)
    titles: Sequence[str] | None = None,
    ax: Axes | None = None,
    *,
    row_titles: Sequence[str] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "gray_r",
) -> Axes:
    """
    R rows and C columns of images, drawn into one pair of axes; pixels that are NaN are drawn as missing.

    Example::

        >>> from matplotlib.figure import Figure
        >>> import torch
        >>> ax = grid(torch.rand(2, 3, 8, 8), ["truth", "mean", "draw"], Figure().subplots())
        >>> len(ax.images), [label.get_text() for label in ax.get_xticklabels()]
        (6, ['truth', 'mean', 'draw'])

    :param images: tensor or array of any range; 3 channels are red, green, blue.
    :param titles: one per column; ``row_titles``: one per row.
    :param vmin: the value drawn as the low end, for all images; the default is the least finite value.
    :param vmax: the value drawn as the high end; the default is the greatest.
    :raises ValueError: for another shape, or another number of titles.
    """
    values = as_array("images", images)
    if values.ndim == 4:
        values = values[:, :, None]
    if values.ndim != 5 or values.shape[2] not in (1, 3) or values.size == 0:
        raise ValueError(f"images: expected (R, C, H, W), or (R, C, 1 or 3, H, W), got {tuple(np.shape(images))}.")
    rows, columns, _, height, width = values.shape
    for name, given, expected in (("titles", titles, columns), ("row_titles", row_titles, rows)):
        if given is not None and len(given) != expected:
            raise ValueError(f"{name}: expected {expected}, got {len(given)}.")
    gap = max(height, width) / 12
    ax = axes_of(
        ax, figsize=(1 + 0.8 * columns * width / max(height, width), 0.6 + 0.8 * rows * height / max(height, width))
    )
    low, high = _limits(values, vmin, vmax)
    colors = _colors(cmap, low, high)
    for r in range(rows):
        for c in range(columns):
            left, top = c * (width + gap), r * (height + gap)
            ax.imshow(colors(values[r, c]), extent=(left, left + width, top + height, top), interpolation="nearest")
    ax.set_xlim(-gap / 2, columns * (width + gap) - gap / 2)
    ax.set_ylim(rows * (height + gap) - gap / 2, -gap / 2)
    ax.set_xticks(width / 2 + np.arange(columns) * (width + gap) if titles is not None else [], titles)
    ax.set_yticks(height / 2 + np.arange(rows) * (height + gap) if row_titles is not None else [], row_titles)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.set_frame_on(False)
    return ax


def _limits(values: np.ndarray, vmin: float | None, vmax: float | None) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low = vmin if vmin is not None else float(finite.min(initial=np.inf))
    high = vmax if vmax is not None else float(finite.max(initial=-np.inf))
    return (low, high) if low < high else (low, low + 1.0) if np.isfinite(low) else (0.0, 1.0)


def _colors(cmap: str, low: float, high: float) -> Any:
    """A function from an image, (1 or 3, H, W), to its colors, (H, W, 4)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgba

    def colors(image: np.ndarray) -> np.ndarray:
        unit = np.clip((image - low) / (high - low), 0.0, 1.0)
        missing = np.isnan(unit).any(0)
        unit = np.where(missing, 0.0, unit)
        if len(unit) == 1:
            rgba = colormaps[cmap](unit[0])
        else:
            rgba = np.concatenate([unit.transpose(1, 2, 0), np.ones((*missing.shape, 1))], -1)
        rgba[missing] = to_rgba(MISSING)
        return rgba

    return colors
