"""Laws of rows: no row hears of another one, particles vectorize, modes of networks.

Layer: checks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_mmvae.checks.context import Context, Scores
from pyro_mmvae.checks.report import Finding, broken, holds, note, skipped
from pyro_mmvae.checks.runs import ProgramError, Run, difference, latents, sample_sites
from pyro_mmvae.checks.state import Snapshot
from pyro_mmvae.stories import ObservedModel

__all__ = ["modes_agree", "particles_vectorize", "rows_independent"]

PARTICLES = 3
_NOISY = "two runs on the same draws differ, so nothing can be compared: see training and evaluation agree"
_FIX = "no statistic over dim 0 (BatchNorm, mean(0), argmax over the batch) and no missing dim= argument."


def rows_independent(context: Context) -> Finding:
    """Changing one row leaves the others' densities; a batch is the sum of its rows."""
    norms = _batch_norms(context)
    if context.size < 2:
        return skipped("there is one row")
    if context.noisy is not None:
        return skipped(_NOISY)
    run, base = context.base  # if this fails, the law says nothing
    try:
        found = _leak(context, run, base)
    except ProgramError as error:
        if "more than 1 value per channel" in str(error.error) or "BatchNorm" in str(error.error):
            return broken(f"networks normalize over the batch: {error}", f"LayerNorm in place of BatchNorm; {_FIX}",
                          program=error.program, site=error.site)  # fmt: skip
        return broken(f"fails on fewer rows or other masks: {error}", "shapes from the data, not from outside.",
                      program=error.program, site=error.site)  # fmt: skip
    if found is None:
        return holds("in evaluation mode" if context.mode == "evaluation" else "")
    program, site, row, how = found
    fix = f"LayerNorm in place of {norms[0]}." if norms else _FIX
    return broken(how, fix, program=program, site=site, modality=context.modality_at(program, site),
                  row=context.row(row))  # fmt: skip


def _batch_norms(context: Context) -> list[str]:
    parts = [p for m in context.networks.values() for p in m.modules()]
    return [type(p).__name__ for p in parts if isinstance(p, nn.modules.batchnorm._BatchNorm)]


def _leak(context: Context, run: Run, base: Scores) -> tuple[str, str, int | None, str] | None:
    last = context.size - 1
    for changed in (0, last):
        other = (changed + context.size // 2) % context.size
        data = {k: _copied(x, changed, other, context.size) for k, x in context.data.items()}
        masks = {k: _copied(x, changed, other, context.size) for k, x in context.masks.items()}
        again = context.scores(context.run(data, masks, values=run.values))
        kept = [n for n in range(context.size) if n != changed]
        found = difference(_rows(base, kept), _rows(again, kept))
        if found is not None:
            row = None if found[2] is None else kept[found[2]]
            message = f"its log-density changes when row {context.row(changed)} does"
            return found[0], found[1], row, message
    for n in (0, context.size // 2):
        alone = context.scores(_single(context, run.values, n), size=1)
        found = difference(_rows(base, [n]), {k: s for k, s in alone.items() if s.dim()})
        if found is not None:
            return found[0], found[1], n, "its log-density is another one when the row comes alone"
    return None


def _copied(x: Tensor, row: int, other: int, size: int) -> Tensor:
    if not x.dim() or len(x) != size:
        return x
    out = x.clone()
    out[row] = x[other]
    return out


def _rows(found: dict[tuple[str, str], Tensor], rows: list[int]) -> dict[tuple[str, str], Tensor]:
    """Rows of the sites inside the plate of the rows."""
    return {key: s[..., rows] for key, s in found.items() if s.dim()}


def _single(context: Context, values: dict[str, Tensor], n: int) -> Run:
    run, _ = context.base
    at = torch.tensor([n])
    size = context.size

    def one(x: Tensor) -> Tensor:
        return x[n : n + 1] if x.dim() and len(x) == size else x

    drawn = context.taken(context.taken(values, run.guide, at), run.model, at)
    data = {k: one(x) for k, x in context.data.items()}
    return context.run(data, {k: one(x) for k, x in context.masks.items()}, values=drawn)


def particles_vectorize(context: Context) -> Finding:
    """Under a plate of particles every density is that of the same draws, taken one by one."""
    if context.noisy is not None:
        return skipped(_NOISY)
    run, _ = context.base
    plates = [f.dim for t in (run.guide, run.model) for s in sample_sites(t).values() for f in s["cond_indep_stack"]]
    dim = min((d for d in plates if d is not None), default=0) - 1
    fix = "index from the right, z[..., i] and dim=-1: plates may be added on the left."
    try:
        wide = context.run(particles=(PARTICLES, dim))
        together = context.scores(wide, lead=dim)
    except ProgramError as error:
        return broken(f"under a plate of particles {error}", fix, program=error.program, site=error.site)
    for k in range(PARTICLES):
        values = {name: _particle(value, k, dim, wide, run, name) for name, value in wide.values.items()}
        try:
            alone = context.scores(context.run(values=values))
        except ProgramError as error:
            return broken(f"with one particle's draws {error}", fix, program=error.program, site=error.site)
        own = {key: s[k] if s.dim() and s.shape[0] == PARTICLES else s for key, s in together.items()}
        found = difference(own, alone)
        if found is not None:
            program, site, row = found
            message = "its log-density under a plate of particles is not that of the same draws taken one by one"
            return broken(message, fix, program=program, site=site, modality=context.modality_at(program, site),
                          row=context.row(row))  # fmt: skip
    return holds()


def _particle(value: Tensor, k: int, dim: int, wide: Run, run: Run, name: str) -> Tensor:
    """One particle's value of a site, shaped as without the plate."""
    shape = run.values[name].shape
    site = latents(wide.guide).get(name) or latents(wide.model)[name]
    at = dim - site["fn"].event_dim
    if value.dim() >= -at and value.shape[at] == PARTICLES:
        value = value.select(at, k)
    return value.reshape(shape) if value.numel() == shape.numel() else value


def modes_agree(context: Context) -> Finding:
    """Whether training and evaluation mode differ, as with dropout and BatchNorm, and whether noise remains in both."""
    if context.noisy is not None:
        program, site = context.noisy
        message = "in evaluation mode, too, two runs on the same draws give it other densities: numbers are drawn that "
        message += "are no sites (torch.randn, rsample())"
        if program == "model" and not isinstance(context.model, ObservedModel):
            fix = "pyro.sample(...) for what is latent; nothing for hidden entries that handlers.observe(draw=) draws."
            return note(message, fix, program=program, site=site)
        return broken(message, "pyro.sample(...) for what is latent.", program=program, site=site)
    run, base = context.base
    modules = [p for m in context.networks.values() for p in m.modules()]
    kept = Snapshot(context.networks)
    try:
        for part in modules:
            part.training = False
        found = difference(base, context.scores(context.run(values=run.values)))
    except ProgramError as error:
        return broken(f"in evaluation mode {error}", "make both modes run.", program=error.program, site=error.site)
    finally:
        kept.restore()
    random = context.mode == "evaluation" or any(isinstance(p, nn.modules.dropout._DropoutNd) and p.p for p in modules)
    if found is None and not random:
        return holds()
    if found is None:
        return note("networks draw in training (dropout); laws were checked without", "call .eval() before using it.")
    message = "densities in training and evaluation mode differ (BatchNorm, or a mode of its own)"
    return note(message, "call .eval() before using it.", program=found[0], site=found[1])

