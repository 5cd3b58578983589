"""The handler that predicts: draws or means at the modality sites that are wanted, known values passed on.

Layer: inference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_mmvae.distributions import Scored, fill_value
from pyro_mmvae.handlers.plates import in_site_layout

__all__ = ["PredictMessenger"]

Result = Callable[[TorchDistribution], Any]


class PredictMessenger(Messenger):
    """
    Modality sites give what is asked of them and pass a value on.

    Wanted ones put a draw, or what ``result`` makes of their likelihood, into :attr:`results`; what later sites see
    is the known value where there is one, else a draw if something depends on it, else a constant of the support.
    Networks of lazy likelihoods that nobody wants do not run. It stands outside of ``handlers.observe``, if that is
    there too, and outside of all plates. Of a statement with ``obs_mask`` it sees the observed half, and puts the
    value that is passed on into the site that joins the halves.

    :param data: modality -> values ``(B, *event)``, filled where not known; absent: nothing is known.
    :param known: modality -> bool ``(B, *event or ones)``.
    :param wanted: names of the modalities asked for.
    :param feeding: modalities on whose values something wanted depends.
    :param result: what to make of a wanted likelihood instead of a draw, e.g. :func:`pyro_mmvae.nn.expected`.
    :ivar results: modality -> what was asked for.
    """

    def __init__(
        self,
        data: Mapping[str, Tensor],
        known: Mapping[str, Tensor],
        wanted: Collection[str],
        *,
        feeding: Collection[str] = (),
        result: Result | None = None,
    ) -> None:
        super().__init__()
        self.data, self.known = data, known
        self.wanted, self.feeding, self.result = frozenset(wanted), frozenset(feeding), result
        self.results: dict[str, Any] = {}
        self._passed: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Message) -> None:
        name = str(msg["infer"].get("modality", msg["name"]))
        if name not in self.known:
            return
        if msg["infer"].get("_deterministic"):
            msg["value"] = self._passed[name]
            return
        fn, frames = _plain(msg), msg["cond_indep_stack"]
        wanted, known = name in self.wanted, in_site_layout(name, self.known[name], fn.event_dim, frames)
        fed = name in self.feeding and not bool(known.all())
        draw = fn.sample() if fed or (wanted and self.result is None) else None
        if wanted:
            self.results[name] = draw if self.result is None else self.result(fn)
        x = self.data.get(name)
        x = None if x is None else in_site_layout(name, x, fn.event_dim, frames)
        msg["value"] = self._passed[name] = _passed_on(fn, x, known, draw if fed else None)
        msg["fn"], msg["done"], msg["is_observed"] = fn, True, True
        msg["infer"] = {**msg["infer"], "modality": name}  # type: ignore[typeddict-unknown-key]


def _passed_on(fn: TorchDistribution, x: Tensor | None, known: Tensor, draw: Tensor | None) -> Tensor:
    """What later sites see: the data, a draw where nothing is known, or a constant."""
    if x is None:
        return fill_value(fn.support, fn.event_shape).expand(fn.event_shape) if draw is None else draw  # type: ignore[arg-type]
    return x if draw is None else torch.where(known, x, draw)


def _plain(msg: Message) -> Any:
    """A modality's likelihood, without what ``observe`` put around it for scoring."""
    fn: Any = msg["fn"]
    own = fn.base if isinstance(fn, Scored) else msg["infer"].get("likelihood", fn)
    return own if own is fn else own.expand(fn.batch_shape)
