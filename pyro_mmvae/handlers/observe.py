"""Conditioning a one-sample story on whatever is observed.

Layer: handlers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message, get_plates
from torch import Tensor

from pyro_mmvae.distributions import Lazy, Scored, fill_value, mask_event
from pyro_mmvae.distributions.shapes import broadcast
from pyro_mmvae.handlers.plates import in_site_layout
from pyro_mmvae.handlers.score import Target, target_of
from pyro_mmvae.masks import Data, ObsMask, check_mask, fill, observed_rows

__all__ = ["GATHER_WORK", "ObserveMessenger", "all_rows_wanted", "dense_rows", "observe"]

#: Multiply-adds that leaving rows out must save before rows are gathered: below, copying costs more than it saves.
GATHER_WORK = 4_000_000


_DENSE: ContextVar[bool] = ContextVar("dense", default=False)


@contextmanager
def dense_rows() -> Iterator[None]:
    """Networks run on all rows: no shape depends on what is observed."""
    token = _DENSE.set(True)
    try:
        yield
    finally:
        _DENSE.reset(token)


def all_rows_wanted() -> bool:
    """Whether :func:`dense_rows` is on."""
    return _DENSE.get()


class ObserveMessenger(Messenger):
    """
    Each modality site takes the data where ``obs_mask`` is True, and is scored there if the target says so.

    Values of entries that are not observed: drawn in prediction (``poutine.get_mask() is False``); in training a
    constant inside the support, or, for sites named in ``draw``, a reparametrized draw; both unscored.

    :param data: modality -> Tensor ``(B, *event)``; an absent modality is missing in all rows.
    :param obs_mask: modality -> bool ``(B,)`` or ``(B, *event)``, or None.
    :param modalities: names of the observed sites.
    :param private: latent site -> the modality it is private to.
    :param draw: modalities whose unobserved entries are drawn in training too.
    """

    def __init__(
        self,
        data: Mapping[str, Tensor | None] | None,
        obs_mask: Mapping[str, Tensor | None] | None,
        modalities: Collection[str],
        *,
        private: Mapping[str, str] | None = None,
        draw: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.data = {} if data is None else data
        self.obs_mask = {} if obs_mask is None else obs_mask
        self.modalities, self.draw = frozenset(modalities), frozenset(draw)
        self.private = {} if private is None else private
        self.filled = isinstance(data, Data) and data.filled and isinstance(obs_mask, ObsMask)

    def _pyro_sample(self, msg: Message) -> None:
        name = msg["name"]
        if name in self.private:
            msg["infer"] = {**msg["infer"], "private_to": self.private[name]}  # type: ignore[typeddict-unknown-key]
        if name not in self.modalities or msg["is_observed"] or msg["done"]:
            return
        fn = msg["fn"]
        msg["infer"] = {**msg["infer"], "modality": name}  # type: ignore[typeddict-unknown-key]
        value, known = self._value(name, fn)
        if poutine.get_mask() is False:
            if value is None:
                return
            msg["value"] = torch.where(known, value, in_plates(fn).sample())
            msg["done"] = True
            return
        if value is None:
            value = fill_value(fn.support, fn.event_shape).expand(fn.event_shape)
        if name in self.draw:
            value = torch.where(known, value, _reparametrized(name, fn))
        msg["value"], msg["is_observed"] = value, True
        _score(msg, name, fn, value, known)

    def _value(self, name: str, fn: TorchDistribution) -> tuple[Tensor | None, Tensor]:
        """The filled value (None: nothing to show) and where it is known, in inside form."""
        x = self.data.get(name)
        event_dim = fn.event_dim
        if x is None:
            return None, torch.zeros((1,) * event_dim, dtype=torch.bool)
        mask = self.obs_mask.get(name)
        plates = get_plates() if x.dim() > 1 + event_dim else ()
        if mask is None:
            known = torch.ones((1,) * event_dim, dtype=torch.bool, device=x.device)
            return in_site_layout(name, x, event_dim, plates), known
        if not self.filled:
            if not isinstance(self.obs_mask, ObsMask):
                check_mask(name, mask, x.shape)
                mask = mask.reshape(mask.shape + (1,) * (x.dim() - 1)) if mask.dim() < x.dim() else mask
            x = fill(x, mask, fill_value(fn.support, fn.event_shape))  # type: ignore[arg-type]
        return in_site_layout(name, x, event_dim, plates), in_site_layout(name, mask, event_dim, plates)


def _score(msg: Message, name: str, fn: TorchDistribution, value: Tensor, known: Tensor) -> None:
    """Put the density of the scored entries into the message."""
    event_dim = fn.event_dim
    per_feature = any(size != 1 for size in known.shape[known.dim() - event_dim :])
    rows = observed_rows(known, event_dim) if per_feature else known.reshape(known.shape[: known.dim() - event_dim])
    target = target_of(name)
    if target is not None:
        rows = rows & target.mask.to(rows.device)
    if isinstance(fn, Lazy):
        scores = _scores(fn, value, rows, known if per_feature else None, target, name)
        msg["fn"] = Scored(fn, value, scores)
        return
    if per_feature:
        msg["infer"] = {**msg["infer"], "likelihood": fn}  # type: ignore[typeddict-unknown-key]
    msg["fn"] = mask_event(fn, known, name) if per_feature else fn
    msg["mask"] = rows if msg["mask"] is None else msg["mask"] & rows


def _scores(
    fn: Lazy,
    value: Tensor,
    rows: Tensor,  # shape: (*block,), bool
    features: Tensor | None,
    target: Target | None,
    name: str,
) -> Tensor:  # shape: (*batch,)
    """Log-densities of the scored rows; the network sees those rows, or all of them where gathering costs more."""
    index = None if target is None or rows.numel() != target.mask.numel() else target.index  # not in a plate
    if index is None and not _DENSE.get():
        index = rows.reshape(-1).nonzero().squeeze(-1)
    if index is None or not _worth_gathering(fn, rows, index):
        likelihood = fn if features is None else mask_event(fn.dense(), features, name)
        return torch.where(rows, likelihood.log_prob(value), 0.0)
    scores = fn.score(value, rows, features=features, index=index, name=name)
    return scores if target is None or target.exact else torch.where(rows, scores, 0.0)


def _worth_gathering(fn: Lazy, rows: Tensor, index: Tensor) -> bool:
    """Whether running the rows of ``index`` alone saves more than copying them costs."""
    if _DENSE.get() or index.numel() == 0:
        return True
    total = broadcast(fn.batch_shape, rows.shape).numel()
    saved = total - index.numel() * (total // max(rows.numel(), 1))
    return saved > 0 and (fn.cost is None or saved * fn.cost >= GATHER_WORK)


def _reparametrized(name: str, fn: TorchDistribution) -> Tensor:
    fn = in_plates(fn.dense() if isinstance(fn, Lazy) else fn)
    if not fn.has_rsample:
        raise NotImplementedError(
            f"draw: {name!r} has no reparametrized draws. Fix: enumerate it, or let the later site depend on the "
            "likelihood's mean."
        )
    return fn.rsample()


def in_plates(fn: TorchDistribution) -> TorchDistribution:
    """``fn`` expanded to the enclosing plates, so that every row gets its own draw."""
    frames = [f for f in get_plates() if f.dim is not None]
    shape = [1] * max((-f.dim for f in frames), default=0)
    for f in frames:
        shape[f.dim] = f.size
    return fn.expand(broadcast(fn.batch_shape, torch.Size(shape)))


def observe(
    data: Mapping[str, Tensor | None] | None,
    obs_mask: Mapping[str, Tensor | None] | None,
    modalities: Collection[str],
    *,
    private: Mapping[str, str] | None = None,
    draw: Collection[str] = (),
) -> ObserveMessenger:
    """
    Context manager: condition the modality sites inside on what is observed.

    For models with plates and global sites of their own; :func:`pyro_mmvae.observe` adds the plate ``data``. The model
    is ``model(data, obs_mask)``; its plate of rows is named ``data`` and lies at dim -1. Sites outside of it (global
    latents, among them the ``PyroSample`` attributes of a ``PyroModule`` that are read outside of it) count once per
    data set; in the story of :func:`pyro_mmvae.observe` everything is per sample, ``PyroSample`` weights too.

    A modality inside further plates (dim -2 and left of it) has data ``(B, *plates, *event)``, plates from left to
    right, and may miss elements: ``obs_mask`` of the same shape.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_mmvae import handlers
        >>> x = torch.tensor([1.0, float("nan")])
        >>> def model():
        ...     scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))  # global
        ...     with pyro.plate("data", 2), handlers.observe({"x": x}, {"x": ~x.isnan()}, ["x"]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, scale))
        >>> trace = pyro.poutine.trace(model).get_trace()
        >>> bool(trace.log_prob_sum().isfinite())
        True
    """
    return ObserveMessenger(data, obs_mask, modalities, private=private, draw=draw)
