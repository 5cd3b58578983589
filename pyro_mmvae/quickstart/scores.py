"""How well a model of the digits does on digits that it has not seen.

Layer: quickstart.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyro_mmvae.datasets import MultimodalDataset
    from pyro_mmvae.vae import MultimodalVAE

__all__ = ["HALVES", "MODALITIES", "SHOWN_FOR_LABEL", "SUBSETS", "Scores", "of_model", "rmse"]

MODALITIES = ("top", "bottom", "label")
SUBSETS = tuple(s for size in (1, 2, 3) for s in combinations(MODALITIES, size))
HALVES = {"top": "bottom", "bottom": "top"}  # what is hidden -> what is seen
SHOWN_FOR_LABEL = (("top",), ("bottom",), ("top", "bottom"))

Scores = dict[str, float]


def of_model(vae: MultimodalVAE, held_out: MultimodalDataset, *, particles: int, draws: int = 200) -> Scores:
    """
    All scores by name: ``"accuracy top+bottom"``, ``"rmse bottom"``, ``"coverage top"``, ``"log p label"``, ...

    :param held_out: complete digits; each score hides what it has to.
    :param particles: importance samples per log-likelihood, K.
    :param draws: draws per posterior for means and intervals.
    """
    found: Scores = {}
    for given in SHOWN_FOR_LABEL:
        classes = vae.predict(held_out, given=given, target={"label"}, num_samples=draws, noise=False)["label"].mean(0)
        found[f"accuracy {'+'.join(given)}"] = float((classes.argmax(-1) == held_out.data["label"]).float().mean())
    for hidden, seen in HALVES.items():
        truth = held_out.data[hidden]
        means = vae.predict(held_out, given={seen}, target={hidden}, num_samples=draws, noise=False)[hidden]
        found[f"rmse {hidden}"] = rmse(means.mean(0), truth)
        found[f"spread {hidden}"] = _spread(means[:5])
        pixels = vae.predict(held_out, given={seen}, target={hidden}, num_samples=draws)[hidden]
        found[f"coverage {hidden}"] = _coverage(pixels, truth, 0.9)
    for subset in SUBSETS:
        found.update(_log_likelihood(vae, held_out, subset, particles))
    return found


def rmse(prediction: Tensor, truth: Tensor) -> float:
    """Root mean squared error over all pixels, in grey levels."""
    return float((prediction - truth).square().mean().sqrt())


def _coverage(
    draws: Tensor,  # shape: (S, B, 4, 8)
    truth: Tensor,  # shape: (B, 4, 8)
    level: float,
) -> float:
    """Share of the pixels that lie within their central interval, its ends included."""
    ordered, tail = draws.sort(0).values, round((1 - level) / 2 * len(draws))
    inside = (ordered[tail] <= truth) & (truth <= ordered[-1 - tail])
    return float(inside.float().mean())


def _spread(
    means: Tensor,  # shape: (S, B, 4, 8)
) -> float:
    """Root mean squared difference of two completions of one digit, over all pairs, then over digits."""
    pairs = [(a - b).square().mean((-2, -1)).sqrt() for a, b in combinations(means, 2)]
    return float(torch.stack(pairs).mean())


def _log_likelihood(vae: MultimodalVAE, held_out: MultimodalDataset, subset: tuple[str, ...], particles: int) -> Scores:
    """Mean of log p(x_S), its standard error over digits, and that of one digit's estimate."""
    data = {m: held_out.data[m] for m in subset}
    found = vae.log_likelihood(data, num_particles=particles, diagnostics=True)
    name = "+".join(subset)
    return {
        f"log p {name}": float(found.value.mean()),
        f"log p {name} over digits": float(found.value.std() / len(found.value) ** 0.5),
        f"log p {name} per digit": float(found.standard_error.square().mean().sqrt()),
        f"log p {name} ess": float(found.ess.median()),
    }
