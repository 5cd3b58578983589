"""A weighted table of terms, and how a batch's table is built from them.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_mmvae.objectives.learned import LearnedWeights
from pyro_mmvae.objectives.subsets import Context
from pyro_mmvae.objectives.table import Table
from pyro_mmvae.objectives.term import Gate, Number, PosteriorOf, Selector, Term

__all__ = ["Terms"]


class Terms:
    """
    A weighted table of terms.

    :param terms: the rows.
    :param duplicates: where two terms coincide in a sample because modalities are missing: "keep" both or
        "drop" the later one.
    """

    def __init__(self, terms: Sequence[Term], *, duplicates: Literal["keep", "drop"] = "keep") -> None:
        if not terms:
            raise ValueError("Terms: the table is empty. Fix: at least one Term(), the evidence lower bound.")
        if duplicates not in ("keep", "drop"):
            raise ValueError(f"Terms: duplicates is 'keep' or 'drop', got {duplicates!r}.")
        self.terms, self.duplicates = tuple(terms), duplicates

    def __repr__(self) -> str:
        return f"Terms({list(self.terms)}, duplicates={self.duplicates!r})"

    def modules(self) -> list[nn.Module]:
        """What of the table has parameters: learned weights, programs that serve as priors."""
        weights = [t.weight for t in self.terms if isinstance(t.weight, LearnedWeights)]
        programs = [t.prior.program for t in self.terms if isinstance(t.prior, PosteriorOf)]
        return list(dict.fromkeys([*weights, *programs]))

    def table(self, context: Context) -> Table:
        """The table of one batch; everything is made on the host."""
        builder = _Builder(context)
        for term in self.terms:
            builder.add(term)
        return builder.build(self.duplicates == "drop")


class _Builder:
    """Collects the rows of a table in blocks, one per term; terms with the same source share their draws."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.start: dict[object, tuple[int, Tensor]] = {}
        self.sources: list[Tensor] = []
        self.private: list[Tensor] = []
        self.gates: list[frozenset[Gate]] = []
        self.blocks: list[_Block] = []
        self.drawn: list[Term] = []
        self.priors: list[Selector] = []
        self.learned: list[tuple[int, int, LearnedWeights]] = []

    def add(self, term: Term) -> None:
        context, observed = self.context, self.context.observed
        first, wanted = self._draws(term)
        source = wanted & observed
        inner = context.within(source)
        target = source if term.target is None else inner.rows(term.target) & observed
        selector = term.prior.source if isinstance(term.prior, PosteriorOf) else term.prior
        prior = None if selector is None else inner.rows(selector) & observed
        parts = [len(source), len(target)] + ([] if prior is None else [len(prior)])
        rows = 0 if 0 in parts else max(parts)
        if rows == 0:
            return
        valid = observed.any(-1) if term.empty else source.any(-1)
        if term.subsets == "contained":
            valid = valid & (source == wanted).all(-1)
        if prior is not None and not term.empty:
            valid = valid & prior.any(-1)
        valid = valid.expand(rows, -1)
        number = 1.0 if isinstance(term.weight, LearnedWeights) else term.weight
        weight = _number(number, context).expand(rows, len(observed))
        masked = weight * valid
        if term.renormalize:
            left = masked.sum(0)
            masked = masked * (weight.sum(0) / left.masked_fill(left == 0, 1.0))
        if selector is not None:
            self.priors.append(selector)
        if isinstance(term.weight, LearnedWeights):
            start = sum(len(b.weight) for b in self.blocks)
            self.learned.append((start, start + rows, term.weight))
        shape = (rows, *observed.shape)
        self.blocks.append(
            _Block(
                term=term,
                draws=[first + (i if len(source) > 1 else 0) for i in range(rows)],
                source=source.expand(shape),
                target=target.expand(shape) & valid.unsqueeze(-1),  # nothing runs for weight 0
                prior=None if prior is None else prior.expand(shape),
                weight=masked,
                beta={site: _number(b, context).expand(rows, len(observed)) for site, b in _by_site(term.beta).items()},
                rescale=_factors(term.rescale, context),
            )
        )

    def _draws(self, term: Term) -> tuple[int, Tensor]:
        """Index of the term's first draw, and its source before it meets what is observed."""
        key = (term.source, term.private, term.detach)
        if key not in self.start:
            wanted = self.context.rows(term.source)
            self.start[key] = (sum(map(len, self.sources)), wanted)
            rows = wanted & self.context.observed
            self.sources.append(rows)
            self.private.append(self.context.observed.expand_as(rows) if term.private == "observed" else rows)
            self.gates.extend([term.detach] * len(rows))
            self.drawn.append(term)
        return self.start[key]

    def build(self, drop: bool) -> Table:
        blocks = self.blocks
        weight = torch.cat([b.weight for b in blocks])
        if drop:
            weight = weight * ~_repeated(blocks, weight)
        sites = sorted({site for b in blocks for site in b.beta})
        starts = [0]
        for b in blocks:
            starts.append(starts[-1] + len(b.weight))
        priors = [b.prior for b in blocks if b.prior is not None]
        return Table.of(
            [u for b in blocks for u in b.draws],
            [i + j for b, i in zip(blocks, starts, strict=False) if b.prior is not None for j in range(len(b.prior))],
            self.gates,
            source=torch.cat(self.sources),
            private=torch.cat(self.private),
            target=torch.cat([b.target for b in blocks]),
            weight=weight,
            beta={s: torch.cat([b.beta.get(s, b.beta[""]) for b in blocks]) for s in sites},
            rescale=_stacked_factors(blocks, self.context),
            prior=torch.cat(priors) if priors else None,
            owners=(
                _owners([t.source for t in self.drawn], map(len, self.sources), self.context),
                _owners(self.priors, map(len, priors), self.context),
            ),
            programs=[_program(b.term) for b in blocks if b.prior is not None for _ in b.prior],
            empty=any(b.term.empty for b in blocks),
            learned=self.learned,
        )


def _program(term: Term) -> nn.Module | None:
    return term.prior.program if isinstance(term.prior, PosteriorOf) else None


def _owners(selectors: Sequence[Selector], counts: Iterable[int], context: Context) -> tuple[str, ...] | None:
    """
    The only modality of each row, where every selector's rows have a single one.

    :param counts: rows that each selector's were made into; a single one serves all.
    """
    found: list[str] = []
    for selector, count in zip(selectors, counts, strict=True):
        names = getattr(selector, "owners", lambda names: ())(context.names)
        own = names * count if len(names) == 1 else names
        if len(own) != count:
            return None
        found += own
    return tuple(found) if found else None


@dataclass
class _Block:
    """The rows of one term."""

    term: Term
    draws: list[int]
    source: Tensor
    target: Tensor
    prior: Tensor | None
    weight: Tensor
    beta: dict[str, Tensor]
    rescale: Tensor | None


def _stacked_factors(blocks: list[_Block], context: Context) -> Tensor | None:  # shape: (J, B, M)
    if all(b.rescale is None for b in blocks):
        return None
    one = torch.ones(1, len(context.names), dtype=torch.float64, device="cpu")
    shape = context.observed.shape
    return torch.cat([(one if b.rescale is None else b.rescale).expand(len(b.weight), *shape) for b in blocks])


def _repeated(blocks: list[_Block], weight: Tensor) -> Tensor:  # shape: (J, B), bool
    """Rows that an earlier valid row of the same sample repeats: same sets, and terms that agree in all but weight."""
    kinds = [(b.term.private, b.term.detach, b.term.beta, b.term.rescale, _program(b.term)) for b in blocks]
    kind = torch.tensor([kinds.index(k) for b, k in zip(blocks, kinds, strict=True) for _ in b.draws], device="cpu")
    parts = [(b.source, b.target, torch.zeros_like(b.source) if b.prior is None else b.prior) for b in blocks]
    key = torch.cat([torch.cat(part, -1) for part in parts])
    same = (key.unsqueeze(0) == key.unsqueeze(1)).all(-1) & (weight.unsqueeze(0) > 0)
    same = same & (kind == kind.unsqueeze(-1)).unsqueeze(-1)
    earlier = torch.ones(len(key), len(key), device="cpu").tril(-1).bool().unsqueeze(-1)
    return (same & earlier).any(1)


def _number(value: Number, context: Context) -> Tensor:  # shape: (B,) or ()
    return torch.as_tensor(value(context) if callable(value) else value, dtype=torch.float64, device="cpu")


def _by_site(beta: Number | Mapping[str, Number]) -> Mapping[str, Number]:
    return {"": 1.0, **beta} if isinstance(beta, Mapping) else {"": beta}


def _factors(rescale: Number | Mapping[str, float], context: Context) -> Tensor | None:  # shape: (B or 1, M)
    if isinstance(rescale, Mapping):
        unknown = set(rescale) - set(context.names)
        if unknown:
            raise ValueError(f"rescale: unknown modalities {sorted(unknown)}; known are {list(context.names)}.")
        return torch.tensor([[float(rescale.get(m, 1.0)) for m in context.names]], dtype=torch.float64, device="cpu")
    if not callable(rescale):
        shape = (1, len(context.names))
        return None if rescale == 1.0 else torch.full(shape, float(rescale), dtype=torch.float64, device="cpu")
    value = rescale(context)
    if not isinstance(value, Tensor):
        value = torch.tensor(float(value), dtype=torch.float64, device="cpu")
    return value if value.dim() == 2 else value.unsqueeze(-1)
