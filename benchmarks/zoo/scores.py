"""What a trained model is measured by, on held-out digits."""

from __future__ import annotations

from typing import Any

import torch

import pyro_mmvae as mm
from benchmarks.zoo.networks import Digits
from pyro_mmvae.quickstart.scores import HALVES, rmse

__all__ = ["of_model"]


@torch.no_grad()
def of_model(vae: mm.MultimodalVAE, digits: Digits, *, particles: int, draws: int = 200) -> dict[str, Any]:
    """
    Label accuracy from each half, error of completing each half from the other, log-likelihoods.

    ``"log p"`` holds nats per complete held-out digit, ``"log p_O"`` nats per held-out digit with half of the entries
    hidden; both digit by digit, so that rows of the table can be compared in pairs.

    :param particles: importance samples per log-likelihood, K.
    :param draws: draws per posterior, for means.
    """
    held_out, found = digits.held_out, {}
    for half in HALVES:
        classes = vae.predict(held_out, given={half}, target={"label"}, num_samples=draws, noise=False)["label"].mean(0)
        found[f"accuracy {half}"] = float((classes.argmax(-1) == held_out.data["label"]).double().mean())
    for hidden, seen in HALVES.items():
        means = vae.predict(held_out, given={seen}, target={hidden}, num_samples=draws, noise=False)[hidden].mean(0)
        found[f"rmse {hidden}"] = rmse(means, held_out.data[hidden])
    values = {"log p": held_out, "log p_O": digits.held_out_hidden}
    return found | {
        name: [round(v, 4) for v in vae.log_likelihood(rows, num_particles=particles).tolist()]
        for name, rows in values.items()
    }
