"""The masked bound on a linear-Gaussian model: its value for a subset, and its distribution over random subsets.

Test layer: naive loops over rows; a row with nothing observed is exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .linear_gaussian import Gaussian, LinearGaussian, Masks
from .product_family import Rescale, Row, rows
from .products import nonempty_subsets
from .terms import kl_diag

Posterior = Callable[[Sequence[str], int], Gaussian]  # members of a non-empty S, row -> loc and scale (L,)


def masked_bound(
    model: LinearGaussian,
    posterior: Posterior,
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    subset: Iterable[str],
    *,
    beta: float = 1.0,
    rescale: Rescale = None,
) -> Tensor:  # shape: (B,)
    r"""
    T(S -> S || p) + T(O -> O \ S || q_S) with S the given subset of what a row observes, nats.

    .. math:: E_{q_S} \log p(x_S \mid z) - \beta \, KL(q_S \| p)
        + E_{q_O} \log p(x_{O \setminus S} \mid z) - \beta \, KL(q_O \| q_S), \qquad q_\emptyset = p

    :param posterior: q(z | x_S).
    :param subset: members that a row does not observe are left out of S.
    """
    chosen = set(subset)
    values = []
    for row in rows(model, data, obs_mask, rescale=rescale):
        values.append(_value(row, posterior, chosen, beta) if row.names else torch.zeros((), dtype=torch.float64))
    return torch.stack(values)


def masked_bound_outcomes(
    model: LinearGaussian,
    posterior: Posterior,
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    beta: float = 1.0,
    rescale: Rescale = None,
) -> Tensor:  # shape: (outcomes, B)
    """
    The masked bound's quantiles over S: equally probable values, each subset of O_n as often as its share says.

    The number of members is uniform on 0 .. |O_n|, then all subsets of that size are equally probable.
    """
    every = range(1, len(model.modalities) + 1)
    count = math.lcm(*(_one_in(k, size) for k in every for size in range(k + 1)))
    columns = []
    for row in rows(model, data, obs_mask, rescale=rescale):
        if not row.names:
            columns.append(torch.zeros(count, dtype=torch.float64))
            continue
        column = [
            _value(row, posterior, set(s), beta).expand(count // _one_in(len(row.names), len(s)))
            for s in subsets(row.names)
        ]
        columns.append(torch.cat(column))
    return torch.stack(columns, -1)


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All subsets, the empty one first."""
    yield ()
    yield from nonempty_subsets(names)


def _one_in(observed: int, size: int) -> int:
    """One over the probability of a particular subset of that size."""
    return (observed + 1) * math.comb(observed, size)


def _value(row: Row, posterior: Posterior, chosen: set[str], beta: float) -> Tensor:  # shape: ()
    inside = tuple(m for m in row.names if m in chosen)
    q_s = posterior(inside, row.n) if inside else row.model.prior
    q_o = posterior(row.names, row.n)
    given = row.score(q_s, inside) - beta * row.kl(q_s)
    rest = tuple(m for m in row.names if m not in chosen)
    return given + row.score(q_o, rest) - beta * kl_diag(q_o, q_s)
