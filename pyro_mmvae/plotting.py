"""Pictures: generated images, the latent space, training curves, missingness. Each returns the axes and takes ``ax``.
Layer: plotting; matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_mmvae.datasets import MultimodalDataset

__all__ = ["grid", "history", "latent", "missingness"]

MISSING = "#d8dee9"  # light blue-grey: no grey level of an image, and weak enough to stay in the background
OBSERVED = "#2e5a88"
STATES = {"observed": 1.0, "in part": 0.5, "missing": 0.0}
VALIDATION = ("validation_", "val_")


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
        >>> ax = grid(torch.rand(2, 3, 8, 8), ["truth", "mean", "draw"], Figure().subplots())
        >>> len(ax.images), [label.get_text() for label in ax.get_xticklabels()]
        (6, ['truth', 'mean', 'draw'])

    :param images: tensor or array of any range; 3 channels are red, green, blue.
    :param titles: one per column; ``row_titles``: one per row.
    :param vmin: the value drawn as the low end, for all images; the default is the least finite value.
    :param vmax: the value drawn as the high end; the default is the greatest.
    :raises ValueError: for another shape, or another number of titles.
    """
    values = _array("images", images)
    if values.ndim == 4:
        values = values[:, :, None]
    if values.ndim != 5 or values.shape[2] not in (1, 3) or values.size == 0:
        raise ValueError(f"images: expected (R, C, H, W), or (R, C, 1 or 3, H, W), got {tuple(np.shape(images))}.")
    rows, columns, _, height, width = values.shape
    for name, given, expected in (("titles", titles, columns), ("row_titles", row_titles, rows)):
        if given is not None and len(given) != expected:
            raise ValueError(f"{name}: expected {expected}, got {len(given)}.")
    gap = max(height, width) / 12
    ax = _axes(
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
        >>> ax = latent(torch.randn(50, 8), torch.arange(50) % 3, Figure().subplots())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['0', '1', '2']

    :param z: points; one dimension is drawn on a line.
    :raises ValueError: for another shape, no points, values that are not finite, or another number of labels.
    """
    points = _array("z", z)
    if points.ndim != 2 or points.size == 0 or not np.isfinite(points).all():
        raise ValueError(
            f"z: expected finite points, shape (N, D), got shape {points.shape} with NaN, inf or no entry."
        )
    xy, names = _plane(points)
    ax = _axes(ax, figsize=(5.5, 4.5))
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


def history(
    history: Mapping[str, Sequence[float | None]],
    ax: Axes | None = None,
) -> Axes:
    """
    Training curves: one line per name over the epochs; a name with the prefix ``val_`` or ``validation_`` is dashed.

    A validation curve has the color of its training curve: ``val_loss`` that of ``loss`` or ``train_loss``. Epochs in
    which a value is None or NaN are skipped.

    Example::

        >>> from matplotlib.figure import Figure
        >>> ax = history({"loss": [3.0, 2.0, 1.5], "val_loss": [3.1, None, 1.9]}, Figure().subplots())
        >>> [(line.get_label(), line.get_linestyle()) for line in ax.get_lines()]
        [('loss', '-'), ('val_loss', '--')]

    :param history: name to one number per epoch; of what :func:`pyro_mmvae.fit` returns, the losses alone are drawn.
    :raises ValueError: if there is no curve.
    """
    history = getattr(history, "curves", history)
    if not history:
        raise ValueError("history: expected at least one curve, got an empty mapping.")
    from matplotlib.ticker import MaxNLocator

    ax = _axes(ax, figsize=(6.0, 4.0))
    colors: dict[str, str] = {}
    for name, numbers in history.items():
        prefix = next((p for p in VALIDATION if name.startswith(p)), "")
        color = colors.setdefault(name.removeprefix(prefix).removeprefix("train_"), f"C{len(colors)}")
        values = np.array([np.nan if number is None else float(number) for number in numbers])
        known = ~np.isnan(values)
        epochs = np.arange(1, len(values) + 1)[known]
        marker = "." if len(epochs) < 30 else ""
        ax.plot(epochs, values[known], "--" if prefix else "-", color=color, marker=marker, label=name)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
    return ax


def missingness(ds: MultimodalDataset, ax: Axes | None = None, *, max_patterns: int = 20) -> Axes:
    """
    The observation patterns of a dataset: one row per distinct pattern, most frequent first, one column per modality.

    "in part": some features of the modality are observed. On the left the number of samples with the pattern.

    Example::

        >>> from matplotlib.figure import Figure
        >>> from pyro_mmvae.datasets import MultimodalDataset
        >>> x = torch.tensor([[1.0], [2.0], [float("nan")]])
        >>> ax = missingness(MultimodalDataset({"a": x, "b": torch.arange(3)}), Figure().subplots())
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['2 (67%)', '1 (33%)']

    :param max_patterns: the others are summed up in a note below.
    :raises ValueError: if ``max_patterns`` is below 1.
    """
    from matplotlib.patches import Patch

    if max_patterns < 1:
        raise ValueError(f"max_patterns: expected at least 1, got {max_patterns}.")
    state = torch.stack([_state(ds.obs_mask[name]) for name in ds.modalities], -1).cpu()
    patterns, counts = torch.unique(state, dim=0, return_counts=True)
    order = torch.argsort(counts, descending=True, stable=True)
    shown, number = patterns[order][:max_patterns], counts[order][:max_patterns].tolist()
    ax = _axes(ax, figsize=(3.0 + 0.9 * len(ds.modalities), 1.0 + 0.32 * len(shown)))
    colors = _two_colors()
    ax.imshow(shown.numpy(), cmap=colors, vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(len(ds.modalities)), list(ds.modalities))
    ax.set_yticks(range(len(shown)), [f"{count} ({count / len(ds):.0%})" for count in number])
    for position in np.arange(1, shown.shape[0]) - 0.5:
        ax.axhline(position, color="white", linewidth=2)
    for position in np.arange(1, shown.shape[1]) - 0.5:
        ax.axvline(position, color="white", linewidth=2)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.set_ylabel("samples")
    if len(patterns) > len(shown):
        ax.set_xlabel(f"{len(patterns) - len(shown)} more patterns, {len(ds) - sum(number)} samples")
    keys = [Patch(color=colors(v), label=k) for k, v in STATES.items() if (shown == v).any()]
    ax.legend(handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.set_frame_on(False)
    return ax


def _state(obs_mask: Tensor) -> Tensor:  # shape: (N,), values of STATES
    flat = obs_mask.reshape(len(obs_mask), -1)
    return (flat.any(-1).float() + flat.all(-1).float()) / 2


def _two_colors() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("missing to observed", [MISSING, OBSERVED])


def _array(name: str, value: Any) -> np.ndarray:
    """A float array from a tensor on any device, or from whatever numpy takes."""
    try:
        return np.asarray(value.detach().cpu().double() if isinstance(value, Tensor) else value, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: expected a tensor or array of numbers, got {type(value).__name__} ({error})."
        ) from error


def _axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """The axes given, or those of a new pyplot figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=figsize, layout="constrained")[1]
