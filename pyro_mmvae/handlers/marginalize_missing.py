"""Models written with Pyro's own ``obs_mask``: leave the unobserved halves out in training.

Layer: handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_mmvae.distributions import fill_value
from pyro_mmvae.handlers.score import target_of

__all__ = ["MarginalizeMissingMessenger", "marginalize_missing"]


class MarginalizeMissingMessenger(Messenger):
    """
    Drop the latent ``<name>_unobserved`` sites that ``pyro.sample(name, fn, obs=, obs_mask=)`` makes.

    Their integral over p(x_missing | z) is 1. Without this, a guide that lacks them gives values and gradients
    biased by the expected log-density of the imputed rows. ``<name>_observed`` values are made safe under their mask.
    In prediction (``poutine.get_mask() is False``) nothing is dropped: there the sites are the imputations. Objectives
    see each such statement as the modality ``name``, and score it where their target is; so they see an observed site
    without a mask (``obs_mask=None``) whose name is a key of the data.

    Likelihoods with event dimensions take masks of whole events, as in Pyro; inside plates masks are per element.

    :param keep: names whose unobserved halves the guide really samples.
    """

    def __init__(self, keep: Collection[str] = ()) -> None:
        super().__init__()
        self.keep = frozenset(keep)
        self._observed: dict[str, Tensor] = {}
        self._predicting = False

    def __enter__(self) -> MarginalizeMissingMessenger:
        self._observed.clear()
        self._predicting = poutine.get_mask() is False  # inside the statement it is a tensor
        return super().__enter__()

    def _pyro_sample(self, msg: Message) -> None:
        name, fn = msg["name"], msg["fn"]
        if name.endswith("_observed") and msg["is_observed"] and isinstance(msg["mask"], Tensor):
            mask = msg["mask"].reshape(msg["mask"].shape + (1,) * fn.event_dim)
            value = msg["value"]
            constant = fill_value(fn.support, fn.event_shape).to(value)
            base = name.removesuffix("_observed")
            msg["value"] = self._observed[base] = torch.where(mask, value, constant)
            msg["infer"] = {**msg["infer"], "modality": base}  # type: ignore[typeddict-unknown-key]
            target = target_of(base)
            if target is not None:
                msg["mask"] = msg["mask"] & target.mask.to(value.device)
        elif msg["is_observed"] and not msg["infer"].get("_deterministic") and not isinstance(fn, dist.Unit):
            self._whole(msg)
        elif name.endswith("_unobserved") and not msg["is_observed"] and not self._predicting:
            base = name.removesuffix("_unobserved")
            if base in self._observed and base not in self.keep:
                msg["value"] = self._observed[base]  # masked out by Pyro's own where, and never traced
                msg["done"] = msg["stop"] = True

    def _whole(self, msg: Message) -> None:
        """An observed site without a mask: a modality where an objective takes it for one, else always scored."""
        msg["infer"] = {**msg["infer"], "unmasked": True}  # type: ignore[typeddict-unknown-key]
        target = target_of(msg["name"])
        if target is not None:
            mask = target.mask.to(msg["value"].device)
            msg["infer"] = {**msg["infer"], "modality": msg["name"]}  # type: ignore[typeddict-unknown-key]
            msg["mask"] = mask if msg["mask"] is None else msg["mask"] & mask


def marginalize_missing(model: Callable[..., Any] | None = None, *, keep: Collection[str] = ()) -> Any:
    """
    Make a model with native ``obs_mask`` sites trainable with any guide over its latents.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model(x, seen):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)
        >>> seen = torch.tensor([True, False])
        >>> trace = pyro.poutine.trace(marginalize_missing(model)).get_trace(torch.tensor([1.0, float("nan")]), seen)
        >>> "x_unobserved" in trace.nodes
        False

    :param model: the program; None gives a decorator or context manager.
    :param keep: see :class:`MarginalizeMissingMessenger`.
    """
    messenger = MarginalizeMissingMessenger(keep)
    return messenger if model is None else messenger(model)
