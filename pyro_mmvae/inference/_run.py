"""Running a guide and a story under a plate of draws, and reading their densities.

Layer: inference, private.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import infer_discrete
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_mmvae.handlers import ObserveMessenger, ScoreMessenger
from pyro_mmvae.handlers.observe import in_plates
from pyro_mmvae.inference._batch import Batch
from pyro_mmvae.inference._enumeration import sum_out
from pyro_mmvae.masks import ObsMask
from pyro_mmvae.objectives.passes import canonical, plain_log_prob
from pyro_mmvae.stories import data_plate

__all__ = [
    "draw_discrete",
    "encode",
    "global_latents",
    "local_latents",
    "log_joint",
    "log_proposal",
    "outer_form",
    "run_guide",
    "run_model",
    "site_scores",
]

Site = dict[str, Any]
Draws = int | tuple[int, ...] | None  # None: no plate of draws; a tuple: one plate per entry, right left of the story's


class _Evaluate(ObserveMessenger):
    """``observe``, with missing entries drawn, unscored, in the modalities on whose values something depends."""

    feeding: Collection[str] = ()

    def _value(self, name: str, fn: TorchDistribution) -> tuple[Tensor | None, Tensor]:
        value, known = super()._value(name, fn)
        if value is None or name not in self.feeding or bool(known.all()):
            return value, known
        return torch.where(known, value, in_plates(fn).sample()), known


class _Fix(Messenger):
    """
    Latents take the values given, and are neither drawn nor enumerated.

    Unlike ``replay`` it leaves a site unfinished, so that enumeration outside sees what the site depends on.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["infer"] = {**msg["infer"], "enumerate": None}  # type: ignore[typeddict-item]


@contextmanager
def _plates(batch: Batch, draws: Draws) -> Iterator[None]:
    """The plate of draws, around everything: a site outside the plate ``data`` is drawn once per particle."""
    with ExitStack() as stack:
        if isinstance(draws, int):
            stack.enter_context(pyro.plate("particles", draws, dim=-batch.nesting - 2))
        elif draws is not None:
            for i, size in enumerate(reversed(draws)):
                stack.enter_context(pyro.plate(f"particles_{i}", size, dim=-batch.nesting - 1 - i))
        yield


def encode(batch: Batch, masks: ObsMask) -> Any:
    """The experts of a library guide, to be reused over runs; None for other guides."""
    encoder = getattr(batch.guide, "encode", None)
    return None if encoder is None else encoder(batch.data, masks)


def run_guide(
    batch: Batch,
    masks: ObsMask,
    draws: Draws,
    experts: Any = None,
) -> Trace:
    """One run of the guide on the rows, as a mixture where it is one."""
    if batch.guide is None:
        raise TypeError("guide: expected a Pyro guide, got None.")
    with poutine.trace() as tracer, _plates(batch, draws):
        if getattr(batch.guide, "vectorized", False):
            batch.guide(batch.data, masks, **({} if experts is None else {"experts": experts}))
        else:
            batch.guide(dict(batch.data), masks.door_form())
    return tracer.trace


def run_model(
    batch: Batch,
    masks: ObsMask,
    values: Mapping[str, Tensor],
    draws: Draws,
    *,
    feeding: Collection[str] = (),
    outer: Messenger | None = None,
) -> Trace:
    """
    One run of the model at given latents.

    :param masks: which entries it is shown, and scores.
    :param outer: a handler that deals with the modality sites itself; then nothing is scored.
    """
    with ExitStack() as stack:
        tracer = stack.enter_context(poutine.trace())
        if outer is not None:
            stack.enter_context(outer)
            stack.enter_context(ScoreMessenger(()))
        stack.enter_context(_plates(batch, draws))
        stack.enter_context(_Fix(values))
        if not batch.is_story:
            batch.model(dict(batch.data), masks.door_form())
            return tracer.trace
        model: Any = batch.model
        device = next(iter(batch.data.values())).device
        stack.enter_context(data_plate(batch.size, None, device))
        if outer is None:
            observer = _Evaluate(batch.data, masks, batch.names, private=model.private)
            observer.feeding = feeding
            stack.enter_context(observer)
        model.story(**batch.covariates)
    return tracer.trace


def _is_local(site: Site) -> bool:
    return any(f.name == "data" for f in site["cond_indep_stack"])


def _samples(trace: Trace) -> Iterator[tuple[str, Site]]:
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], _Subsample) or site["infer"].get("_deterministic"):
            continue
        yield name, site


def local_latents(trace: Trace) -> dict[str, Site]:
    """The latent sites inside the plate ``data``, in order of sampling."""
    return {
        name: site
        for name, site in _samples(trace)
        if _is_local(site) and not site["is_observed"] and "modality" not in site["infer"]
    }


def global_latents(trace: Trace) -> dict[str, Site]:
    """The latent sites outside the plate ``data``, in order of sampling; not the auxiliary ones of AutoGuides."""
    return {
        name: site
        for name, site in _samples(trace)
        if not _is_local(site) and not site["is_observed"] and not site["infer"].get("is_auxiliary")
    }


def log_proposal(batch: Batch, trace: Trace) -> tuple[dict[str, Tensor], Tensor | float]:  # shape: (K, B)
    """
    The guide's draws, those of global sites too, and log q of the local ones.

    :raises ValueError: for auxiliary sites, under which weights are no density ratios.
    """
    values = {
        name: site["value"]
        for name, site in _samples(trace)
        if not site["is_observed"] and (_is_local(site) or not site["infer"].get("is_auxiliary"))
    }
    total: Tensor | float = 0.0
    for name, site in local_latents(trace).items():
        if site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"guide site {name!r} is auxiliary and inside the plate 'data': its density does not cancel. Fix: "
                "marginalize it; an AutoGuide takes the global sites alone, see pyro_mmvae.guides.WithGlobals."
            )
        total = total + canonical(plain_log_prob(site), batch.nesting)[:, 0]
    return values, total


def log_joint(
    batch: Batch,
    masks: ObsMask,
    values: Mapping[str, Tensor],
    draws: int,
    *,
    feeding: Collection[str] = (),
) -> Tensor:  # shape: (K, B)
    """
    log p(x, z) per draw and row: observed entries and the latents in ``values``.

    Enumerated latents that ``values`` lack are summed out. Other latents it lacks come from the story, and their
    density is left out.

    :raises ValueError: if ``values`` holds a latent that the model does not have.
    """
    with poutine.enum(first_available_dim=-batch.nesting - 3):
        trace = run_model(batch, masks, values, draws, feeding=feeding)
    sites = dict(_samples(trace))
    strange = [name for name in values if name not in sites]
    if strange:
        latents = [name for name in sites if name not in batch.names]
        raise ValueError(f"guide sites {strange} are no latents of the model; its latents are {latents}.")
    counted = {
        name: site
        for name, site in sites.items()
        if _is_local(site)
        and (site["is_observed"] or name in values or site["infer"].get("_enumerate_dim") is not None)
    }
    scores = {name: _scaled(site) for name, site in counted.items()}
    parts = sum_out(trace, counted, scores)
    total = sum(canonical(score, batch.nesting)[:, 0] for score in parts)
    if not isinstance(total, Tensor):
        raise ValueError("model: no site lies inside a plate named 'data'. Fix: give the plate of rows that name.")
    return total.expand(draws, batch.size)


def _scaled(site: Site) -> Tensor:
    """A log-density times the story's own scale, without that of subsampling rows."""
    frame = next(f for f in site["cond_indep_stack"] if f.name == "data")
    full = frame.full_size if frame.full_size is not None else frame.size
    own = site["scale"] * frame.size / full
    score = plain_log_prob(site)
    return score if isinstance(own, float | int) and abs(own - 1.0) < 1e-12 else score * own


def site_scores(batch: Batch, trace: Trace, draws: int) -> dict[str, Tensor]:  # {modality: shape (S, B)}
    """log p(x_m | z) of each modality in a run of the model."""
    sites = {site["infer"]["modality"]: site for _, site in _samples(trace) if "modality" in site["infer"]}
    return {m: canonical(_scaled(s), batch.nesting)[:, 0].expand(draws, batch.size) for m, s in sites.items()}


def draw_discrete(
    batch: Batch,
    masks: ObsMask,
    values: Mapping[str, Tensor],
    draws: int,
    *,
    feeding: Collection[str] = (),
) -> dict[str, Tensor]:
    """
    ``values`` with the story's enumerated latents drawn from their exact conditional given ``values`` and the data.

    Latents that neither draws nor enumerates come from the story. Nothing changes where nothing is enumerated.
    """
    if not _enumerates(batch, values):
        return dict(values)

    def conditioned() -> None:
        with poutine.condition(data=dict(values)):  # observed: Pyro cannot gather latents with event dimensions
            run_model(batch, masks, values, draws, feeding=feeding)

    with poutine.trace() as tracer:
        infer_discrete(conditioned, first_available_dim=-batch.nesting - 3, strict_enumeration_warning=False)()
    drawn = {name: site["value"] for name, site in local_latents(tracer.trace).items()}
    return {**drawn, **values}


def _enumerates(batch: Batch, values: Mapping[str, Tensor]) -> bool:
    if not isinstance(batch.model, torch.nn.Module) or not batch.is_story:
        return not batch.is_story
    latents = batch.model.door.outline(batch.covariates).latents  # type: ignore[union-attr,operator]
    return any(site.enumerated and name not in values for name, site in latents.items())


def outer_form(value: Tensor, site: Site, batch: Batch, draws: int) -> Tensor:  # shape: (S, *plates, B, *event)
    """A local latent's draws without the dimensions that the layout of plates inserts."""
    event = tuple(site["fn"].event_shape)
    used = {f.dim for f in site["cond_indep_stack"] if f.dim is not None}
    value = value.expand(torch.broadcast_shapes(value.shape, (draws, *(1,) * batch.nesting, batch.size, *event)))
    inner = [value.shape[d - len(event)] for d in range(-batch.nesting, -1) if d in used]
    return value.reshape(draws, *inner, batch.size, *event)
