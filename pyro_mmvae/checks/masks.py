"""Laws of masks: what is hidden never matters, every set of modalities has an answer, nothing observed costs nothing.

Layer: checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mmvae.checks.context import Context, Scores, Tried
from pyro_mmvae.checks.report import Finding, broken, holds, note, skipped
from pyro_mmvae.checks.rows import cells, seen_rows, with_content
from pyro_mmvae.checks.runs import ProgramError, Run, Tensors, difference, latents, modality_of, sample_sites
from pyro_mmvae.objectives import Objective

__all__ = ["content_irrelevant", "every_mask_answered", "hidden_not_scored", "nothing_is_free"]

CONTENTS = (float("nan"), 1e30, 0.0, None)  # None: other rows' values
_FILL = "before any network or density sees it, x = torch.where(seen, data[{m!r}], 0.0), seen = obs_mask[{m!r}] with "
_FILL += "the event dimensions of the data."


def content_irrelevant(context: Context) -> Finding:
    """What hidden cells hold changes no draw, no density and no gradient, bit by bit."""
    hidden = [m for m in context.names if m in context.data and _hides(context, m)]
    if not hidden:
        return skipped("no cell of the rows is hidden")
    run, base = context.base
    gradients = context.gradients(context.total(context.scores(context.run())))
    for content in CONTENTS:
        if _effect(context, hidden, content, run, base, gradients) is None:
            continue
        for m in hidden:
            found = _effect(context, [m], content, run, base, gradients)
            if found is not None:
                return _named(context, m, content, found)
    return holds()


def _hides(context: Context, m: str) -> bool:
    return not bool(cells(context.data[m], context.masks[m]).all())


def _named(context: Context, m: str, content: float | None, found: tuple[str, str, int | None, str]) -> Finding:
    program, site, row, what = found
    held = "other rows' values" if content is None else f"{content:g}"
    parameter = site if what == "gradient" else None
    message = f"hidden cells of {m!r} that hold {held} change the {what}"
    return broken(message, _FILL.format(m=m), program=program, site=None if parameter or not site else site,
                  modality=m, parameter=parameter, row=context.row(row))  # fmt: skip


def _effect(
    context: Context,
    names: list[str],
    content: float | None,
    run: Run,
    base: Scores,
    gradients: dict[str, Tensor | None],
) -> tuple[str, str, int | None, str] | None:
    """(program, site or parameter, row, what changed)."""
    data: Tensors = {
        k: with_content(x, context.masks[k], content) if k in names else x for k, x in context.data.items()
    }
    try:
        drawn = context.run(data)
        for name, site in latents(drawn.guide).items():
            if name not in run.values or not torch.equal(site["value"], run.values[name]):
                return "guide", name, None, "draw"
        again = context.scores(drawn)
    except ProgramError as error:
        return error.program, error.site or "", None, f"run: {error}"
    found = difference(base, again, exact=True)
    if found is not None:
        return (*found, "log-density")
    for name, g in context.gradients(context.total(again)).items():
        before = gradients[name]
        if g is not None and before is not None and not torch.equal(g, before):
            return _owner(name), name, None, "gradient"
    return None


def _owner(parameter: str) -> str:
    owner = parameter.split(".")[0].split(" ")[0]
    return owner if owner in ("model", "guide") else "guide"


def hidden_not_scored(context: Context) -> Finding:
    """The likelihood of a modality is 0 in the rows that hide it, and not everywhere."""
    _, found = context.base
    complete = next((t for t in context.tried if t.names == context.names and t.run is not None), None)
    for name, site in sample_sites(context.model_alone).items():
        m = modality_of(name, site, context.names)
        score = found.get(("model", name))
        if m is None or score is None or score.dim() != 1:
            continue
        counted = (score.detach() != 0) & ~seen_rows(context.masks[m]).to(score.device)
        if bool(counted.any()):
            row = context.row(int(counted.nonzero()[0]))
            fix = f"pyro_mmvae.observe, or poutine.mask(mask=obs_mask[{m!r}]) around the site."
            return broken("is scored where obs_mask hides it", fix, program="model", site=name, modality=m, row=row)
        whole = None if complete is None else complete.scores.get(("model", name))
        if whole is not None and context.seen_anywhere(m) and not bool((whole != 0).any()):
            return broken("is scored nowhere, though observed", "poutine.mask lets True through.", program="model",
                          site=name, modality=m)  # fmt: skip
    return holds()


def every_mask_answered(context: Context) -> Finding:
    """The guide answers every set of modalities, nothing included, with finite draws and densities."""
    sites = list(latents(context.guide_alone))
    for tried in sorted(context.tried, key=lambda t: len(t.names)):
        fix = f"let the guide answer when {tried.label} is observed, e.g. with the prior for what has no evidence."
        if tried.error is not None and tried.run is None:
            error = tried.error
            message = f"when {tried.label} is observed, the {error}"
            return broken(message, fix, program=error.program, site=error.site)
        if tried.run is None:
            continue
        found = _not_finite(context, tried)
        if found is not None:
            program, site, row, what = found
            message = f"{what} is not finite when {tried.label} is observed"
            return broken(message, fix, program=program, site=site, modality=context.modality_at(program, site),
                          row=context.row(row))  # fmt: skip
        own = list(latents(tried.run.guide))
        if set(own) != set(sites):
            message = f"it samples {own} when {tried.label} is observed, {sites} otherwise"
            return broken(message, "the same sites under every mask.", program="guide")
    return holds(f"{len(context.tried)} sets")


def _not_finite(context: Context, tried: Tried) -> tuple[str, str, int | None, str] | None:
    if tried.run is not None:
        for name, site in latents(tried.run.guide).items():
            if not bool(site["value"].isfinite().all()):
                return "guide", name, None, "a draw"
    for (program, name), score in tried.scores.items():
        bad = ~score.isfinite()
        if bool(bad.any()):
            return program, name, int(bad.nonzero()[0]) if bad.dim() else None, "a log-density"
    return None


def nothing_is_free(context: Context) -> Finding:
    """Where nothing is observed the posterior is the prior, and the objective 0."""
    tried = next((t for t in context.tried if not t.names), None)
    if tried is None or tried.run is None:
        return skipped("the guide does not answer when nothing is observed")
    if isinstance(context.objective, Objective):
        try:
            loss = context.loss(context.mask_of(()))
        except ProgramError as error:
            return broken(str(error), "let the objective run when nothing is observed.", program="objective")
        if not bool((loss == 0).all()) and not _outside(tried):
            message = f"rows with nothing observed cost {float(loss.detach().sum()):.4g} nats"
            return broken(message, "leave such rows out of regularizers of your own.", program="objective")
    model = latents(tried.run.model)
    drawn = [site for site in model if site not in latents(tried.run.guide)]
    if drawn:
        return skipped(f"the prior is a sum over {drawn}, which the guide leaves out")
    for (program, site), score in tried.scores.items():
        if program != "guide" or site not in model or not score.dim():
            continue
        found = difference({(program, site): score}, {(program, site): tried.scores["model", site]})
        if found is not None:
            message = "where nothing is observed the posterior is not the prior: such rows cost their divergence in "
            message += "stock ELBOs (in this library's objectives they cost nothing)"
            return note(message, "fall back to the prior there, as pyro_mmvae.guides do.", program="guide", site=site)
    return holds()


def _outside(tried: Tried) -> bool:
    """Whether there are global sites, whose densities count however few rows there are."""
    return any(not score.dim() for score in tried.scores.values())
