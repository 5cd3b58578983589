"""The table of terms that a batch makes: tensors over (J, B), and what of it never changes.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_mmvae.objectives.learned import LearnedWeights
from pyro_mmvae.objectives.term import Gate

__all__ = ["Structure", "Table"]


@dataclass(frozen=True)
class Structure:
    """
    What of a table does not depend on the values in its tensors, as plain hashable Python.

    :ivar draws: the draw that each of the J terms uses.
    :ivar priors: the terms that have a prior of their own.
    :ivar gates: the gates of each draw.
    :ivar own_private: whether private latents listen to something else than the source.
    :ivar whole_target: per modality, whether every term scores all that its draw is scored for.
    :ivar plain_beta: latent sites whose beta is 1 in all terms.
    :ivar largest: the most modalities in any source, and in any T.
    :ivar owners: for sources and for T, the only modality that each row can hold, or None.
    :ivar programs: of the terms that have a prior of their own, the program it belongs to; None: the guide.
    :ivar empty: whether a term holds where its source is empty.
    :ivar learned: rows ``start:stop`` of the table with the module of their weights.
    """

    draws: tuple[int, ...]
    priors: tuple[int, ...]
    gates: tuple[frozenset[Gate], ...]
    own_private: bool
    whole_target: tuple[bool, ...]
    plain_beta: frozenset[str]
    largest: tuple[int, int]
    owners: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None)
    programs: tuple[nn.Module | None, ...] = ()
    empty: bool = False
    learned: tuple[tuple[int, int, LearnedWeights], ...] = ()

    @property
    def one_to_one(self) -> bool:
        """Whether term j uses draw j."""
        return self.draws == tuple(range(len(self.gates)))


@dataclass
class Table:
    """
    A batch's terms as tensors over (J, B), and the U different draws they share.

    :ivar structure: what stays the same from batch to batch.
    :ivar source: bool ``(U, B, M)``, what the guide sees at each draw.
    :ivar private: bool ``(U, B, M)``, what private latents listen to.
    :ivar scored: bool ``(U, B, M)``, what any term scores at each draw.
    :ivar target: bool ``(J, B, M)``.
    :ivar weight: ``(J, B)``, 0 where a term is not valid.
    :ivar beta: latent site (``""``: all others) -> ``(J, B)``.
    :ivar rescale: ``(J, B, M)``, or None for 1.
    :ivar prior: bool ``(J', B, M)``: T of the terms that have one.
    """

    structure: Structure
    source: Tensor
    private: Tensor
    scored: Tensor
    target: Tensor
    weight: Tensor
    beta: dict[str, Tensor]
    rescale: Tensor | None
    prior: Tensor | None

    @classmethod
    def of(
        cls,
        draws: Sequence[int],
        priors: Sequence[int],
        gates: Sequence[frozenset[Gate]],
        *,
        source: Tensor,
        private: Tensor,
        target: Tensor,
        weight: Tensor,
        beta: dict[str, Tensor],
        rescale: Tensor | None,
        prior: Tensor | None,
        owners: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None),
        programs: Sequence[nn.Module | None] = (),
        empty: bool = False,
        learned: Sequence[tuple[int, int, LearnedWeights]] = (),
    ) -> Table:
        """A table from its tensors, its structure read off them."""
        index = torch.tensor(draws, device="cpu")
        scored = _union(index, target, len(source))
        structure = Structure(
            tuple(draws),
            tuple(priors),
            tuple(gates),
            own_private=not private.equal(source),
            whole_target=tuple((target == scored[index]).flatten(0, 1).all(0).tolist()),
            plain_beta=frozenset(site for site, b in beta.items() if bool((b == 1).all())),
            largest=(int(source.sum(-1).max()), 0 if prior is None else int(prior.sum(-1).max())),
            owners=owners,
            programs=tuple(programs),
            empty=empty,
            learned=tuple(learned),
        )
        return cls(structure, source, private, scored, target, weight, beta, rescale, prior)

    def select(self, draws: Sequence[int]) -> Table:
        """The terms that use the given draws, as a table of its own."""
        old = self.structure
        terms = [j for j, u in enumerate(old.draws) if u in draws]
        own = [i for i, j in enumerate(old.priors) if j in terms]
        source, prior = old.owners
        if old.learned:
            raise NotImplementedError(
                "Learned weights need all terms in one run: the same gates, and a guide that answers masks with "
                "leading dimensions, such as those of pyro_mmvae.guides."
            )
        return Table.of(
            [draws.index(old.draws[j]) for j in terms],
            [terms.index(old.priors[i]) for i in own],
            [old.gates[u] for u in draws],
            source=self.source[draws],
            private=self.private[draws],
            target=self.target[terms],
            weight=self.weight[terms],
            beta={site: b[terms] for site, b in self.beta.items()},
            rescale=None if self.rescale is None else self.rescale[terms],
            prior=self.prior[own] if self.prior is not None and own else None,
            owners=(
                None if source is None else tuple(source[u] for u in draws),
                None if prior is None or not own else tuple(prior[i] for i in own),
            ),
            programs=[old.programs[i] for i in own],
            empty=old.empty,
        )

    def weights(self, like: Tensor) -> tuple[Tensor, Tensor | float]:  # shape: (J, B); (B,)
        """The weights as they are now, learned ones included, and what learning them adds to the objective."""
        weight = self.weight.to(like)
        bonus: Tensor | float = 0.0
        for start, stop, module in self.structure.learned:
            own = module(weight[start:stop] != 0).to(like)
            bonus = bonus + module.bonus(own)
            weight = torch.cat([weight[:start], own, weight[stop:]])
        return weight, bonus


def _union(draws: Tensor, target: Tensor, count: int) -> Tensor:  # shape: (U, B, M)
    """What any term scores at each draw."""
    if len(draws) == count and bool((draws == torch.arange(count, device="cpu")).all()):
        return target
    counts = torch.zeros((count, *target.shape[1:]), dtype=torch.int32, device="cpu")
    return counts.index_add_(0, draws, target.int()) > 0
