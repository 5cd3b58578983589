"""Predictions and imputations: draws and means of p(x | z), z from the posterior given what is observed.

Layer: inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.inference._anatomy import anatomy
from pyro_mmvae.inference._batch import Batch, Masks, Values, evaluation, known_names, positive, prepared, split
from pyro_mmvae.inference._reported import Reported, reported
from pyro_mmvae.inference._run import (
    draw_discrete,
    encode,
    log_proposal,
    run_guide,
    run_model,
)
from pyro_mmvae.inference.predictive import PredictMessenger
from pyro_mmvae.masks import ObsMask
from pyro_mmvae.nn import expected

__all__ = ["impute", "predict"]

Draws = dict[str, Tensor]


def predict(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = None,
    obs_mask: Masks = None,
    *,
    num_samples: int = 10,
    given: Collection[str] | None = None,
    target: Collection[str] | None = None,
    noise: bool = True,
    return_latents: bool = False,
    batch_size: int = 512,
) -> Draws:  # {modality: shape (S, B, *event)}
    r"""
    Draws of every modality from the posterior predictive.

    .. math:: x_m^{(s)} \sim p(x_m \mid z^{(s)}), \qquad z^{(s)} \sim q(z \mid x_S)

    Observed modalities are drawn afresh too (:func:`impute` keeps them). Where one modality feeds another, the known
    value is what is passed on, or a draw where nothing is known. Enumerated latents that the guide lacks are drawn from
    their exact conditional given the other latents and x_S; other latents it lacks come from the story.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     for m in ("a", "b"):
        ...         pyro.sample(m, dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("a", "b"))
        >>> guide = mm.guides.Product(model, {m: mm.nn.MLPEncoder(2, 2) for m in ("a", "b")})
        >>> {m: x.shape for m, x in predict(model, guide, {"a": torch.zeros(3, 2)}, target={"b"}).items()}
        {'b': torch.Size([10, 3, 2])}

    :param data: modality -> Tensor ``(B, *event)`` with the covariates, or a dataset (which has its masks).
    :param obs_mask: modality -> bool ``(B,)`` or ``(B, *event)``, True = observed; None: everything.
    :param num_samples: S.
    :param given: modalities to condition on; default: all that is observed.
    :param target: modalities to predict; the networks of others are not run, unless they feed these. Default: all.
    :param noise: draws of p(x | z); False: its means, and the class probabilities ``(S, B, *event, C)`` of likelihoods
        over class numbers.
    :param return_latents: put the latents ``(S, B, *event)`` into the result, by site, and deterministic sites; those
        outside the plate ``data`` have no rows, ``(S, *event)``.
    :param batch_size: rows that are run at a time.
    :raises ValueError: for unknown names, or fewer than 1 sample.
    """
    positive("num_samples", num_samples)
    with evaluation(model, guide):
        batch = prepared(model, guide, data, obs_mask)
        names = known_names("given", given, batch.names)
        wanted = known_names("target", target, batch.names)
        wanted = batch.names if wanted is None else wanted
        parts = []
        for block in split(batch, batch_size):
            masks = block.masks(names)
            done = _predicted(block, masks, num_samples, wanted, noise, return_latents)
            parts.append({name: x.to(batch.device) for name, x in done.items()})
    return _side_by_side(parts, batch)


def _predicted(batch: Batch, masks: ObsMask, draws: int, wanted: tuple[str, ...], noise: bool, latents: bool) -> Draws:
    """One block of rows."""
    values, _ = log_proposal(batch, run_guide(batch, masks, draws, encode(batch, masks)))
    look = anatomy(batch)
    if any(bool(rows.any()) for rows in masks.rows.values()):
        shown = [m for m, rows in masks.rows.items() if bool(rows.any())]
        values = draw_discrete(batch, masks, values, draws, feeding=look.feeding(shown, batch.names))
    return ancestral(batch, masks, values, draws, wanted, noise=noise, latents=latents)


def ancestral(
    batch: Batch,
    masks: ObsMask,
    values: Mapping[str, Tensor],
    draws: int,
    wanted: tuple[str, ...],
    *,
    noise: bool,
    latents: bool,
) -> Draws:
    """Run the story at the latents given; latents that are not come from the story. Results have shape (S, B, ...)."""
    out, sites = followed(batch, masks, values, draws, wanted, noise=noise)
    return out | {name: site.draws for name, site in sites.items()} if latents else out


def followed(
    batch: Batch,
    masks: ObsMask,
    values: Mapping[str, Tensor],
    draws: int,
    wanted: tuple[str, ...],
    *,
    noise: bool = True,
) -> tuple[Draws, dict[str, Reported]]:
    """The modalities of such a run, and its other sites."""
    feeding = anatomy(batch).feeding(wanted, batch.names)
    result = None if noise else expected
    messenger = PredictMessenger(batch.data, masks, wanted, feeding=feeding, result=result)
    trace = run_model(batch, masks, values, draws, outer=messenger)
    out = {m: _rows_of(messenger.results[m], batch, draws, m) for m in wanted}
    return out, reported(trace, batch, draws)


def _rows_of(x: Tensor, batch: Batch, draws: int, modality: str) -> Tensor:  # shape: (S, B, *plates, *event)
    """A modality's draws without the dimensions that the layout of plates inserts; its own plates right of the rows."""
    lead = batch.nesting + 2
    inner = [size for size in x.shape[2 : lead - 1] if size > 1]
    x = x.reshape(draws, *inner, batch.size, *x.shape[lead:]).movedim(1 + len(inner), 1)
    want = (draws, *batch.data[modality].shape)
    if x.numel() == math.prod(want):
        return x.reshape(want).contiguous()
    return (x.reshape(*want, -1) if inner else x).contiguous()


def _side_by_side(parts: list[Draws], batch: Batch) -> Draws:
    """Blocks put together along the rows, which lie left of a modality's event; sites without rows are in each."""
    if len(parts) == 1:
        return parts[0]
    plates, out = anatomy(batch).plates, {}
    for name, first in parts[0].items():
        axis = 1 + len(plates.get(name, ()))
        pieces = [p[name] for p in parts]
        whole = first.dim() > axis and sum(p.shape[axis] for p in pieces) == batch.size
        out[name] = torch.cat(pieces, axis) if whole else first
    return out


def impute(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = None,
    obs_mask: Masks = None,
    *,
    num_samples: int = 10,
    given: Collection[str] | None = None,
    target: Collection[str] | None = None,
    noise: bool = True,
    return_latents: bool = False,
    batch_size: int = 512,
) -> Draws:  # {modality: shape (S, B, *event)}
    """
    The data with its gaps filled: :func:`predict`, with the observed entries of ``given`` kept bit by bit.

    Entries that are observed but not given are predicted. With ``noise=False`` gaps hold means, and the most probable
    class where the likelihood is over class numbers. Arguments and errors are those of :func:`predict`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> guide = mm.guides.Product(model, {"x": mm.nn.MLPEncoder(2, 2)})
        >>> full = impute(model, guide, {"x": torch.ones(2, 2)}, {"x": torch.tensor([True, False])})["x"]
        >>> bool((full[:, 0] == 1.0).all()), bool((full[:, 1] == 1.0).any())
        (True, False)
    """
    found = predict(
        model, guide, data, obs_mask, num_samples=num_samples, given=given, target=target, noise=noise,
        return_latents=return_latents, batch_size=batch_size,
    )  # fmt: skip
    batch = prepared(model, guide, data, obs_mask)
    masks = batch.masks(known_names("given", given, batch.names))
    raw = data.data if isinstance(data, MultimodalDataset) else data
    for m in batch.names:
        x = None if raw is None else raw.get(m)
        if m in found and x is not None:
            draw = found[m]
            if draw.dim() == 3 + masks.event_dims[m]:  # class probabilities
                draw = draw.argmax(-1)
            found[m] = torch.where(masks[m].to(x.device), x, draw.to(x.device))
    return found
