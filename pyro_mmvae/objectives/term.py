"""Terms T(S -> A || r): the rows of a table.

Layer: objectives.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor, nn

from pyro_mmvae.objectives.learned import LearnedWeights
from pyro_mmvae.objectives.subsets import Context, Observed

__all__ = ["Gate", "Number", "PosteriorOf", "Selector", "Term"]

Selector = Callable[[Context], Tensor]
Number = float | Callable[[Context], Tensor | float]
Gate = Literal["z", "posterior", "decoder", "prior"]


@dataclass(frozen=True)
class PosteriorOf:
    """
    A prior r(z) = q'(z | x_T) of another program with the guide's signature.

    Such as the guide's experts fused by another rule (:class:`pyro_mmvae.guides.Refused`).

    :ivar program: an ``nn.Module``; its parameters become the objective's.
    :ivar source: T.
    """

    program: nn.Module
    source: Selector = field(default_factory=Observed)

    @property
    def random(self) -> bool:
        """Whether T is drawn anew for each table."""
        return getattr(self.source, "random", False)


@dataclass(frozen=True)
class Term:
    r"""
    One row (or several, if a selector gives several) of the table.

    .. math:: c \, T(S \to A \,\|\, r) = c \, \Bigl( E_{q(z \mid x_S)} \sum_{m \in A} \lambda_m \log p(x_m \mid z)
        - \beta \, \mathrm{KL}(q(z \mid x_S) \,\|\, r(z)) \Bigr)

    :ivar source: S, what the guide sees.
    :ivar target: A, what is scored; None: the source itself.
    :ivar prior: r; None: the story's own prior; a selector T: the guide's q(z | x_T); or a :class:`PosteriorOf`.
    :ivar weight: c, a number, a function of the :class:`Context` giving ``(B,)``, or :class:`LearnedWeights`.
    :ivar beta: weight of the KL; a mapping gives latent sites different ones (``""``: all others).
    :ivar rescale: factors lambda on the likelihoods; a number, a function of the context, or by modality.
    :ivar private: what private latents listen to: all that is observed, or the source.
    :ivar detach: what gets no gradient from this term: draws, posterior, decoder, prior.
    :ivar subsets: where a sample lacks part of S: use the rest ("intersect") or leave the term out ("contained").
    :ivar empty: whether S and T may be empty in a sample that observes something: the guide then answers with the
        story's prior. Otherwise the term is left out there.
    :ivar renormalize: scale the weights of this term's valid rows, per sample, to the sum of all its rows.
    """

    source: Selector = field(default_factory=Observed)
    target: Selector | None = field(default_factory=Observed)
    prior: Selector | PosteriorOf | None = None
    weight: Number | LearnedWeights = 1.0
    beta: Number | Mapping[str, Number] = 1.0
    rescale: Number | Mapping[str, float] = 1.0
    private: Literal["observed", "source"] = "observed"
    detach: frozenset[Gate] = frozenset()
    subsets: Literal["intersect", "contained"] = "intersect"
    empty: bool = False
    renormalize: bool = False

    def __post_init__(self) -> None:
        known = {
            "private": ((self.private,), ("observed", "source")),
            "subsets": ((self.subsets,), ("intersect", "contained")),
            "detach": (tuple(self.detach), get_args(Gate)),
        }
        for name, (given, values) in known.items():
            if not set(given) <= set(values):
                raise ValueError(f"Term: {name}: expected of {list(values)}, got {list(given)}.")

    def describe(self) -> str:
        """The row as the papers write it."""
        target = "S" if self.target is None else _short(self.target)
        prior = "p" if self.prior is None else f"q({_short(self.prior)})"
        if isinstance(self.prior, PosteriorOf):
            prior = f"{self.prior.program}({_short(self.prior.source)})"
        gates = f", detach {sorted(self.detach)}" if self.detach else ""
        return f"{_short(self.weight)} T({_short(self.source)} -> {target} || {prior}), beta {_short(self.beta)}{gates}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{site or 'z'}: {_short(v)}" for site, v in value.items()) + "}"
    if isinstance(value, LearnedWeights):
        return "pi"
    if inspect.isfunction(value):
        return "w(O)" if value.__name__ == "<lambda>" else f"{value.__name__}(O)"
    return str(value).removesuffix("()")
