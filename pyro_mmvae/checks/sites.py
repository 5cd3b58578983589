"""Laws of sites: which there are, in which plate, of which shape and support, and how they are drawn.

Layer: checks.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_mmvae.checks.context import Context
from pyro_mmvae.checks.report import Finding, broken, holds, note, skipped
from pyro_mmvae.checks.runs import ProgramError, Site, latents, modality_of, row_frame, sample_sites
from pyro_mmvae.distributions import base_support, bounds

__all__ = [
    "draws_reparametrized",
    "event_dimensions",
    "is_shape_error",
    "likelihoods_whole",
    "one_plate",
    "programs_run",
    "sites_match",
    "supports_match",
]

_SHAPES = (
    re.compile(r"Shape mismatch inside plate\('(?P<plate>.+?)'\) at site (?P<site>\S+) dim"),
    re.compile(r"modality '(?P<site>.+?)'.*batch shape (?P<shape>\([\d, ]*\))", re.DOTALL),
    re.compile(r"at site \"(?P<site>.+?)\", invalid log_prob shape"),
)


def is_shape_error(error: ProgramError) -> bool:
    """Whether a program stopped because a dimension is no event dimension."""
    return any(pattern.search(str(error.error)) for pattern in _SHAPES)


def programs_run(context: Context) -> Finding:
    """Guide and model run on the data, the model on the guide's draws as well."""
    error = context.problem
    if error is None:
        try:
            context.run(masks=context.full)
        except ProgramError as found:
            error = found
    if error is None:
        return holds()
    if is_shape_error(error):
        return skipped("stopped by event dimensions")
    return broken(str(error), _way_out(error), program=error.program, site=error.site)


def _way_out(error: ProgramError) -> str:
    said = str(error.error)
    if "takes" in said and "argument" in said:
        return "both programs take (data, obs_mask), mappings from names to tensors."
    if "dtype" in said:
        return "data and parameters of one dtype, e.g. x.float()."
    return "make the call model(data, obs_mask) and guide(data, obs_mask) work."


def sites_match(context: Context) -> Finding:
    """Every latent of the model is in the guide or enumerated, and the guide has no other site."""
    model, guide = latents(context.model_alone), latents(context.guide_alone)
    observed = {n: s for n, s in sample_sites(context.model_alone).items() if s["is_observed"]}
    for name, site in model.items():
        if name not in guide and site["infer"].get("enumerate") is None:
            return _missing(name, site, list(guide), context)
    for name, site in guide.items():
        if name in model or site["infer"].get("is_auxiliary"):
            continue
        close = difflib.get_close_matches(name, model, 1)
        fix = f"rename it to {close[0]!r}." if close else "drop it, or mark it infer={'is_auxiliary': True}."
        what = "is observed in the model" if name in observed else "is no latent of the model"
        return broken(f"{name!r} {what}; its latents are {list(model)}", fix, program="guide", site=name)
    for name, site in guide.items():
        if name in model and site["fn"].event_shape != model[name]["fn"].event_shape:
            shape, other = tuple(site["fn"].event_shape), tuple(model[name]["fn"].event_shape)
            message = f"event shape {shape} in the guide, {other} in the model"
            return broken(message, "one shape, by .to_event in both.", program="guide", site=name, shape=shape)
    return _modalities_scored(context, observed)


def _missing(name: str, site: Site, known: list[str], context: Context) -> Finding:
    base = name.removesuffix("_unobserved")
    if base != name and f"{base}_observed" in context.model_alone.nodes:
        message = "Pyro's obs_mask makes this a latent, which the guide lacks: its density biases the bound"
        fix = "pyro_mmvae.handlers.marginalize_missing(model)."
        return broken(message, fix, program="model", site=name, modality=base)
    if not site["fn"].has_rsample and getattr(site["fn"], "has_enumerate_support", False):
        fix = "mark it infer={'enumerate': 'parallel'} and train with TraceEnum_ELBO, or sample it in the guide."
    else:
        close = difflib.get_close_matches(name, known, 1)
        fix = f"sample {name!r} in the guide" + (f", which has {close[0]!r}." if close else ".")
    return broken(f"the guide lacks this latent; it samples {known}", fix, program="guide", site=name)


def _modalities_scored(context: Context, observed: Mapping[str, Site]) -> Finding:
    scored = {modality_of(name, site, context.names) for name, site in observed.items()}
    for m in context.names:
        if m not in scored:
            others = [name for name, site in observed.items() if modality_of(name, site, context.names) is None]
            extra = f"; {others} are factors or sites under other names" if others else ""
            fix = f"pyro.sample({m!r}, ..., obs=data[{m!r}]), masked, or pyro_mmvae.observe(story, modalities)."
            return broken(f"no site of the model scores it{extra}", fix, program="model", modality=m)
    return holds()


def one_plate(context: Context) -> Finding:
    """Rows lie in one plate: the same name, dim, size and scale in both programs, and no site outside by accident."""
    model, guide = context.model_alone, context.guide_alone
    frames = {"model": row_frame(model, context.size), "guide": row_frame(guide, context.size)}
    fix = "with pyro.plate('data', len(x), dim=-1): around the sites of a row, in both programs."
    for program, frame in frames.items():
        needs = sample_sites(model) if program == "model" else _local(guide, model, frames["model"])
        if frame is None and needs:
            message = f"no plate has the {context.size} rows as members"
            return broken(message, fix, program=program, site=next(iter(needs)))
    ours, theirs = frames["model"], frames["guide"]
    for what in ("name", "dim", "size") if theirs is not None else ():
        if getattr(ours, what) != getattr(theirs, what):
            message = f"its {what} is {getattr(theirs, what)!r} in the guide, {getattr(ours, what)!r} in the model"
            return broken(f"plate {ours.name!r}: {message}", fix, program="guide")
    if ours.size != context.size:
        message = f"plate {ours.name!r} has {ours.size} members for {context.size} rows"
        return broken(message, "size: the number of rows of the data.", program="model")
    stray = _outside(context, ours)
    if stray is not None:
        return stray
    scaled = _scales(context, model, guide)
    if scaled is not None:
        return scaled
    if ours.name != "data":
        message = f"the plate of the rows is called {ours.name!r}; objectives and verbs here look for 'data'"
        return note(message, "rename it.")
    own = [n for n, s in latents(model).items() if not _inside(s, ours)]
    return holds(f"global latents: {own}" if own else "")


def _inside(site: Site, frame: Any) -> bool:
    return frame is not None and any(f.name == frame.name for f in site["cond_indep_stack"])


def _local(guide: Trace, model: Trace, frame: Any) -> list[str]:
    inner = {n for n, s in latents(model).items() if _inside(s, frame)}
    return [n for n in latents(guide) if n in inner]


def _outside(context: Context, frame: Any) -> Finding | None:
    fix = f"move it inside, or outside, pyro.plate({frame.name!r}) in both programs."
    for name, site in sample_sites(context.model_alone).items():
        m = modality_of(name, site, context.names)
        if m is not None and not _inside(site, frame):
            message = f"lies outside the plate {frame.name!r}"
            return broken(message, fix, program="model", site=name, modality=m)
    guide = latents(context.guide_alone)
    for name, site in latents(context.model_alone).items():
        if name in guide and _inside(site, frame) != _inside(guide[name], frame):
            where = "inside" if _inside(site, frame) else "outside"
            message = f"lies {where} the plate {frame.name!r} in the model only"
            return broken(message, fix, program="guide", site=name)
    return None


def _scales(context: Context, model: Trace, guide: Trace) -> Finding | None:
    other = latents(guide)
    for name, site in latents(model).items():
        if name in other and not _equal(site["scale"], other[name]["scale"]):
            message = f"scale {_number(other[name]['scale'])} in the guide, {_number(site['scale'])} in the model"
            fix = "open the plate with the same size and subsample in both programs, and scale both alike."
            return broken(message, fix, program="guide", site=name)
    return None


def _equal(a: Any, b: Any) -> bool:
    return bool(torch.allclose(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)))


def _number(scale: Any) -> str:
    return f"{float(scale):.4g}" if not isinstance(scale, Tensor) or scale.numel() == 1 else "by row"


def likelihoods_whole(context: Context) -> Finding:
    """The density of every modality counts as often as its rows do: no mean over features, no weight of its own."""
    frame = row_frame(context.model_alone, context.size)
    plate = 1.0 if frame is None or frame.full_size is None else frame.full_size / frame.size
    for name, site in sample_sites(context.model_alone).items():
        m = modality_of(name, site, context.names)
        if m is None or _equal(site["scale"], plate):
            continue
        features = site["fn"].event_shape.numel()
        mean = features > 1 and _equal(site["scale"], plate / features)
        why = f", one over its {features} features: a mean, not a density" if mean else ""
        fix = "sum over features; weights between modalities belong to the objective, Term(rescale=...)."
        message = f"the log-density counts {_number(site['scale'])} times, the rows {plate:.4g} times{why}"
        return broken(message, fix, program="model", site=name, modality=m)
    return holds()


def event_dimensions(context: Context) -> Finding:
    """Every log-density has one number per member of the site's plates."""
    if context.problem is not None:
        return _leak_that_stopped(context, context.problem)
    for program, found in (("model", context.model_alone), ("guide", context.guide_alone)):
        for name, site in sample_sites(found).items():
            expected = _plate_shape(site)
            try:
                shape = tuple(site["fn"].batch_shape)
            except NotImplementedError:
                continue
            wide = [(i, k) for i, k in enumerate(reversed(shape), 1) if k not in (1, expected.get(-i, 1))]
            if wide:
                dims = len(shape) - max((-d for d in expected), default=0)
                full = (*shape, *site["fn"].event_shape)
                m = modality_of(name, site, context.names)
                return broken(
                    f"batch shape {shape}, but its plates have {_sizes(expected)}: a dimension counts as rows",
                    f".to_event({max(dims, 1)}), and [..., i] or keepdim so that rows stay at dim -1."
                    if expected
                    else "with pyro.plate('data', len(x), dim=-1): around it, or .to_event.",
                    program=program, site=name, modality=m, shape=full,
                )  # fmt: skip
    return holds()


def _plate_shape(site: Site) -> dict[int, int]:
    return {f.dim: f.size for f in site["cond_indep_stack"] if f.vectorized}


def _sizes(plates: Mapping[int, int]) -> str:
    shape = [plates.get(d, 1) for d in range(min(plates, default=0), 0)]
    return f"shape {tuple(shape)}" if shape else "no dimension"


def _leak_that_stopped(context: Context, error: ProgramError) -> Finding:
    for pattern in _SHAPES:
        found = pattern.search(str(error.error))
        if found is not None:
            site = found["site"]
            m = site if site in context.names or site in context.raw else None
            message = " ".join(str(error.error).split("\n")[0].split())
            fix = ".to_event(k): all dimensions of a site but the rows are event dimensions."
            return broken(message, fix, program=error.program, site=site, modality=m)
    return skipped(f"the programs do not run: {error}")


def supports_match(context: Context) -> Finding:
    """The guide draws every latent inside the support that the model gives it."""
    model, guide = latents(context.model_alone), latents(context.guide_alone)
    for name, site in guide.items():
        if name not in model:
            continue
        want, have = model[name]["fn"].support, site["fn"].support
        if any(b.dim() for b in bounds(want)):  # bounds that may be those of this very draw
            run = context.run(masks=context.full)
            want, draws = latents(run.model)[name]["fn"].support, run.values[name]
        else:
            draws = _draws(site)
        good = torch.as_tensor(want.check(draws))
        point = type(_base(site["fn"])).__name__ == "Delta"
        everywhere = str(base_support(have)) in ("Real()", "RealVector()")
        narrow = str(base_support(want)) not in ("Real()", "RealVector()") and not base_support(want).is_discrete
        if bool(good.all()) and not (everywhere and narrow and not point):
            continue
        bad = draws[~good][0].flatten()[:3].tolist() if not bool(good.all()) and good.shape == draws.shape else None
        example = "" if bad is None else f", for example {bad[0]:.4g}"
        family = type(_base(site["fn"])).__name__
        message = f"the guide's {family} draws from {base_support(have)}, the model's support is {base_support(want)}"
        fix = "a distribution on that support, e.g. LogNormal on positive values, or dist.TransformedDistribution(q, "
        fix += "biject_to(support))."
        return broken(message + example, fix, program="guide", site=name)
    return holds()


def _draws(site: Site) -> Tensor:
    """A hundred draws, or the one that is there."""
    try:
        with torch.no_grad():
            draws: Tensor = site["fn"].sample(torch.Size([100]))
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return torch.as_tensor(site["value"])
    return draws


def _base(fn: Any) -> Any:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def draws_reparametrized(context: Context) -> Finding:
    """Continuous latents have reparametrized draws; others get noisy gradients, and need another objective."""
    for name, site in latents(context.guide_alone).items():
        fn = site["fn"]
        if fn.has_rsample or site["infer"].get("enumerate") is not None:
            continue
        kind = "discrete" if base_support(fn.support).is_discrete else "continuous"
        message = f"{kind}, drawn by {type(_base(fn)).__name__} without reparametrization: score-function gradients"
        fix = "enumerate it" if kind == "discrete" else "a reparametrized family"
        fix += ", or TraceGraph_ELBO."
        return note(message, fix, program="guide", site=name)
    return holds()
