"""The latent space.
Layer: plotting; matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyro_mmvae.plotting._common import OBSERVED, as_array, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["latent"]


def latent(
    z: Any,  # shape: (N, D)
    labels: Any = None,  # shape: (N,)
    ax: Axes | None = None,
) -> Axes:
    """
    Scatter of latent points: the two dimensions, or the first two principal components of more.

    Up to 20 distinct integers, bools or strings are classes with a legend; all other labels a color scale.

    Example::

        >>> from matplotlib.figure import Figure
        >>> import torch
        >>> ax = latent(torch.randn(50, 8), torch.arange(50) % 3, Figure().subplots())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['0', '1', '2']

    :param z: points; one dimension is drawn on a line.
    :raises ValueError: for another shape, no points, values that are not finite, or another number of labels.
    """
    points = as_array("z", z)
    if points.ndim != 2 or points.size == 0 or not np.isfinite(points).all():
        raise ValueError(
            f"z: expected finite points, shape (N, D), got shape {points.shape} with NaN, inf or no entry."
        )
    xy, names = _plane(points)
    ax = axes_of(ax, figsize=(5.5, 4.5))
    _scatter(ax, xy, None if labels is None else _labels(labels, len(xy)))
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    return ax


def _labels(labels: Any, n: int) -> np.ndarray:  # shape: (n,)
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(f"labels: expected shape ({n},), one per point, got {values.shape}.")
    return values


def _plane(points: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Points in two dimensions, and what the two are called."""
    if points.shape[1] == 1:
        return np.concatenate([points, np.zeros_like(points)], 1), ("z[0]", "")
    if points.shape[1] == 2:
        return points, ("z[0]", "z[1]")
    centered = points - points.mean(0)
    _, scale, axes = np.linalg.svd(centered, full_matrices=False)
    if len(axes) < 2:  # a single point
        return np.zeros((len(points), 2)), ("PC 1", "PC 2")
    axes = (
        axes[:2] * np.sign(axes[:2, np.abs(axes[:2]).argmax(1)].diagonal())[:, None]
    )  # signs that do not depend on LAPACK
    share = scale**2 / max((scale**2).sum(), np.finfo(float).tiny)
    return centered @ axes.T, (f"PC 1 ({share[0]:.0%} of variance)", f"PC 2 ({share[1]:.0%} of variance)")


def _scatter(ax: Axes, xy: np.ndarray, labels: np.ndarray | None) -> None:
    from matplotlib import colormaps

    style: dict[str, Any] = {"s": 10, "linewidths": 0, "alpha": 0.8}
    if labels is None:
        ax.scatter(xy[:, 0], xy[:, 1], color=OBSERVED, **style)
        return
    classes = np.unique(labels) if labels.dtype.kind != "f" else labels
    if labels.dtype.kind == "f" or (labels.dtype.kind in "iu" and len(classes) > 20):
        drawn = ax.scatter(xy[:, 0], xy[:, 1], c=labels, cmap="viridis", **style)
        ax.figure.colorbar(drawn, ax=ax)
        return
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    for i, name in enumerate(classes):
        rows = labels == name
        ax.scatter(xy[rows, 0], xy[rows, 1], color=palette[i % len(palette)], label=str(name), **style)
    ax.legend(markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
