"""The table of terms that a batch makes: tensors over (J, B), and what of it never changes.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_mmvae.objectives.subsets import Context
from pyro_mmvae.objectives.term import Gate, Number, Selector, Term

__all__ = ["Structure", "Table", "Terms"]


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
    """

    draws: tuple[int, ...]
    priors: tuple[int, ...]
    gates: tuple[frozenset[Gate], ...]
    own_private: bool
    whole_target: tuple[bool, ...]
    plain_beta: frozenset[str]
    largest: tuple[int, int]
    owners: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None)

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
        )
        return cls(structure, source, private, scored, target, weight, beta, rescale, prior)

    def select(self, draws: Sequence[int]) -> Table:
        """The terms that use the given draws, as a table of its own."""
        old = self.structure
        terms = [j for j, u in enumerate(old.draws) if u in draws]
        own = [i for i, j in enumerate(old.priors) if j in terms]
        source, prior = old.owners
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
        )


def _union(draws: Tensor, target: Tensor, count: int) -> Tensor:  # shape: (U, B, M)
    """What any term scores at each draw."""
    if len(draws) == count and bool((draws == torch.arange(count, device="cpu")).all()):
        return target
    counts = torch.zeros((count, *target.shape[1:]), dtype=torch.int32, device="cpu")
    return counts.index_add_(0, draws, target.int()) > 0


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

    def add(self, term: Term) -> None:
        context, observed = self.context, self.context.observed
        first, wanted = self._draws(term)
        source = wanted & observed
        inner = Context(observed, context.names, context.step, context.training, source)
        target = source if term.target is None else term.target(inner) & observed
        prior = None if term.prior is None else term.prior(inner) & observed
        parts = [len(source), len(target)] + ([] if prior is None else [len(prior)])
        rows = 0 if 0 in parts else max(parts)
        if rows == 0:
            return
        valid = source.any(-1)
        if term.subsets == "contained":
            valid = valid & (source == wanted).all(-1)
        if prior is not None:
            valid = valid & prior.any(-1)
        weight = _number(term.weight, context).expand(rows, len(observed))
        masked = weight * valid
        if term.renormalize:
            left = masked.sum(0)
            masked = masked * (weight.sum(0) / left.masked_fill(left == 0, 1.0))
        if term.prior is not None:
            self.priors.append(term.prior)
        shape = (rows, *observed.shape)
        self.blocks.append(
            _Block(
                draws=[first + (i if len(source) > 1 else 0) for i in range(rows)],
                source=source.expand(shape),
                target=target.expand(shape) & valid.expand(rows, -1).unsqueeze(-1),  # nothing runs for weight 0
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
            wanted = term.source(self.context)
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
                _owners([t.source for t in self.drawn], self.context, len(self.gates)),
                _owners(self.priors, self.context, sum(map(len, priors))),
            ),
        )


def _owners(selectors: Sequence[Selector], context: Context, count: int) -> tuple[str, ...] | None:
    """The only modality of each row, where every selector's rows have a single one."""
    known = [getattr(s, "owners", None) for s in selectors]
    if not known or any(k is None for k in known):
        return None
    owners = tuple(m for k in known if k is not None for m in k(context.names))
    return owners if len(owners) == count else None


@dataclass
class _Block:
    """The rows of one term."""

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
    """Rows whose source, target and prior equal those of an earlier valid row of the same sample."""
    parts = [(b.source, b.target, torch.zeros_like(b.source) if b.prior is None else b.prior) for b in blocks]
    key = torch.cat([torch.cat(part, -1) for part in parts])
    same = (key.unsqueeze(0) == key.unsqueeze(1)).all(-1) & (weight.unsqueeze(0) > 0)
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
