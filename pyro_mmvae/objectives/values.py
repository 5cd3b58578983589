"""The value of every term, per particle and sample, from one run of guide and model.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_mmvae.distributions import map_params
from pyro_mmvae.objectives.gates import with_parameters_detached
from pyro_mmvae.objectives.kl import known_kl
from pyro_mmvae.objectives.passes import Programs, Sites, canonical, sites_of
from pyro_mmvae.objectives.table import Structure, Table
from pyro_mmvae.objectives.term import Gate

__all__ = ["Options", "Run", "at_draws", "run", "term_values"]

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
        """log p - log q of the sites outside the plate ``data``."""
        latents = [self.model.outside[s] - q for s, q in self.guide.outside.items() if s in self.model.outside]
        others = [p for s, p in self.model.outside.items() if s not in self.guide.outside]
        return sum([*latents, *others])  # type: ignore[return-value]


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
    guide = posterior()
    _require_reparametrized(guide)
    chosen = guide.private_to if options.stop_q == "private" else guide.values
    hooks = {site: options.hook for site in chosen}
    values = {site: _prepared(site, z, gate, hooks.get(site)) for site, z in guide.values.items()}
    if options.stop_q:
        without = stopped(values)
        without.log_prob = {**guide.log_prob, **{site: without.log_prob[site] for site in chosen}}
        guide = without
    elif "z" in gate:
        guide = posterior(values)
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
        out.prior_divergence = _against_priors(programs, table, out, values, analytic, own)
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
    for site, fn in guide.fns.items():
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
            raise ValueError(f"guide site {site!r} is no latent of the model; its latents are {list(model.fns)}.")
        known = known_kl(fn, model.fns[site]) if analytic else None
        if known is None:
            out[site] = guide.log_prob[site] - model.log_prob[site]
        else:
            out[site] = canonical(known, nesting)
    for site, fn in model.fns.items():
        if site not in guide.fns and not fn.has_rsample:
            raise NotImplementedError(
                f"latent {site!r} is discrete and not in the guide: its prior would get no gradient. Fix: mark it "
                "infer={'enumerate': 'parallel'} and use pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)."
            )
    return out


def _against_priors(
    programs: Programs,
    table: Table,
    done: Run,
    values: Mapping[str, Tensor],
    analytic: bool,
    experts: Any,
) -> dict[str, Tensor]:  # (K or 1, J', B)
    """log q - log r for the terms whose prior is the guide's q(z | x_T)."""
    structure = table.structure
    position = torch.tensor([structure.draws[j] for j in structure.priors], device="cpu")
    groups = _together(programs, structure)
    out: dict[str, list[Tensor]] = {}
    for members in groups:
        program, rows = structure.programs[members[0]], torch.tensor(members, device="cpu")
        drawn = {s: at_draws(z, done.guide.fns[s], position[rows], programs.nesting) for s, z in values.items()}
        owners = structure.owners[1]
        owners = None if owners is None else tuple(owners[i] for i in members)
        chosen = table.prior[rows]  # type: ignore[index]  # only called where there are priors
        masks = programs.masks(chosen, largest=structure.largest[1], owners=owners)

        def ask(
            masks: Any = masks, rows: Tensor = rows, drawn: Mapping[str, Tensor] = drawn, program: Any = program
        ) -> Sites:
            trace = programs.run_guide(
                masks, len(rows), values=drawn, experts=experts, component=False, program=program
            )
            return sites_of(trace, programs.nesting)

        both = [programs.guide, programs.model] + ([] if program is None else [program])
        r = with_parameters_detached(both, ask) if "prior" in structure.gates[0] else ask()
        for site, fn in done.guide.fns.items():
            q = _take_draws(fn, position[rows], len(structure.gates), programs.nesting) if analytic else None
            known = None if q is None else known_kl(q, r.fns[site])
            if known is None:
                log_q = done.guide.log_prob[site]
                log_q = log_q if log_q.shape[1] == 1 else log_q[:, position[rows]]
                value = log_q - r.log_prob[site]
            else:
                value = canonical(known, programs.nesting)
            out.setdefault(site, []).append(value.expand(-1, len(rows), -1))
    whole = {site: torch.cat(parts, 1) for site, parts in out.items()}
    order = [i for members in groups for i in members]
    if order == sorted(order):
        return whole
    place = torch.tensor([order.index(i) for i in range(len(order))], device="cpu")
    return {site: value.index_select(1, place.to(value.device)) for site, value in whole.items()}


def _together(programs: Programs, structure: Structure) -> list[list[int]]:
    """Terms with priors of their own that are run at once: those of one program, or each alone."""
    if not programs.vectorized:
        return [[i] for i in range(len(structure.priors))]
    groups: dict[Any, list[int]] = {}
    for i, program in enumerate(structure.programs):
        alone = program is not None and not getattr(program, "vectorized", False)
        groups.setdefault((program, i if alone else None), []).append(i)
    return list(groups.values())


def at_draws(z: Tensor, fn: Any, position: Tensor, nesting: int) -> Tensor:
    """Draws at the given positions of the terms dimension; a single draw serves all."""
    dim = nesting + 1 + len(fn.event_shape)
    z = z.reshape((1,) * (dim - z.dim()) + z.shape)
    axis = z.dim() - dim
    if z.shape[axis] == 1:
        return z.expand((*z.shape[:axis], len(position), *z.shape[axis + 1 :]))
    return z.index_select(axis, position.to(z.device))


def _take_draws(fn: Any, position: Tensor, count: int, nesting: int) -> Any:
    """The distributions at given draws; None for classes whose parameters cannot be taken apart."""
    if count == 1:
        return fn

    def take(p: Tensor, constraint: Any, event_dim: int) -> Tensor:
        axis = p.dim() - event_dim - nesting - 1
        return p if axis < 0 or p.shape[axis] == 1 else p.index_select(axis, position.to(p.device))

    try:
        return map_params(fn, take)
    except NotImplementedError:
        return None


def term_values(
    table: Table,
    done: Run,
    names: tuple[str, ...],
    batch: int,
) -> Tensor:  # shape: (K or 1, J, B)
    r"""
    Value of each term before its weight.

    .. math:: \sum_{m \in A} \lambda_m \log p(x_m \mid z) + \sum_{\text{sites}} \beta \, (\log r - \log q)

    where :math:`\log r - \log q` is minus the KL divergence where that is known.
    """
    structure = table.structure
    picked = _Picker(structure)
    total: Tensor | float = 0.0
    for i, m in enumerate(names):
        if m not in done.model.log_lik:
            continue
        score = picked(done.model.log_lik[m])
        if not structure.whole_target[i]:
            score = torch.where(table.target[:, :, i].to(score.device), score, 0.0)
        if table.rescale is not None:
            score = score * table.rescale[:, :, i].to(score)
        total = total + score
    for site, divergence in done.divergence.items():
        value = picked(divergence)
        if site in done.prior_divergence:
            value = _replaced(value, done.prior_divergence[site], structure, batch)
        plain = site in structure.plain_beta or (site not in table.beta and "" in structure.plain_beta)
        total = total - (value if plain else value * table.beta.get(site, table.beta[""]).to(value))
    for factor in done.model.factors.values():
        total = total + picked(factor)
    if not isinstance(total, Tensor):
        raise ValueError("The programs share no latent and no modality: nothing to score.")
    return total.expand(total.shape[0], len(structure.draws), batch)


def _replaced(
    value: Tensor,  # shape: (K or 1, J or 1, B or 1)
    own: Tensor,  # shape: (K or 1, J', B)
    structure: Structure,
    batch: int,
) -> Tensor:  # shape: (K or 1, J, B)
    """Divergences to the story's prior, replaced in the terms that have a prior of their own."""
    particles = max(value.shape[0], own.shape[0])
    value = value.expand(particles, len(structure.draws), batch)
    own = own.expand(particles, -1, batch)
    index = torch.tensor(structure.priors, device=value.device)
    return value.index_copy(1, index, own)


class _Picker:
    """From draws to terms."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure

    def __call__(self, score: Tensor) -> Tensor:  # (K, U, B) -> (K, J, B)
        if self.structure.one_to_one or score.shape[1] == 1:
            return score
        return score.index_select(1, torch.tensor(self.structure.draws, device=score.device))
