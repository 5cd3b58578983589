"""The pictures of a cohort: what is missing, what hidden cells were predicted as, the latent space.

Layer: quickstart; matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_mmvae import plotting
from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.quickstart.cohort.report import standardized_error
from pyro_mmvae.vae import MultimodalVAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_all"]

_CHOSEN = {"best": 0.0, "middle": 0.5, "worst": 1.0}  # columns by their error, as quantiles
_FEWEST = 5  # cells of a column that is drawn
_MODALITIES = 4  # that are drawn
_POINTS = 150  # of a scatter plot


def draw_all(vae: MultimodalVAE, ds: MultimodalDataset, heldout: Any, output: Path) -> Iterator[tuple[Path, str]]:
    """Write the pictures into a folder, one after the other, with what they show."""
    output.mkdir(parents=True, exist_ok=True)
    drawn = {
        "missingness.png": (lambda: missingness(ds), "which modalities and columns are there"),
        "heldout.png": (lambda: truth_and_prediction(heldout), "hidden cells: truth, prediction and 90 % interval"),
        "latent.png": (lambda: latent(vae, ds), "the latent space"),
    }
    for name, (draw, what) in drawn.items():
        figure = draw()
        if figure is not None:
            figure.savefig(output / name, dpi=110)
            yield output / name, what


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure that pyplot does not know of, so that nothing has to be closed, and its axes in rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def missingness(ds: MultimodalDataset) -> Figure:
    """The patterns of modalities, and each column's share of observed cells."""
    width = max(1.3, *(len(m) / 7 for m in ds.modalities))
    states = [mask.reshape(len(ds), -1) for mask in ds.obs_mask.values()]
    patterns = np.stack([x for seen in states for x in (seen.any(-1).cpu(), seen.all(-1).cpu())], -1)
    shown = min(20, len(np.unique(patterns, axis=0)))
    figure, axes = _figure(3.0 + width * len(ds.modalities), 2.4 + 0.2 * shown)
    plotting.missingness(ds, axes[0, 0])
    return figure


def truth_and_prediction(heldout: Any) -> Figure | None:
    """
    For each modality the numbers that were predicted best, middling and worst; None if no table has numbers.

    Cells of hidden modalities, or single cells where there is one modality.
    """
    numbers = heldout[heldout["number"] & (heldout["hidden"] == heldout["hidden"].iloc[0])]
    modalities = list(numbers["modality"].unique())[:_MODALITIES]
    chosen = {m: _columns(numbers[numbers["modality"] == m]) for m in modalities}
    chosen = {m: columns for m, columns in chosen.items() if columns}
    if not chosen:
        return None
    figure, axes = _figure(10.5, 0.8 + 3.2 * len(chosen), len(chosen), len(_CHOSEN))
    for row, (m, columns) in zip(axes, chosen.items(), strict=True):
        own = numbers[numbers["modality"] == m]
        for ax in row[len(columns) :]:
            ax.set_axis_off()
        for ax, (column, title) in zip(row, columns.items(), strict=False):
            _scatter(ax, own[own["column"] == column])
            ax.set_title(f"{m}: {column}\n{title}", fontsize="medium")
        row[0].set_ylabel("predicted")
    for ax in axes[-1]:
        ax.set_xlabel("truth")
    whole = heldout["hidden"].iloc[0] == "modality"
    what = "each modality predicted from the others" if whole else "single cells hidden"
    figure.suptitle(f"Held-out samples, {what}: means and 90 % intervals")
    return figure


def _columns(cells: Any) -> dict[str, str]:
    """Columns at the quantiles of the standardized error, and what they are; a column once."""
    error = (standardized_error(cells, "model") ** 2).groupby(cells["column"])
    ranked = error.mean()[error.size() >= _FEWEST].sort_values() ** 0.5
    found: dict[str, str] = {}
    for title, q in _CHOSEN.items() if len(ranked) else ():
        place = round(q * (len(ranked) - 1))
        found.setdefault(str(ranked.index[place]), f"{title}, RMSE {ranked.iloc[place]:.2f}")
    return found


def _scatter(ax: Axes, cells: Any) -> None:
    """Prediction against truth with intervals, and the diagonal."""
    cells = cells.iloc[np.linspace(0, len(cells) - 1, min(_POINTS, len(cells))).astype(int)]
    inside = ((cells["lower"] <= cells["truth"]) & (cells["truth"] <= cells["upper"])).to_numpy()
    for which, color in ((inside, plotting.OBSERVED), (~inside, "#c2573a")):
        own = cells[which]
        ax.vlines(own["truth"], own["lower"], own["upper"], color=color, alpha=0.25, linewidth=1.2)
        ax.scatter(own["truth"], own["model"], s=10, color=color, linewidths=0, zorder=3)
    if cells["log"].all():
        ax.set(xscale="log", yscale="log")
    low, high = float(cells["truth"].min()), float(cells["truth"].max())
    ax.plot([low, high], [low, high], color="0.4", linewidth=1, linestyle="--", zorder=2)
    ax.text(0.03, 0.97, f"{inside.mean():.0%} inside", transform=ax.transAxes, va="top", fontsize="small")


def latent(vae: MultimodalVAE, ds: MultimodalDataset) -> Figure:
    """Posterior means by which modalities were there, and by a column of classes where there is one."""
    z = vae.posterior(ds, progress=False).mean.cpu()
    seen = np.stack([mask.reshape(len(ds), -1).any(-1).cpu().numpy() for mask in ds.obs_mask.values()], 1)
    patterns, classes = _patterns(ds.modalities, seen), _classes(ds)
    labels: list[tuple[str, np.ndarray | None]] = []
    if len(np.unique(patterns)) > 1:
        labels.append(("Posterior means, colored by what is observed", patterns))
    if classes is not None:
        labels.append((f"Posterior means, colored by {classes[0]}", classes[1]))
    labels = labels if labels else [("Posterior means", None)]
    figure, axes = _figure(6.6 * len(labels), 4.4, 1, len(labels))
    for ax, (title, names) in zip(axes[0], labels, strict=True):
        plotting.latent(z, names, ax)
        ax.set_title(title)
    return figure


def _patterns(modalities: tuple[str, ...], seen: np.ndarray) -> np.ndarray:  # shape: (N,), text
    """The modalities of each row; rare patterns by how many there are."""
    names = np.array([" + ".join(m for m, there in zip(modalities, row, strict=True) if there) for row in seen])
    values, counts = np.unique(names, return_counts=True)
    if len(values) <= 8:
        return names
    kept = set(values[np.argsort(-counts)[:7]])
    return np.array([name if name in kept else "other" for name in names])


def _classes(ds: MultimodalDataset) -> tuple[str, np.ndarray] | None:
    """The column of classes with the most observed cells; covariates are the last to be taken."""
    frames = ds.frames
    if frames is None:
        return None
    best: tuple[float, str, np.ndarray] | None = None
    for m, columns in frames.columns.items():
        cells = frames.cells(m).numpy()
        for i, column in enumerate(columns):
            known = ~np.isnan(cells[:, i])
            if 1 < len(column.levels) <= 12 and (best is None or known.mean() > best[0]):
                best = float(known.mean()), f"{m}: {column.name}", _names(column.levels, cells[:, i])
    if best is not None:
        return best[1:]
    for column in frames.context:
        if 1 < len(column.levels) <= 12:
            return str(column.name), _names(column.levels, ds.data[str(column.name)].double().cpu().numpy())
    return None


def _names(levels: tuple[Any, ...], codes: np.ndarray) -> np.ndarray:  # shape: (N,), text
    known = ~np.isnan(codes)
    names = np.array([str(level) for level in levels], dtype=object)
    return np.where(known, names[np.where(known, codes, 0).astype(int)], "not observed").astype(str)
