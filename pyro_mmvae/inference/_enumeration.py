"""Summing discrete latents out of a trace, exactly, in log space.

Layer: inference, private.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.ops import packed
from pyro.poutine import Trace
from torch import Tensor

__all__ = ["sum_out"]

Plates = frozenset[str]
Factor = tuple[Tensor, Plates]  # packed: one named dimension per letter of ``_pyro_dims``


def sum_out(trace: Trace, sites: Mapping[str, Any], scores: Mapping[str, Tensor]) -> list[Tensor]:
    r"""
    The factors that are left when enumerated latents are eliminated.

    .. math:: \log \sum_c \exp \Bigl( \log p(c) + \sum_{i} \log p(x_i \mid c) \Bigr)

    One latent at a time, deepest plate first, the last sampled first; sums over a story's own plates come before
    the sum over a latent outside them. Everything stays in log space, so conflicting evidence does not underflow.

    :param sites: the sites that count.
    :param scores: their log-densities, with enumeration dimensions left of all plates.
    :return: log-densities without enumeration dimensions; their sum is the joint.
    :raises NotImplementedError: for latents that depend on each other across independent plates.
    """
    enumerated = [site for site in sites.values() if site["infer"].get("_enumerate_dim") is not None]
    if not enumerated:
        return list(scores.values())
    trace.symbolize_dims()

    def plates_of(site: Any) -> Plates:
        return frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)

    factors: list[Factor] = [
        (packed.pack(scores[name], site["infer"]["_dim_to_symbol"]), plates_of(site)) for name, site in sites.items()
    ]
    order = [(site["infer"]["_enumerate_symbol"], plates_of(site)) for site in reversed(enumerated)]
    homes = dict(order)
    for letter, plates in sorted(order, key=lambda latent: -len(latent[1])):
        factors = _eliminate(factors, letter, plates, homes)
        del homes[letter]
    return [packed.unpack(score, trace.symbol_to_dim) for score, _ in factors]


def _eliminate(factors: list[Factor], letter: str, plates: Plates, homes: Mapping[str, Plates]) -> list[Factor]:
    """Replace the factors that a latent touches by their sum over it."""
    touched = [f for f in factors if letter in f[0]._pyro_dims]  # type: ignore[attr-defined]
    if not touched:
        return factors
    inside = [_within(score, own - plates, homes) for score, own in touched]
    aligned = packed.broadcast_all(*inside)
    total = torch.stack(aligned).sum(0)
    dims = aligned[0]._pyro_dims
    done = total.logsumexp(dims.index(letter))
    done._pyro_dims = dims.replace(letter, "")  # type: ignore[attr-defined]
    return [f for f in factors if letter not in f[0]._pyro_dims] + [(done, plates)]  # type: ignore[attr-defined]


def _within(score: Tensor, extra: Plates, homes: Mapping[str, Plates]) -> Tensor:
    """A factor summed over the plates that the latent does not live in."""
    dims: str = score._pyro_dims  # type: ignore[attr-defined]
    if any(homes[d] & extra for d in dims if d in homes):
        raise NotImplementedError(
            "Enumerated latents depend on each other across independent plates. Fix: make one of the plates a "
            "sequential one, for i in pyro.plate(...), or an event dimension."
        )
    axes = [i for i, d in enumerate(dims) if d in extra]
    if not axes:
        return score
    score = score.sum(axes)
    score._pyro_dims = "".join(d for d in dims if d not in extra)  # type: ignore[attr-defined]
    return score
