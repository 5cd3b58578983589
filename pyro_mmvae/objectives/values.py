"""The value of every term, per particle and sample, from one run of guide and model.

Layer: objectives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mmvae.objectives.run import Run
from pyro_mmvae.objectives.table import Structure, Table

__all__ = ["term_values"]


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
