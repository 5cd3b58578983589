"""Re-running a story with each latent drawn from its head.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_mmvae.guides.enumerated import Enumerated

__all__ = ["HeadMessenger", "LatentsDone"]


class LatentsDone(Exception):
    """The last latent is sampled: the rest is likelihoods, which a guide does not run."""


class HeadMessenger(Messenger):
    """
    Replace each latent's prior, hide modalities, factors and sites outside the plate, leave after the last latent.

    :param posterior: (site, prior) -> distribution to draw from.
    :param drawn: (site, value) -> what is remembered of a draw.
    :param latents: sites to draw, in order.
    :param shown: values of modalities and of sites outside the plate.
    :param private: latent -> its modality.
    :param nesting: plates of the story.
    """

    def __init__(
        self,
        posterior: Callable[[str, Any], Any],
        drawn: Callable[[str, Tensor], None],
        latents: Collection[str],
        shown: Mapping[str, Tensor],
        private: Mapping[str, str],
        nesting: int,
    ) -> None:
        super().__init__()
        self.posterior, self.drawn, self.latents = posterior, drawn, frozenset(latents)
        self.left, self.shown, self.private = set(latents), shown, private
        self.enumerated = Enumerated(nesting)

    def _pyro_sample(self, msg: Message) -> None:
        name = msg["name"]
        if isinstance(msg["fn"], _Subsample):
            if name != "data":
                msg["stop"] = True  # plates outside are the global guide's, which has opened them
        elif msg["is_observed"]:
            msg["stop"] = True  # a factor of the story: the model's, not the guide's
        elif name in self.shown:
            msg["value"] = self.shown[name]
            msg["done"] = msg["stop"] = True
        elif name not in self.latents and msg["infer"].get("enumerate") is not None:
            self.enumerated.hide(msg)
        elif name in self.latents:
            prior = self.enumerated.prior(name, msg["fn"])
            if name in self.private:
                msg["infer"] = {**msg["infer"], "private_to": self.private[name]}  # type: ignore[typeddict-unknown-key]
            msg["fn"] = self.posterior(name, prior)
        else:
            msg["stop"] = True

    def _pyro_post_sample(self, msg: Message) -> None:
        name = msg["name"]
        self.enumerated.drawn(name, msg["value"])
        if name not in self.latents:
            return
        self.drawn(name, msg["value"])
        self.left.discard(name)
        if not self.left:
            raise LatentsDone
