"""One run of guide and model over a table, and the divergences at its draws.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_mmvae.objectives.gates import with_parameters_detached
from pyro_mmvae.objectives.kl import known_kl
from pyro_mmvae.objectives.own_priors import against_priors
from pyro_mmvae.objectives.passes import Programs, Sites, canonical, sites_of
from pyro_mmvae.objectives.table import Table
from pyro_mmvae.objectives.term import Gate

__all__ = ["Options", "Run", "run"]

Hook = Callable[[str, Tensor], Tensor]


@dataclass
class Options:
    """
    How programs are run.

    :ivar analytic: closed-form KL divergences where they are known.
    :ivar stop_q: densities of q with detached parameters; draws stay reparametrized. "private": of private latents.
    :ivar hook: applied to each draw whose density stops, before anything is evaluated at it.
    """

    analytic: bool = True
    stop_q: bool | Literal["private"] = False
    hook: Hook | None = None


@dataclass
class Run:
    """
    Guide and model at the draws of a table whose terms have the same gates.

    :ivar guide: densities of the guide's sites.
    :ivar model: densities of the model's sites and of the scored modalities.
    :ivar divergence: latent site -> log q - log p, or the closed-form KL, ``(K or 1, U, B)``.
    :ivar prior_divergence: the same against r, for the terms that have one, ``(K or 1, J', B)``.
    :ivar values: latent site -> the draws at which everything was evaluated, in the programs' own layout.
    :ivar counted: site with an auxiliary prior -> the rows ``(U, B)`` where its densities count.
    """

    guide: Sites
    model: Sites
    divergence: dict[str, Tensor] = field(default_factory=dict)
    prior_divergence: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    counted: dict[str, Tensor] = field(default_factory=dict)

    @property
    def outside(self) -> Tensor | float:
        """
        log p - log q of the sites outside the plate ``data``: auxiliary ones, whose densities Pyro's AutoGuides carry,
        and factors count; a latent that the guide lacks is neutral.
        """
        neutral = [s for s in self.model.global_fns if s not in self.guide.outside]
        return sum(  # type: ignore[return-value]
            [p for s, p in self.model.outside.items() if s not in neutral]
            + [-q for q in self.guide.outside.values()]
        )


def run(programs: Programs, table: Table, options: Options, experts: Any) -> Run:
    """
    Run both programs once.

    :param table: terms whose draws have the same gates; a single draw if the guide does not answer masks with
        leading dimensions.
    :param experts: what ``guide.encode`` returned, or None.
    """
    structure = table.structure
    gate, count = structure.gates[0], len(structure.gates)
    private = table.private if structure.own_private else None
    known: dict[str, Any] = {"largest": structure.largest[0], "owners": structure.owners[0]}
    masks = programs.masks(table.source, private, needed=structure.empty, **known)
    detached = None if experts is None else {site: e.detach() for site, e in experts.items()}

    def sample(values: Mapping[str, Tensor] | None = None, experts: Any = experts) -> Sites:
        trace = programs.run_guide(masks, count, values=values, experts=experts)
        return sites_of(trace, programs.nesting)

    def stopped(values: Mapping[str, Tensor] | None = None) -> Sites:  # the guide re-runs the story: both stop
        return with_parameters_detached([programs.guide, programs.model], lambda: sample(values, detached))

    posterior = stopped if "posterior" in gate else sample
    first = programs.first.get(gate)
    guide = posterior(None if first is None else {site: first.values[site] for site in first.global_fns})
    _require_reparametrized(guide)
    chosen = guide.private_to if options.stop_q == "private" else guide.fns
    hooks = {site: options.hook for site in chosen}
    values = {site: _prepared(site, z, gate, hooks.get(site)) for site, z in guide.values.items()}
    if options.stop_q:
        without = stopped(values)
        without.log_prob = {**guide.log_prob, **{site: without.log_prob[site] for site in chosen}}
        guide = without
    elif "z" in gate:
        guide = posterior(values)
    guide.outside = programs.first.setdefault(gate, guide).outside  # the density that drew the global sites
    model = _score(programs, table, values, gate)
    _require_equal_scales(guide, model)
    analytic = options.analytic and not options.stop_q
    out = Run(guide, model, values=values)
    out.divergence = _divergences(guide, model, analytic and _same_order(guide, model), programs.nesting)
    for site, where in guide.counts.items():
        divergence, owner = out.divergence[site], guide.private_to[site]
        inferred = table.private[:, :, programs.names.index(owner)].to(divergence.device, non_blocking=True)
        out.counted[site] = inferred if where == "inferred" else programs.obs_mask.rows[owner].expand_as(inferred)
        out.divergence[site] = torch.where(out.counted[site], divergence, 0.0)
    if table.prior is not None:
        own = detached if "prior" in gate else experts
        out.prior_divergence = against_priors(programs, table, guide, values, analytic, own)
    return out


def _prepared(site: str, z: Tensor, gate: frozenset[Gate], hook: Hook | None) -> Tensor:
    z = z.detach() if "z" in gate else z
    return z if hook is None else hook(site, z)


def _score(programs: Programs, table: Table, values: Mapping[str, Tensor], gate: frozenset[Gate]) -> Sites:
    target = programs.targets(table.scored)

    def score() -> Sites:
        return sites_of(programs.run_model(values, len(table.structure.gates), target), programs.nesting)

    if not gate & {"decoder", "prior"}:
        return score()
    frozen = with_parameters_detached([programs.model], score)
    if gate >= {"decoder", "prior"}:
        return frozen
    free = score()
    free.log_lik, frozen.log_lik = frozen.log_lik, free.log_lik
    return free if "decoder" in gate else frozen


def _require_reparametrized(guide: Sites) -> None:
    if guide.factors:
        raise NotImplementedError(
            f"guide sites {list(guide.factors)} are observed or factors: an objective that divides by q per sample "
            "cannot use them. Fix: a normalized distribution, e.g. dist.TransformedDistribution, at the latent itself."
        )
    for site, fn in {**guide.fns, **guide.global_fns}.items():
        if not fn.has_rsample:
            raise NotImplementedError(
                f"latent {site!r}: {type(fn).__name__} has no reparametrized draws, which this objective needs. Try "
                "one of the following fixes:\n1. pyro.infer.TraceGraph_ELBO() with this model and guide\n"
                "2. leave the site out of the guide, mark it infer={'enumerate': 'parallel'} in the story, and use "
                "pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)"
            )


def _require_equal_scales(guide: Sites, model: Sites) -> None:
    if guide.fns and abs(guide.scale - model.scale) > 1e-9 * model.scale:
        raise ValueError(
            f"The plate 'data' has scale {guide.scale:g} in the guide and {model.scale:g} in the model. Fix: open it "
            "with the same size in both, e.g. pyro_mmvae.stories.data_plate(batch, size), or drop size= in observe."
        )


def _same_order(guide: Sites, model: Sites) -> bool:
    """Whether guide and model sample their common latents in one order: only then are conditional KLs exact."""
    return [s for s in guide.fns if s in model.fns] == [s for s in model.fns if s in guide.fns]


def _divergences(guide: Sites, model: Sites, analytic: bool, nesting: int) -> dict[str, Tensor]:
    out = {}
    for site, fn in guide.fns.items():
        if site not in model.fns:
            _refuse_site(site, guide, model)
        known = known_kl(fn, model.fns[site]) if analytic else None
        if known is None:
            out[site] = guide.log_prob[site] - model.log_prob[site]
        else:
            out[site] = canonical(known, nesting)
    for site in guide.global_fns:
        if site not in model.global_fns and site not in guide.auxiliary:
            _refuse_site(site, guide, model)
    for site, fn in {**model.fns, **model.global_fns}.items():
        if site not in guide.fns and site not in guide.global_fns and not fn.has_rsample:
            raise NotImplementedError(
                f"latent {site!r} is discrete and not in the guide: its prior would get no gradient. Fix: mark it "
                "infer={'enumerate': 'parallel'} and use pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)."
            )
    return out


def _refuse_site(site: str, guide: Sites, model: Sites) -> None:
    """
    Say what is wrong with a guide's site that is no latent of the model in the same place.

    :raises NotImplementedError: for an auxiliary site per sample.
    :raises ValueError: otherwise.
    """
    if site in guide.auxiliary:
        raise NotImplementedError(
            f"guide site {site!r} is auxiliary and inside the plate 'data': an AutoGuide over latents of single "
            "samples answers no mask. Fix: leave it the global sites, AutoNormal(poutine.block(model, expose=[...])), "
            "and guide the others by hand or by pyro_mmvae.guides; pyro_mmvae.guides.WithGlobals joins the two."
        )
    known = f"its latents are {list(model.fns)}"
    if model.global_fns or site in guide.global_fns:
        known += f" inside the plate 'data' and {list(model.global_fns)} outside of it"
    raise ValueError(f"guide site {site!r} is no latent of the model; {known}.")
