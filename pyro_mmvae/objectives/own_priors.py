"""Divergences from priors that are programs: the guide under another mask, or one of a term's own.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.distributions import map_params
from pyro_mmvae.objectives.gates import with_parameters_detached
from pyro_mmvae.objectives.kl import known_kl
from pyro_mmvae.objectives.passes import Programs, Sites, canonical, sites_of
from pyro_mmvae.objectives.table import Structure, Table

__all__ = ["against_priors", "at_draws"]


def against_priors(
    programs: Programs,
    table: Table,
    guide: Sites,
    values: Mapping[str, Tensor],
    analytic: bool,
    experts: Any,
) -> dict[str, Tensor]:  # (K or 1, J', B)
    """
    log q - log r, or the closed-form KL, for the terms whose prior is q(z | x_T) of the guide or of another program.

    :param guide: what the guide left behind at its draws.
    :param values: latent site -> those draws.
    """
    structure = table.structure
    position = torch.tensor([structure.draws[j] for j in structure.priors], device="cpu")
    groups = _together(programs, structure)
    out: dict[str, list[Tensor]] = {}
    for members in groups:
        program, rows = structure.programs[members[0]], torch.tensor(members, device="cpu")
        drawn = {
            s: at_draws(z, guide.fns[s], position[rows], programs.nesting) if s in guide.fns else z
            for s, z in values.items()
        }
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
        for site, fn in guide.fns.items():
            q = _take_draws(fn, position[rows], len(structure.gates), programs.nesting) if analytic else None
            known = None if q is None else known_kl(q, r.fns[site])
            if known is None:
                log_q = guide.log_prob[site]
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
