"""What ArviZ gets to see: a file with all groups, and one digit's posterior given each subset.

Layer: quickstart.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from pyro_mmvae.nn import expected
from pyro_mmvae.quickstart.scores import SUBSETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyro_mmvae.datasets import MultimodalDataset
    from pyro_mmvae.vae import MultimodalVAE

__all__ = ["inference_data", "plot_posteriors"]

DIMS = {"top": ["row_top", "column"], "bottom": ["row_bottom", "column"], "z": ["latent"]}
COORDS = {"row_top": range(4), "row_bottom": range(4, 8), "column": range(8)}


def inference_data(vae: MultimodalVAE, digits: MultimodalDataset, draws: int = 200) -> Any:
    """All groups that ArviZ knows, for digits of which parts may be missing, and the probabilities of their classes."""
    out = vae.to_inference_data(digits, num_samples=draws, dims=DIMS, coords=COORDS)
    z = torch.from_numpy(out.posterior["z"].values[0])  # shape: (draws, B, D)
    probabilities = expected(vae.decode(z, target={"label"})["label"]).numpy()  # shape: (draws, B, 10)
    out.posterior_predictive.coords["class"] = range(10)
    out.posterior_predictive["label_probability"] = ("chain", "draw", "sample", "class"), probabilities[None]
    return out


def plot_posteriors(vae: MultimodalVAE, digit: MultimodalDataset, latents: int = 6, draws: int = 2000) -> Figure:
    """What is known of one digit's latents given each subset: 50 % and 90 % intervals of those it says most about."""
    scale = vae.posterior(digit).variance[0]
    chosen = sorted(scale.argsort()[:latents].tolist())
    found = {}
    for given in ((), *SUBSETS):
        z = vae.posterior(digit, given=given).sample(torch.Size([draws]))[:, 0, chosen]
        found[" + ".join(given) if given else "nothing (prior)"] = {"z": z.unsqueeze(0).numpy()}
    return _forest(found, chosen, f"Posterior of a {int(digit.data['label'][0])}: medians, 50 % and 90 % intervals")


def _forest(draws: Mapping[str, Any], latents: list[int], title: str) -> Figure:
    """``arviz.plot_forest`` of several posteriors: as a list in ArviZ 0.x, in 1.x as a mapping into its own figure."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # ArviZ 0.x announces 1.x when it is imported
        import arviz

    names: dict[str, Any] = {"dims": {"z": ["latent"]}, "coords": {"latent": latents}}
    if int(arviz.__version__.split(".")[0]) >= 1:
        trees = {name: arviz.from_dict({"posterior": z}, **names) for name, z in draws.items()}
        options: dict[str, Any] = {"ci_probs": (0.5, 0.9), "backend": "matplotlib"}
        plot = arviz.plot_forest(trees, combined=True, **options)
        plot.add_legend("model", title="given")
        figure = plot.viz["figure"].item()
        figure.suptitle(title)
        return figure
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 7.0), layout="constrained")
    ax = figure.subplots()
    found = [arviz.from_dict(posterior=z, **names) for z in draws.values()]
    arviz.plot_forest(found, model_names=list(draws), combined=True, hdi_prob=0.9, ax=ax)
    ax.set_title(title)
    entries = [*_legend(ax)][::-1]  # in the order of the lines
    ax.legend(*zip(*entries, strict=True), title="given", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _legend(ax: Any) -> Any:
    """What ArviZ wrote into its legend, which lies on top of the lines."""
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    return zip(ax.get_legend().legend_handles, texts, strict=True)
