"""Weights on log-densities: likelihood rescaling per modality, and the weight of the KL on latent sites.

Layer: handlers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

__all__ = ["AnnealMessenger", "RescaleMessenger", "anneal", "rescale"]


def _positive(what: str, value: Tensor | float) -> Tensor | float:
    if not bool(torch.as_tensor(value > 0).all()):
        raise ValueError(
            f"{what} must be > 0, got {value}. Fix: to leave a density out, use handlers.score (modalities) or "
            "start the annealing above 0."
        )
    return value


class RescaleMessenger(Messenger):
    """Multiply the log-density of named modalities by positive factors lambda_m (1: nats)."""

    def __init__(self, factors: Mapping[str, Tensor | float]) -> None:
        super().__init__()
        self.factors = {m: _positive(f"rescale: the factor of {m!r}", f) for m, f in factors.items()}

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] in self.factors:
            msg["scale"] = msg["scale"] * self.factors[msg["name"]]


class AnnealMessenger(Messenger):
    """Multiply the log-densities of latent sites by beta > 0; wrap model and guide alike."""

    def __init__(self, beta: Tensor | float, sites: Collection[str] | None) -> None:
        super().__init__()
        self.beta = _positive("anneal: beta", beta)
        self.sites = None if sites is None else frozenset(sites)

    def _pyro_sample(self, msg: Message) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample) or "modality" in msg["infer"]:
            return
        if self.sites is None or msg["name"] in self.sites:
            msg["scale"] = msg["scale"] * self.beta


def rescale(factors: Mapping[str, Tensor | float]) -> RescaleMessenger:
    """
    Context manager: likelihood rescaling for stock Pyro objectives.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> with rescale({"x": 2.0}), pyro.poutine.trace() as t:
        ...     _ = pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))
        >>> round(float(t.trace.log_prob_sum()), 3)
        -1.838
    """
    return RescaleMessenger(factors)


def anneal(beta: Tensor | float, sites: Collection[str] | None = None) -> AnnealMessenger:
    """
    Context manager: weight the KL of latent sites by ``beta`` in stock Pyro objectives; model and guide both need it.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> with anneal(0.5), pyro.poutine.trace() as t:
        ...     _ = pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> t.trace.nodes["z"]["scale"]
        0.5

    :param sites: names of the latent sites; None: all of them.
    """
    return AnnealMessenger(beta, sites)
