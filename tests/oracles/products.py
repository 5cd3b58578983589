"""Fusion of Gaussian experts written naively: products, geometric means, mixtures, mixtures of products.

Test layer: one row at a time; only the experts that are observed are ever touched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .linear_gaussian import Gaussian
from .terms import Component

PriorExpert = Literal["full_only", "never", "always"]


def observed(mask: Mapping[str, Tensor], row: int) -> tuple[str, ...]:
    """
    O_n: the modalities of one row with any observed feature, in the order of ``mask``.

    Example::

        >>> observed({"a": torch.tensor([True]), "b": torch.tensor([[False, False]])}, 0)
        ('a',)
    """
    return tuple(name for name, entry in mask.items() if bool(entry[row].any()))


def pool(factors: Sequence[tuple[float | Tensor, Tensor, Tensor]]) -> Gaussian:  # shapes: (L,)
    """
    The Gaussian proportional to prod_i N(z; loc_i, scale_i)^{w_i}, weights a number or one per latent dimension.

    Example::

        >>> pool([(1.0, torch.zeros(1), torch.ones(1)), (1.0, torch.ones(1), torch.ones(1))])[0]
        tensor([0.5000], dtype=torch.float64)

    :raises ValueError: if the total precision is not positive.
    """
    total = sum(weight / scale.double() ** 2 for weight, _, scale in factors)
    shift = sum(weight * loc.double() / scale.double() ** 2 for weight, loc, scale in factors)
    if not isinstance(total, Tensor) or not bool((total > 0).all()):
        raise ValueError(f"expected a positive total precision in every dimension, got {total}")
    return shift / total, total**-0.5


def log_normalizer(factors: Sequence[tuple[float | Tensor, Tensor, Tensor]]) -> Tensor:  # shape: ()
    r"""
    log of the integral of prod_i N(z; loc_i, scale_i)^{w_i}, nats, summed over latent dimensions.

    .. math:: \tfrac12 \log(2\pi/\Lambda) - \tfrac12 \sum_i w_i \log 2\pi\sigma_i^2
              - \tfrac12 \Big(\sum_i w_i \mu_i^2/\sigma_i^2 - \Lambda \mu^2\Big)

    Example::

        >>> log_normalizer([(0.3, torch.zeros(1), torch.ones(1)), (0.7, torch.zeros(1), torch.ones(1))]).abs() < 1e-12
        tensor(True)
    """
    loc, scale = pool(factors)
    value = 0.5 * torch.log(2 * math.pi * scale**2) + 0.5 * loc**2 / scale**2
    for weight, mu, sigma in factors:
        mu, sigma = mu.double(), sigma.double()
        value = value - 0.5 * weight * (torch.log(2 * math.pi * sigma**2) + mu**2 / sigma**2)
    return value.sum()


def row_product(
    experts: Mapping[str, Gaussian],
    names: Iterable[str],
    row: int,
    prior: Gaussian | None = None,
    prior_weight: float = 1.0,
    weights: Mapping[str, float | Tensor] | None = None,
) -> Gaussian:  # shapes: (L,)
    """The weighted product of the named experts of one row, with the prior to a power if one is given."""
    factors: list[tuple[float | Tensor, Tensor, Tensor]] = []
    if prior is not None:
        factors.append((prior_weight, prior[0], prior[1]))
    for name in names:
        weight = weights[name] if weights is not None else 1.0
        factors.append((weight, experts[name][0][row], experts[name][1][row]))
    return pool(factors)


def product_of_experts(
    experts: Mapping[str, Gaussian],  # shapes: (B, L)
    mask: Mapping[str, Tensor],  # shapes: (B,) or (B, D_m), bool
    prior: Gaussian | None = None,  # shapes: (L,)
    *,
    empty: Gaussian | None = None,  # shapes: (L,)
) -> Gaussian:  # shapes: (B, L)
    """
    PoE+ with ``prior``, PoE0 without: the product of the observed experts of each row.

    Example::

        >>> e = {"a": (torch.ones(1, 1), torch.ones(1, 1))}
        >>> product_of_experts(e, {"a": torch.tensor([True])}, (torch.zeros(1), torch.ones(1)))[0].item()
        0.5

    :param empty: returned where nothing is observed and there is no prior expert.
    :raises ValueError: where nothing is observed and neither is given.
    """
    rows = []
    for row in range(next(iter(mask.values())).shape[0]):
        names = observed(mask, row)
        if not names and prior is None and empty is not None:
            rows.append(empty)
        else:
            rows.append(row_product(experts, names, row, prior))
    return _stack(rows)


def generalized_product(
    experts: Mapping[str, Gaussian],
    mask: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],  # shapes: (L,), positive
) -> Gaussian:  # shapes: (B, L)
    """gPoE: the product of q_m^{alpha_m}, weights normalized per dimension over what each row observes."""
    rows = []
    for row in range(next(iter(mask.values())).shape[0]):
        names = observed(mask, row)
        total = torch.stack([weights[m] for m in names]).sum(0)
        rows.append(row_product(experts, names, row, weights={m: weights[m] / total for m in names}))
    return _stack(rows)


def geometric_mean(
    experts: Mapping[str, Gaussian],
    mask: Mapping[str, Tensor],
    prior: Gaussian,  # shapes: (L,)
    prior_weight: float | None = None,
) -> Gaussian:  # shapes: (B, L)
    """GEO+: p^{pi_0} prod q_m^{pi_m}, pi_m = (1 - pi_0) / M_n; pi_0 = 1 / (M_n + 1) by default. Empty: the prior."""
    rows = []
    for row in range(next(iter(mask.values())).shape[0]):
        names = observed(mask, row)
        first = prior_weight if prior_weight is not None else 1 / (len(names) + 1)
        each = {m: (1 - first) / len(names) for m in names}
        rows.append(row_product(experts, names, row, prior, first if names else 1.0, each))
    return _stack(rows)


def bayes_product(
    experts: Mapping[str, Gaussian],
    mask: Mapping[str, Tensor],
    prior: Gaussian,  # shapes: (L,)
) -> Gaussian:  # shapes: (B, L)
    """p(z)^{1 - |S|} prod_{m in S} q_m(z): the posterior of S if every q_m is p(z | x_m), x_m independent given z."""
    rows = []
    for row in range(next(iter(mask.values())).shape[0]):
        names = observed(mask, row)
        rows.append(row_product(experts, names, row, prior, 1.0 - len(names)))
    return _stack(rows)


def mixture_components(experts: Mapping[str, Gaussian], mask: Mapping[str, Tensor], row: int) -> list[Component]:
    """The mixture of the observed experts of one row, equal weights; empty where nothing is observed."""
    names = observed(mask, row)
    return [(1 / len(names), experts[m][0][row].double(), experts[m][1][row].double()) for m in names]


def nonempty_subsets(names: Iterable[str]) -> list[tuple[str, ...]]:
    """
    All non-empty subsets, singletons first.

    Example::

        >>> nonempty_subsets("ab")
        [('a',), ('b',), ('a', 'b')]
    """
    members = tuple(names)
    return [s for size in range(1, len(members) + 1) for s in itertools.combinations(members, size)]


def mopoe_components(
    experts: Mapping[str, Gaussian],
    mask: Mapping[str, Tensor],
    row: int,
    prior: Gaussian,  # shapes: (L,)
    *,
    prior_expert: PriorExpert = "full_only",
    subsets: Iterable[Iterable[str]] | None = None,
) -> list[Component]:
    """
    MoPoE's components of one row: one product per subset T of O_n (of the given ones), equal weights.

    :param prior_expert: "full_only": in the product over all M modalities only (an incomplete row has none).
    :raises ValueError: for another ``prior_expert``.
    """
    if prior_expert not in ("full_only", "never", "always"):
        raise ValueError(f"prior_expert: expected 'full_only', 'never' or 'always', got {prior_expert!r}")
    names = observed(mask, row)
    allowed = [tuple(s) for s in subsets] if subsets is not None else nonempty_subsets(names)
    available = [s for s in allowed if set(s) <= set(names)]
    parts = []
    for subset in available:
        with_prior = prior_expert == "always" or (prior_expert == "full_only" and len(subset) == len(mask))
        loc, scale = row_product(experts, subset, row, prior if with_prior else None)
        parts.append((1 / len(available), loc, scale))
    return parts


def _stack(rows: Sequence[Gaussian]) -> Gaussian:
    """Rows (L,) to tensors (B, L)."""
    loc, scale = (torch.stack([part.double() for part in column]) for column in zip(*rows, strict=True))
    return loc, scale
