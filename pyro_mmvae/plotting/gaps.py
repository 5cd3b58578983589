"""Which modalities and features of a dataset are observed.
Layer: plotting; matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae.plotting._common import MISSING, OBSERVED, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_mmvae.datasets import MultimodalDataset

__all__ = ["missingness"]

STATES = {"observed": 1.0, "in part": 0.5, "missing": 0.0}


def missingness(ds: MultimodalDataset, ax: Axes | None = None, *, max_patterns: int = 20) -> Axes:
    """
    The observation patterns of a dataset: one row per distinct pattern, most frequent first, one column per modality.

    "in part": some features of the modality are observed. On the left the number of samples with the pattern. Below,
    where single features are missing or the dataset was made from DataFrames: each feature's share of observed cells
    among all samples, as a bar, in the order of the features.

    Example::

        >>> from matplotlib.figure import Figure
        >>> import torch
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
    by_feature = ds.frames is not None or any(mask.dim() > 1 for mask in ds.obs_mask.values())
    ax = axes_of(ax, figsize=(3.0 + 0.9 * len(ds.modalities), 1.0 + 0.32 * len(shown) + 1.4 * by_feature))
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
    if by_feature:
        _shares(ax, ds)
    return ax


def _shares(ax: Axes, ds: MultimodalDataset) -> None:
    """Below a picture of patterns, each modality's features as bars as high as they are observed."""
    top = ax.get_ylim()[0] + 0.4
    bottom = top + 3.0
    for i, m in enumerate(ds.modalities):
        share = _cells(ds, m).double().mean(0).cpu().numpy()
        edges = i - 0.48 + 0.96 * np.arange(len(share) + 1) / len(share)
        ax.stairs(np.full_like(share, top), edges, baseline=bottom, fill=True, color=MISSING)
        ax.stairs(bottom - (bottom - top) * share, edges, baseline=bottom, fill=True, color=OBSERVED)
        if len(share) <= 24:  # more bars than that are an outline
            ax.vlines(edges[1:-1], top, bottom, color="white", linewidth=0.7)
        ax.text(i, bottom + 0.1, _count(ds.data[m][0].numel()), ha="center", va="top", size="small")
    for height, text in ((top, "100%"), ((top + bottom) / 2, "observed"), (bottom, "0%")):
        ax.text(-0.54, height, text, ha="right", va="center", size="small")
    ax.set_ylim(bottom + 0.9, -0.5)


def _count(features: int) -> str:
    return f"{features} feature" + ("s" if features > 1 else "")


def _cells(ds: MultimodalDataset, modality: str) -> Tensor:  # shape: (N, number of features), bool
    mask, value = ds.obs_mask[modality], ds.data[modality]
    return mask.reshape(mask.shape + (1,) * (value.dim() - mask.dim())).expand(value.shape).reshape(len(ds), -1)


def _state(obs_mask: Tensor) -> Tensor:  # shape: (N,), values of STATES
    flat = obs_mask.reshape(len(obs_mask), -1)
    return (flat.any(-1).float() + flat.all(-1).float()) / 2


def _two_colors() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("missing to observed", [MISSING, OBSERVED])
