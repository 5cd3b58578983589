"""Selectors: which modalities a term sees, scores, or takes its prior from.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from pyro_mmvae.masks import powerset, random_subsets, singletons

__all__ = [
    "AnyContained",
    "Bernoulli",
    "Complement",
    "Context",
    "Each",
    "Fixed",
    "Nothing",
    "Observed",
    "Only",
    "Powerset",
    "Random",
]


@dataclass
class Context:
    """
    What a table is made from.

    :ivar observed: bool ``(B, M)`` on the host, whole modalities.
    :ivar names: the modalities, in the order of M.
    :ivar step: training steps done, the annealing clock.
    :ivar training: whether random terms are drawn.
    :ivar source: the term's own source ``(n, B, M)``, once it is known.
    :ivar drawn: what random selectors gave: equal ones give the same rows throughout a table.
    """

    observed: Tensor
    names: tuple[str, ...]
    step: int = 0
    training: bool = True
    source: Tensor | None = field(default=None, repr=False)
    drawn: dict[object, Tensor] = field(default_factory=dict, repr=False)

    def rows(self, selector: Callable[[Context], Tensor]) -> Tensor:  # shape: (n, B, M)
        """The selector's rows, drawn once if it is random."""
        if not getattr(selector, "random", False):
            return selector(self)
        if selector not in self.drawn:
            self.drawn[selector] = selector(self)
        return self.drawn[selector]

    def within(self, source: Tensor) -> Context:
        """The same context for the target and the prior of a term with this source."""
        return replace(self, source=source)

    @property
    def count(self) -> Tensor:  # shape: (B,)
        """Number of observed modalities of each sample, float64; at least 1, as no term is valid without any."""
        return self.observed.sum(-1).clamp(min=1).double()


@dataclass(frozen=True)
class Observed:
    """All that a sample has, O."""

    def __call__(self, context: Context) -> Tensor:  # shape: (1, B, M)
        return context.observed.unsqueeze(0)


@dataclass(frozen=True)
class Nothing:
    """The empty set: nothing scored, or the bare prior."""

    def __call__(self, context: Context) -> Tensor:  # shape: (1, B, M)
        return torch.zeros_like(context.observed).unsqueeze(0)


@dataclass(frozen=True)
class Each:
    """One row per modality, that modality alone."""

    def owners(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The only modality of each row."""
        return names

    def __call__(self, context: Context) -> Tensor:  # shape: (M, B, M)
        return _rows(singletons(len(context.names)), context)


@dataclass(frozen=True)
class Only:
    """
    One row: the modalities named.

    :ivar required: whether samples that lack one of them are an error (samples without anything are none).
    """

    modalities: tuple[str, ...]
    required: bool = field(default=False, repr=False)

    def owners(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The modality, if it is a single one."""
        return self.modalities if len(self.modalities) == 1 else ()

    def __call__(self, context: Context) -> Tensor:  # shape: (1, B, M)
        unknown = set(self.modalities) - set(context.names)
        if unknown:
            raise ValueError(f"Only: unknown modalities {sorted(unknown)}; known are {list(context.names)}.")
        row = torch.tensor([[m in self.modalities for m in context.names]], device="cpu")
        if self.required:
            lacking = (context.observed.any(-1) & (row & ~context.observed).any(-1)).sum().item()
            if lacking:
                raise ValueError(
                    f"{list(self.modalities)}: missing in {lacking} of {len(context.observed)} samples, but "
                    "they alone are encoded. Fix: leave such samples out (required=False; fallback='drop' of DVCCA)."
                )
        return _rows(row, context)


@dataclass(frozen=True)
class Fixed:
    """The subsets of a given table ``(S, M)``."""

    table: tuple[tuple[bool, ...], ...]

    @classmethod
    def of(cls, subsets: Sequence[Sequence[str]], names: Sequence[str]) -> Fixed:
        """From subsets given by their members' names."""
        for subset in subsets:
            unknown = set(subset) - set(names)
            if unknown or not subset:
                raise ValueError(f"subsets: {list(subset)} is empty or has unknown names; known are {list(names)}.")
        return cls(tuple(tuple(m in subset for m in names) for subset in subsets))

    def count(self, num_modalities: int) -> int:
        """Number of subsets."""
        return len(self.table)

    def owners(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The only modality of each row, if all rows have a single one."""
        single = all(sum(row) == 1 for row in self.table)
        return tuple(names[row.index(True)] for row in self.table) if single else ()

    def __call__(self, context: Context) -> Tensor:  # shape: (S, B, M)
        return _rows(torch.tensor(self.table, device="cpu"), context)


@dataclass(frozen=True)
class Powerset:
    """All subsets with ``min_size`` to ``max_size`` members (default: up to all)."""

    min_size: int = 1
    max_size: int | None = None

    def count(self, num_modalities: int) -> int:
        """Number of subsets."""
        return len(powerset(num_modalities, min_size=self.min_size, max_size=self.max_size))

    def __call__(self, context: Context) -> Tensor:  # shape: (S, B, M)
        return _rows(powerset(len(context.names), min_size=self.min_size, max_size=self.max_size), context)


@dataclass(frozen=True)
class AnyContained:
    """``k`` random subsets per sample, each uniform over those of ``subsets`` that the sample observes in full."""

    random: ClassVar[bool] = True

    subsets: Fixed | Powerset
    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"number of random subsets: expected at least 1, got {self.k}.")

    def __call__(self, context: Context) -> Tensor:  # shape: (k, B, M)
        table = self.subsets(context)  # (S, B, M)
        contained = (context.observed | ~table).all(-1)
        score = torch.rand(self.k, *contained.shape, device="cpu").masked_fill(~contained, -1.0)
        chosen = score.argmax(1)  # (k, B)
        rows = table[chosen, torch.arange(table.shape[1], device="cpu")]
        return rows & contained.any(0).unsqueeze(-1)


@dataclass(frozen=True)
class Random:
    """
    ``k`` different random subsets, the same for the whole batch, in training only.

    :ivar by_size: draw the size first, uniformly, then a subset of that size (the published code of MVAE).
    """

    random: ClassVar[bool] = True

    k: int
    min_size: int = 2
    max_size: int | None = None
    by_size: bool = False

    def __call__(self, context: Context) -> Tensor:  # shape: (k, B, M)
        k = self.k if context.training else 0
        size = len(context.names)
        table = random_subsets(k, size, min_size=self.min_size, max_size=self.max_size, by_size=self.by_size)
        return _rows(table, context)


@dataclass(frozen=True)
class Bernoulli:
    """A random subset per sample: each modality kept with a rate u ~ U(0, 1) shared by the sample's modalities."""

    random: ClassVar[bool] = True

    def __call__(self, context: Context) -> Tensor:  # shape: (1, B, M)
        rate = torch.rand(len(context.observed), 1, device="cpu")
        return (torch.rand(context.observed.shape, device="cpu") < rate).unsqueeze(0)


@dataclass(frozen=True)
class Complement:
    """
    What is observed and not in another set.

    :ivar of: the other set; None: the term's own source.
    """

    of: Callable[[Context], Tensor] | None = None

    @property
    def random(self) -> bool:
        """Whether the other set is drawn anew for each table."""
        return getattr(self.of, "random", False)

    def __call__(self, context: Context) -> Tensor:  # shape: (n, B, M)
        other = context.source if self.of is None else context.rows(self.of)
        if other is None:
            raise ValueError("Complement: only a target or prior can be the complement of the source.")
        return context.observed & ~other


def _rows(table: Tensor, context: Context) -> Tensor:
    return table.unsqueeze(1).expand(-1, len(context.observed), -1)
