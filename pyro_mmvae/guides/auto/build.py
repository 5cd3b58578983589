"""Networks made to the measure of a story, near its linear-Gaussian approximation from the start.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_mmvae.distributions import Mixture
from pyro_mmvae.guides.auto.coordinates import (
    Coordinates,
    bijection,
    coordinates,
    unconstrained,
    unconstrained_shape,
)
from pyro_mmvae.guides.auto.features import Channels, kinds_of
from pyro_mmvae.guides.auto.graph import views
from pyro_mmvae.guides.auto.look import Look, Program, looking
from pyro_mmvae.guides.auto.messenger import HeadMessenger, LatentsDone
from pyro_mmvae.guides.auto.parts import Measure, OuterSite, Parts, Static
from pyro_mmvae.masks import Data, ObsMask

__all__ = ["build", "home_of"]

_ROWS, _REPEATS = 2048, 24  # of the story's draws that the networks start from; repeats where it has global sites
_FEW = 64  # categories of a covariate


def build(program: Program, home: Tensor, hidden: Sequence[int], flow: int) -> Parts:
    """
    Draw from the program, and make networks that start at the linear-Gaussian approximation of what was drawn.

    :param home: a tensor of their dtype and on their device.
    :raises NotImplementedError: for latents that a guide of Normals cannot answer.
    """
    program.find()
    look = Look.at(program, _ROWS, _REPEATS)
    first = {s: look.traces[0].nodes[s] for s in (*look.latents, *look.outer)}
    for s in look.latents:
        _refuse(s, first[s])
    graph = views(
        look.parents, look.latents, look.modalities, hidden=look.hidden, outer=look.outer, private=look.private
    )
    outer = {s: _outer(first[s]) for s in look.outer if any(s in v.outer for v in graph.values())}
    statics = {s: Static(torch.cat([_flat(t.nodes[s]) for t in look.traces])) for s in look.latents}
    statics |= {s: Static(torch.cat([o.flat(t.nodes[s]["value"]).flatten(0, -2) for t in look.traces]))
                for s, o in outer.items()}  # fmt: skip
    frames = [f for site in first.values() for f in site["cond_indep_stack"] if f.dim is not None]
    nesting = max([1, *(-f.dim for f in frames)])
    if program.story is not None:
        nesting = program.story.door.outline(_covariates(program, _tensors(program.data))).nesting
    sizes = {s: len(statics[s].loc) for s in look.latents}
    mixed = _mixed(program, look, nesting) if look.hidden else {}
    measure = Measure(graph, sizes, outer, look.private, nesting, look.inspected, mixed)
    channels = {m: Channels(_kinds(program, look, m)) for m in look.modalities}
    covariates = _covariate_channels(program)
    for module in (*channels.values(), *covariates.values(), *statics.values()):
        module.to(home)
    parts = Parts(measure, channels, covariates, statics, hidden, flow).to(home)
    parts.all_outer = look.outer
    _start(program, look, parts)
    return parts


def _refuse(site: str, node: Any) -> None:
    fn = node["fn"]
    if fn.support.is_discrete:
        raise NotImplementedError(
            f"auto: latent {site!r} is discrete ({type(fn).__name__}). Fix: mark it infer={{'enumerate': 'parallel'}} "
            "in the story and train with pyro.infer.TraceEnum_ELBO(max_plate_nesting=1): it is then summed out."
        )
    inner = [f.name for f in node["cond_indep_stack"] if f.name != "data" and f.dim is not None]
    if inner:
        raise NotImplementedError(
            f"auto: latent {site!r} lies inside the plates {inner} of the story. Fix: make their dimensions event "
            "dimensions, .expand([size]).to_event(1), or write a guide of your own."
        )


def _outer(node: Any) -> OuterSite:
    plates = tuple(sorted(f.dim for f in node["cond_indep_stack"] if f.dim is not None))
    if node["fn"].support.is_discrete:
        raise NotImplementedError(
            f"auto: global latent {node['name']!r} is discrete. Fix: a guide of your own for this model."
        )
    return OuterSite(node["fn"].event_dim, plates, node["fn"].support)


def _flat(node: Any) -> Tensor:  # shape: (N, D)
    """Draws of a latent in unconstrained space."""
    transform = bijection(node["fn"].support)
    return unconstrained(node["value"], transform, unconstrained_shape(node["fn"], transform))


def _tensors(data: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: x for name, x in data.items() if isinstance(x, Tensor)}


def _covariates(program: Program, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is given with the data and never modeled."""
    names = program.story.covariates if program.story is not None else [n for n in data if n not in program.constants]
    return {name: data[name] for name in names if name in data}


def _covariate_channels(program: Program) -> dict[str, Channels]:
    out = {}
    frames = program.columns
    for name, x in _covariates(program, _tensors(program.data)).items():
        if x.is_floating_point():
            kinds: Any = [("real", 0)] * x[0].numel()
        elif x.dtype == torch.bool:
            kinds = [("sign", 0)] * x[0].numel()
        else:
            levels = frames.get(name, int(x.max()) + 1)
            kinds = [("classes", levels) if levels <= _FEW and int(x.min()) >= 0 else ("real", 0)] * x[0].numel()
        out[name] = Channels(kinds)
        out[name].to(x.dtype if x.is_floating_point() else torch.get_default_dtype()).to(x.device)
        out[name].fit(x.reshape(len(x), -1), torch.ones(len(x), dtype=torch.bool, device=x.device))
    return out


def _kinds(program: Program, look: Look, m: str) -> Any:
    if program.story is not None:
        site = program.story.door.outline(_covariates(program, _tensors(program.data))).modalities[m]
        return kinds_of(site.support, site.event_shape, site.likelihood)
    nodes = look.traces[0].nodes
    fn = nodes[f"{m}_unobserved" if f"{m}_unobserved" in nodes else m]["fn"]
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    kinds = kinds_of(fn.support, fn.event_shape, type(base).__name__)
    count = program.constants[m][0].numel()
    return kinds if len(kinds) == count else kinds[:1] * count


def home_of(program: Program) -> Tensor:
    """A tensor of the dtype and on the device that the guide takes."""
    model = program.model
    own = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    floating = [x for x in (*own, *_tensors(program.data).values()) if x.is_floating_point()]
    return floating[0].detach() if floating else torch.zeros(())


def _mixed(program: Program, look: Look, nesting: int) -> dict[str, int]:
    """Latents whose prior is a mixture, summed-out latents in place, and its number of components."""
    found: dict[str, int] = {}

    def posterior(site: str, prior: Any) -> Any:
        if isinstance(prior, Mixture):
            found[site] = prior.components.batch_shape[0]
        return prior

    data, masks = _sample(program, 2)
    shown = {m: data[m] for m in look.modalities}
    values = look.traces[0].nodes
    shown |= {s: values[s]["value"] for s in look.outer}
    messenger = HeadMessenger(posterior, lambda site, value: None, look.latents, shown, {}, nesting)
    with looking(program.model), suppress(LatentsDone), messenger:
        program.run(data, masks)
    return found


def _sample(program: Program, rows: int) -> tuple[Data, ObsMask]:
    """A few rows in inside form; all rows of the data for native models."""
    if program.story is None:
        return program.prepare(program.data, program.obs_mask, None)
    given = {n: x[:1].expand(rows, *x.shape[1:]) for n, x in _covariates(program, _tensors(program.data)).items()}
    return program.story.prepare(given, None, rows)


def _start(program: Program, look: Look, parts: Parts) -> None:
    """Scales of the channels, and the Gaussian factors from a regression on draws."""
    drawn = {m: [look.modality(t, m) for t in look.traces] for m in look.modalities}
    observed = program.prepare(program.data, program.obs_mask, None) if _has(program, look.modalities) else None
    looked_at: dict[str, Any] = dict(parts.channels.items())
    for m, channels in looked_at.items():
        if observed is not None and m in program.data:
            x, mask = observed[0][m], observed[1][m]
            channels.fit(x.reshape(len(x), -1), mask.reshape(len(x), -1))
        elif None not in drawn[m]:
            x = torch.cat([v.reshape(len(v), -1) for v in drawn[m] if v is not None])
            channels.fit(x, x.new_ones(len(x), dtype=torch.bool))
    if observed is not None or not any(bool(c.scaled.any()) for c in looked_at.values()):
        parts.settle()
    y, f, context = [], [], []
    for i, trace in enumerate(look.traces):
        values = [v for v in (drawn[m][i] for m in look.modalities) if v is not None]
        if len(values) < len(look.modalities) or not look.latents:
            return
        y.append(torch.cat([_standard(parts, s, trace) for s in look.latents], -1))
        rows = len(y[-1])
        f.append(torch.cat([c(v.reshape(rows, -1)) for c, v in zip(looked_at.values(), values, strict=True)], -1))
        given = _tensors(program.data)
        own = parts.given({n: _cycle(given[n], rows) for n in parts.covariates})
        k = parts.context_of(own, {s: trace.nodes[s]["value"] for s in parts.measure.outer})
        context.append(y[-1].new_zeros(rows, 0) if k is None else k.expand(rows, k.shape[-1]))
    every = [torch.cat(x) for x in (y, f, context)]
    good = torch.stack([x.isfinite().all(-1) for x in every]).all(0)
    if int(good.sum()) > 2 * sum(x.shape[-1] for x in (every[0], every[2])):
        parts.factors.regress(*(x[good] for x in every))


def _has(program: Program, modalities: Sequence[str]) -> bool:
    return any(isinstance(program.data.get(m), Tensor) for m in modalities)


def _cycle(x: Tensor, rows: int) -> Tensor:
    return x.index_select(0, torch.arange(rows, device=x.device) % len(x))


def _standard(parts: Parts, site: str, trace: Trace) -> Tensor:  # shape: (N, D)
    node = trace.nodes[site]
    static: Any = parts.statics[site]
    fixed = site in parts.measure.components
    found: Coordinates = coordinates(node["fn"], (static.loc, static.scale), fixed=fixed)
    return found.inverse(node["value"])
