"""The pictures of the quickstart, and its ArviZ file.

Layer: quickstart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_mmvae import plotting
from pyro_mmvae.quickstart.arviz_file import inference_data, plot_posteriors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyro_mmvae.datasets import MultimodalDataset
    from pyro_mmvae.vae import MultimodalVAE

__all__ = ["draw_all"]

SIZE = 8  # pixels of an image's side


def draw_all(vae: MultimodalVAE, held_out: MultimodalDataset, output: Path) -> Iterator[Path]:
    """Write everything into a folder, one path after the other."""
    output.mkdir(parents=True, exist_ok=True)
    drawn = {
        "completions.png": lambda: completions(vae, held_out),
        "from_label.png": lambda: from_label(vae),
        "from_prior.png": lambda: from_prior(vae),
        "latent.png": lambda: latent(vae, held_out),
        "posterior.png": lambda: plot_posteriors(vae, held_out[_first_of_each(held_out)[3:4]]),
    }
    for name, draw in drawn.items():
        draw().savefig(output / name, dpi=110)
        yield output / name
    inference_data(vae, held_out[:40].hide(0.5)).to_netcdf(output / "digits.nc")
    yield output / "digits.nc"


def _figure(width: float, height: float, **layout: Any) -> tuple[Figure, Any]:
    """A figure that pyplot does not know of, so that nothing has to be closed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**layout)


def _grid(images: Tensor, ax: Axes, **titles: Sequence[str]) -> None:  # shape: (rows, columns, 8, 8)
    """Images on the common scale of grey levels."""
    plotting.grid(images, titles.get("titles"), ax, row_titles=titles.get("row_titles"), vmin=0.0, vmax=16.0)


def completions(vae: MultimodalVAE, held_out: MultimodalDataset) -> Figure:
    """Rows of digits with one half hidden: what is seen, the truth, the mean completion, five sampled ones."""
    digits = held_out[_first_of_each(held_out)]
    figure, axes = _figure(11.5, 6.6, ncols=2)
    for ax, hidden, seen in zip(axes, ("bottom", "top"), ("top", "bottom"), strict=True):
        means = vae.predict(digits, given={seen}, target={hidden}, num_samples=200, noise=False)[hidden]
        halves = [torch.full_like(means[0], torch.nan), digits.data[hidden], means.mean(0), *means[:5]]
        images = [_whole(half, digits.data[seen], hidden) for half in halves]
        titles = ["seen", "truth", "mean", *(f"draw {i}" for i in range(1, 6))]
        _grid(torch.stack(images, 1), ax, titles=titles)
        ax.set_title(f"{hidden} half completed from the {seen}", pad=22)
    return figure


def _whole(half: Tensor, other: Tensor, hidden: str) -> Tensor:  # shape: (B, 8, 8)
    """An image from its halves."""
    return torch.cat([other, half] if hidden == "bottom" else [half, other], -2)


def from_label(vae: MultimodalVAE, columns: int = 12) -> Figure:
    """One row per class: digits drawn given nothing but the class."""
    drawn = vae.predict({"label": torch.arange(10)}, target={"top", "bottom"}, num_samples=columns, noise=False)
    images = torch.cat([drawn["top"], drawn["bottom"]], -2).transpose(0, 1)
    figure, ax = _figure(7.2, 6.3)
    _grid(images, ax, row_titles=[str(i) for i in range(10)])
    ax.set_title("Digits drawn given the label alone")
    return figure


def from_prior(vae: MultimodalVAE, rows: int = 8, columns: int = 12) -> Figure:
    """Digits drawn from the prior."""
    drawn = vae.generate(rows * columns, target={"top", "bottom"}, noise=False)
    images = torch.cat([drawn["top"], drawn["bottom"]], -2).reshape(rows, columns, SIZE, SIZE)
    figure, ax = _figure(7.2, 5.2)
    _grid(images, ax)
    ax.set_title("Digits drawn from the prior")
    return figure


def latent(vae: MultimodalVAE, held_out: MultimodalDataset) -> Figure:
    """Posterior means of held-out digits given both halves and given one, laid out by one t-SNE."""
    from sklearn.manifold import TSNE

    shown = {"both halves": {"top", "bottom"}, "the top half": {"top"}, "the bottom half": {"bottom"}}
    means = torch.cat([vae.posterior(held_out, given=given).mean for given in shown.values()])
    points = TSNE(init="pca", random_state=0, n_jobs=1).fit_transform(means.numpy())
    figure, axes = _figure(11.0, 4.0, ncols=3, sharex=True, sharey=True)
    for ax, name, xy in zip(axes, shown, points.reshape(3, -1, 2), strict=True):
        plotting.latent(xy, held_out.data["label"], ax)
        ax.set(title=f"E[z] given {name}", xlabel="t-SNE 1", ylabel="t-SNE 2" if ax is axes[0] else "")
        if ax is not axes[-1]:
            ax.get_legend().remove()
    return figure


def _first_of_each(digits: MultimodalDataset) -> Tensor:  # shape: (10,)
    """Row numbers of the first digit of each class."""
    return torch.stack([(digits.data["label"] == c).nonzero()[0, 0] for c in range(10)])
