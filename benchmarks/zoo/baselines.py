"""The rows that the methods are held against: a VAE per modality, the training mean, nearest neighbors, a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pyro_mmvae as mm
from benchmarks.zoo.networks import LATENT, Digits, networks
from benchmarks.zoo.training import fit_within
from pyro_mmvae.quickstart.scores import HALVES, MODALITIES, rmse

__all__ = ["BASELINES", "INDEPENDENT", "MEAN", "NEIGHBOR"]

INDEPENDENT, MEAN, NEIGHBOR = "VAE per modality", "training mean, majority class", "1 nearest neighbor"

Scores = dict[str, Any]


def _independent(digits: Digits, seconds: float, seed: int, particles: int) -> Scores:
    """
    One VAE for each modality, trained on the rows that show it, with a third of the budget each.

    The log-likelihood of a digit is the sum over what it shows: what a method has to beat to have learned more than
    the modalities one by one.
    """
    sums = {"log p": torch.zeros(len(digits.held_out)), "log p_O": torch.zeros(len(digits.held_out_hidden))}
    steps, used = 0, 0.0
    for m in MODALITIES:
        nets = networks(modalities=(m,))
        vae = mm.MVAE(nets.encoders, nets.decoders, latent_dim=LATENT, unimodal=False)
        seen = digits.train[digits.train.obs_mask[m]]
        budget = fit_within(vae, mm.MultimodalDataset({m: seen.data[m]}), seconds / len(MODALITIES), seed)
        steps, used = steps + budget.steps, used + budget.elapsed
        for name, rows in {"log p": digits.held_out, "log p_O": digits.held_out_hidden}.items():
            shown = {m: rows.data[m]}, {m: rows.obs_mask[m]}
            sums[name] += vae.log_likelihood(*shown, num_particles=particles)
    return {name: [round(v, 4) for v in total.tolist()] for name, total in sums.items()} | {
        "seconds": used, "steps": steps,
    }  # fmt: skip


def _mean(digits: Digits, seconds: float, seed: int, particles: int) -> Scores:
    """The mean image of what is observed, and the most frequent class."""
    train, held_out = digits.train, digits.held_out
    label = train.data["label"][train.obs_mask["label"]].mode().values
    share = float((held_out.data["label"] == label).double().mean())
    means = {m: train.data[m][train.obs_mask[m]].mean(0) for m in HALVES}
    return {f"accuracy {m}": share for m in HALVES} | {
        f"rmse {m}": rmse(mean, held_out.data[m]) for m, mean in means.items()
    }


def _neighbors(k: int) -> Callable[..., Scores]:
    """The k nearest digits of those that show both: the mean of their other halves, the majority of their classes."""

    def score(digits: Digits, seconds: float, seed: int, particles: int) -> Scores:
        train, held_out, found = digits.train, digits.held_out, {}
        for hidden, seen in HALVES.items():
            rows = _showing(train, hidden, seen)
            near = _nearest(held_out.data[seen], rows.data[seen], k)
            found[f"rmse {hidden}"] = rmse(rows.data[hidden][near].mean(1), held_out.data[hidden])
        for half in HALVES:
            rows = _showing(train, half, "label")
            near = _nearest(held_out.data[half], rows.data[half], k)
            named = rows.data["label"][near].mode(1).values
            found[f"accuracy {half}"] = float((named == held_out.data["label"]).double().mean())
        return found

    return score


def _showing(rows: mm.MultimodalDataset, *modalities: str) -> mm.MultimodalDataset:
    return rows[torch.stack([rows.obs_mask[m] for m in modalities]).all(0)]


def _nearest(x: Tensor, among: Tensor, k: int) -> Tensor:  # shape: (B, k), rows of ``among``
    return torch.cdist(x.flatten(1), among.flatten(1)).topk(k, largest=False).indices


#: row of the table -> (digits, seconds, seed, particles) -> scores
BASELINES: dict[str, Callable[[Digits, float, int, int], Scores]] = {
    INDEPENDENT: _independent,
    MEAN: _mean,
    NEIGHBOR: _neighbors(1),
    "5 nearest neighbors": _neighbors(5),
}
