"""Terms T(S -> A || r) and the table that a batch makes of them.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_mmvae.objectives.subsets import Context, Observed

__all__ = ["Gate", "Selector", "Table", "Term", "Terms"]

Selector = Callable[[Context], Tensor]
Number = float | Callable[[Context], Tensor | float]
Gate = Literal["z", "posterior", "decoder", "prior"]


@dataclass(frozen=True)
class Term:
    r"""
    One row (or several, if a selector gives several) of the table.

    .. math:: c \, T(S \to A \,\|\, r) = c \, \Bigl( E_{q(z \mid x_S)} \sum_{m \in A} \lambda_m \log p(x_m \mid z)
        - \beta \, \mathrm{KL}(q(z \mid x_S) \,\|\, r(z)) \Bigr)

    :ivar source: S, what the guide sees.
    :ivar target: A, what is scored; None: the source itself.
    :ivar prior: r; None: the story's own prior; a selector T: the guide's q(z | x_T).
    :ivar weight: c, a number or a function of the :class:`Context` giving ``(B,)``.
    :ivar beta: weight of the KL; a mapping gives latent sites different ones (``""``: all others).
    :ivar rescale: factors lambda on the likelihoods; a number, a function of the context, or by modality.
    :ivar private: what private latents listen to: all that is observed, or the source.
    :ivar detach: what gets no gradient from this term: draws, posterior, decoder, prior.
    :ivar subsets: where a sample lacks part of S: use the rest ("intersect") or leave the term out ("contained").
    :ivar renormalize: scale the weights of this term's valid rows, per sample, to the sum of all its rows.
    """

    source: Selector = Observed()
    target: Selector | None = Observed()
    prior: Selector | None = None
    weight: Number = 1.0
    beta: Number | Mapping[str, Number] = 1.0
    rescale: Number | Mapping[str, float] = 1.0
    private: Literal["observed", "source"] = "observed"
    detach: frozenset[Gate] = frozenset()
    subsets: Literal["intersect", "contained"] = "intersect"
    renormalize: bool = False

    def describe(self) -> str:
        """The row as the papers write it."""
        target = "S" if self.target is None else _short(self.target)
        prior = "p" if self.prior is None else f"q({_short(self.prior)})"
        gates = f", detach {sorted(self.detach)}" if self.detach else ""
        return f"{_short(self.weight)} T({_short(self.source)} -> {target} || {prior}), beta {_short(self.beta)}{gates}"


@dataclass
class Table:
    """
    A batch's terms as tensors over (J, B), and the U different draws they share.

    :ivar source: bool ``(U, B, M)``, what the guide sees at each draw.
    :ivar private: bool ``(U, B, M)``, what private latents listen to.
    :ivar draw: ``(J,)``, the draw that each term uses.
    :ivar target: bool ``(J, B, M)``.
    :ivar weight: ``(J, B)``, 0 where a term is not valid.
    :ivar beta: latent site (``""``: all others) -> ``(J, 1)`` or ``(J, B)``.
    :ivar rescale: ``(J, B, M)``, or None for 1.
    :ivar prior: bool ``(J', B, M)``: T of the terms ``prior_of`` that have one.
    :ivar prior_of: ``(J',)``, indices of terms.
    :ivar gates: the gates of each draw's terms.
    """

    source: Tensor
    private: Tensor
    draw: Tensor
    target: Tensor
    weight: Tensor
    beta: dict[str, Tensor]
    rescale: Tensor | None
    prior: Tensor | None
    prior_of: Tensor
    gates: list[frozenset[Gate]]

    def select(self, draws: Tensor) -> tuple[Table, Tensor]:
        """The terms that use the given draws, as a table of its own, and their indices."""
        terms = (self.draw.unsqueeze(-1) == draws).any(-1).nonzero().squeeze(-1)
        with_prior = (self.prior_of.unsqueeze(-1) == terms).any(-1)
        own = self.prior_of[with_prior]
        table = Table(
            source=self.source[draws],
            private=self.private[draws],
            draw=(self.draw[terms].unsqueeze(-1) == draws).int().argmax(-1),
            target=self.target[terms],
            weight=self.weight[terms],
            beta={site: b[terms] for site, b in self.beta.items()},
            rescale=None if self.rescale is None else self.rescale[terms],
            prior=self.prior[with_prior] if self.prior is not None and len(own) else None,
            prior_of=(own.unsqueeze(-1) == terms).int().argmax(-1) if len(own) else own,
            gates=[self.gates[u] for u in draws.tolist()],
        )
        return table, terms

    @property
    def scored(self) -> Tensor:  # shape: (U, B, M)
        """What any term scores at each draw."""
        if len(self.draw) == len(self.source):
            return self.target[self.draw.argsort()]
        counts = torch.zeros(self.source.shape, dtype=torch.int32)
        return counts.index_add_(0, self.draw, self.target.int()) > 0


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
            masked = masked * (weight.sum(0) / masked.sum(0).masked_fill(~valid.any(0), 1.0))
        shape = (rows, *observed.shape)
        draw = torch.arange(first, first + len(source)).expand(rows)
        self.blocks.append(
            _Block(
                draw=draw,
                source=source.expand(shape),
                target=target.expand(shape),
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
        return self.start[key]

    def build(self, drop: bool) -> Table:
        blocks = self.blocks
        weight = torch.cat([b.weight for b in blocks])
        if drop:
            weight = weight * ~_repeated(blocks, weight)
        sites = sorted({site for b in blocks for site in b.beta})
        rows = torch.arange(len(weight)).split([len(b.weight) for b in blocks])
        with_prior = [(r, b.prior) for r, b in zip(rows, blocks, strict=True) if b.prior is not None]
        return Table(
            source=torch.cat(self.sources),
            private=torch.cat(self.private),
            draw=torch.cat([b.draw for b in blocks]),
            target=torch.cat([b.target for b in blocks]),
            weight=weight,
            beta={s: torch.cat([b.beta.get(s, b.beta[""]) for b in blocks]) for s in sites},
            rescale=_stacked_factors(blocks, self.context),
            prior=torch.cat([p for _, p in with_prior]) if with_prior else None,
            prior_of=torch.cat([r for r, _ in with_prior]) if with_prior else torch.zeros(0, dtype=torch.long),
            gates=self.gates,
        )


@dataclass
class _Block:
    """The rows of one term."""

    draw: Tensor
    source: Tensor
    target: Tensor
    prior: Tensor | None
    weight: Tensor
    beta: dict[str, Tensor]
    rescale: Tensor | None


def _stacked_factors(blocks: list[_Block], context: Context) -> Tensor | None:  # shape: (J, B, M)
    if all(b.rescale is None for b in blocks):
        return None
    one = torch.ones(1, len(context.names))
    shape = context.observed.shape
    return torch.cat([(one if b.rescale is None else b.rescale).expand(len(b.weight), *shape) for b in blocks])


def _repeated(blocks: list[_Block], weight: Tensor) -> Tensor:  # shape: (J, B), bool
    """Rows whose source, target and prior equal those of an earlier valid row of the same sample."""
    parts = [(b.source, b.target, torch.zeros_like(b.source) if b.prior is None else b.prior) for b in blocks]
    key = torch.cat([torch.cat(part, -1) for part in parts])
    same = (key.unsqueeze(0) == key.unsqueeze(1)).all(-1) & (weight.unsqueeze(0) > 0)
    earlier = torch.ones(len(key), len(key)).tril(-1).bool().unsqueeze(-1)
    return (same & earlier).any(1)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{site or 'z'}: {_short(v)}" for site, v in value.items()) + "}"
    return "w(O)" if getattr(value, "__name__", "") == "<lambda>" else str(value).removesuffix("()")


def _number(value: Number, context: Context) -> Tensor:  # shape: (B,) or ()
    return torch.as_tensor(value(context) if callable(value) else value, dtype=torch.get_default_dtype())


def _by_site(beta: Number | Mapping[str, Number]) -> Mapping[str, Number]:
    return {"": 1.0, **beta} if isinstance(beta, Mapping) else {"": beta}


def _factors(rescale: Number | Mapping[str, float], context: Context) -> Tensor | None:  # shape: (B or 1, M)
    if isinstance(rescale, Mapping):
        unknown = set(rescale) - set(context.names)
        if unknown:
            raise ValueError(f"rescale: unknown modalities {sorted(unknown)}; known are {list(context.names)}.")
        return torch.tensor([[float(rescale.get(m, 1.0)) for m in context.names]])
    if not callable(rescale):
        return None if rescale == 1.0 else torch.full((1, len(context.names)), float(rescale))
    value = rescale(context)
    return value if value.dim() == 2 else value.unsqueeze(-1)
