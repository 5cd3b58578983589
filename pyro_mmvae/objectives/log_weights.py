"""Importance log-weights of a table's draws, with the density of the drawing component or of the whole mixture.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.objectives.gates import with_parameters_detached
from pyro_mmvae.objectives.own_priors import at_draws
from pyro_mmvae.objectives.passes import Programs, sites_of
from pyro_mmvae.objectives.run import Run
from pyro_mmvae.objectives.table import Table
from pyro_mmvae.objectives.values import term_values

__all__ = ["LogWeights", "log_weights"]


@dataclass
class LogWeights:
    """
    :ivar log_w: log-weights ``(K, J, B)``, nats.
    :ivar weight: c, ``(J, B)``, 0 where a term is not valid.
    :ivar log_rho: responsibilities of every component l for every draw, ``(K, J, L, B)``; None without mixture.
    """

    log_w: Tensor
    weight: Tensor
    log_rho: Tensor | None


def log_weights(
    programs: Programs,
    table: Table,
    done: Run,
    values: Mapping[str, Tensor],
    *,
    mixture: bool,
    stop_q: bool,
    experts: Any,
) -> LogWeights:
    r"""
    .. math:: \log w_{jk} = \sum_{m \in A_j} \lambda_m \log p(x_m \mid z_{jk}) + \beta \log \frac{p(z_{jk})}{q(z_{jk})}

    with q the density of the component that drew z, or of the mixture :math:`\sum_l c_l q_l` (shared latents only).

    :param values: latent site -> draws at which ``done`` was evaluated.
    """
    log_rho = None
    if mixture:
        if not table.structure.one_to_one:
            raise NotImplementedError("density='mixture' needs one term per draw. Fix: a table of single components.")
        shared = [site for site in done.guide.fns if site not in done.guide.private_to]
        cross = _cross_densities(programs, table, done, values, shared, stop_q, experts)  # (K, J, L, B)
        scored = cross + _mixture_log_weights(table.weight, cross)
        log_mix = scored.logsumexp(2)
        log_rho = scored - log_mix.unsqueeze(2)
        own = sum(done.guide.log_prob[site] for site in shared)
        first = shared[0]
        done.divergence[first] = done.divergence[first] + log_mix - own
    value = term_values(table, done, programs.names, programs.data.size)
    shape = (programs.num_particles, *value.shape[1:])
    return LogWeights(value.expand(shape), table.weight.to(value), log_rho)


def _mixture_log_weights(weight: Tensor, like: Tensor) -> Tensor:  # shape: (L, B)
    """log c, normalized over the valid components; uniform where no component is."""
    weight = weight.to(like)
    total = weight.sum(0)
    return torch.where(total > 0, weight / total.masked_fill(total == 0, 1.0), 1.0 / len(weight)).log()


def _cross_densities(
    programs: Programs,
    table: Table,
    done: Run,
    values: Mapping[str, Tensor],
    shared: list[str],
    stop_q: bool,
    experts: Any,
) -> Tensor:  # shape: (K, J, L, B)
    """log q_l(z_j) for all pairs, by one run of the guide on J * L rows."""
    count = len(table.structure.gates)
    if not programs.vectorized:
        raise NotImplementedError(
            "density='mixture' needs a guide that answers masks with leading dimensions, such as those of "
            "pyro_mmvae.guides."
        )
    position = torch.arange(count, device="cpu").repeat_interleave(count)
    fns = done.guide.fns  # global sites have one draw for all
    drawn = {s: at_draws(z, fns[s], position, programs.nesting) if s in fns else z for s, z in values.items()}
    structure = table.structure
    owners = None if structure.owners[0] is None else structure.owners[0] * count
    rows = table.source.repeat(count, 1, 1)
    masks = programs.masks(rows, largest=structure.largest[0], owners=owners, needed=structure.empty)
    if stop_q and experts is not None:
        experts = {site: e.detach() for site, e in experts.items()}

    def ask() -> Tensor:
        trace = programs.run_guide(masks, count * count, values=drawn, experts=experts)
        found = sites_of(trace, programs.nesting)
        return sum(found.log_prob[site] for site in shared)  # type: ignore[return-value]

    scores = with_parameters_detached([programs.guide, programs.model], ask) if stop_q else ask()
    scores = scores.expand(scores.shape[0], count * count, programs.data.size)
    return scores.reshape(scores.shape[0], count, count, programs.data.size)
