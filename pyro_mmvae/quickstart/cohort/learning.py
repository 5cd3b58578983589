"""Training on a cohort.

Layer: quickstart; what is trained, :mod:`pyro_mmvae.quickstart.recipe` says.
"""

from __future__ import annotations

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.quickstart.recipe import fit_options, recipe
from pyro_mmvae.training import fit
from pyro_mmvae.training.history import Callback, Event, State
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["learned"]


def learned(
    ds: MultimodalDataset, *, seed: int = 0, epochs: int | None = None, seconds: float | None = None
) -> MultimodalVAE:
    """
    A model trained on a data set, in evaluation mode.

    :param seed: of weights, order of rows and draws; torch's global random state is left as found.
    :param epochs: passes over the data, in place of the recipe's.
    :param seconds: wall-clock time after which training ends early, with the epoch it is in.
    """
    vae = recipe(ds, seed=seed)
    options = fit_options(ds, seed=seed)
    if epochs is not None:
        options["epochs"] = epochs
    if seconds is not None:
        options["callbacks"] = [*options.get("callbacks", ()), _stop_after(seconds)]
    fit(vae, ds, **options)
    return vae.eval()


def _stop_after(seconds: float) -> Callback:
    def stop(event: Event, state: State) -> None:
        if event == "epoch" and state.seconds >= seconds:
            state.stop = True

    return stop
