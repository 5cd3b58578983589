"""What each case must return: closed forms of the oracles on a problem, and estimates at given noise, naively.

Test layer: nothing of the library is used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Laplace, Normal

from tests.conformance.problems import Problem
from tests.oracles.linear_gaussian import Gaussian
from tests.oracles.methods import exact_jmvae, exact_mmvae, exact_mopoe, exact_mvae, exact_mvtcae
from tests.oracles.products import (
    PriorExpert,
    mixture_components,
    mopoe_components,
    nonempty_subsets,
    product_of_experts,
    row_product,
)
from tests.oracles.terms import Component

FAMILIES = {"normal": Normal, "laplace": Laplace}


def _arguments(p: Problem) -> tuple[Any, ...]:
    return p.model, p.experts, p.data, p.obs_mask


def mvae(p: Problem, **options: Any) -> Tensor:  # shape: (B,)
    """MVAE without random subsets."""
    return exact_mvae(*_arguments(p), **options)


def mvae_by_subset(p: Problem, *, k: int, **options: Any) -> Tensor:  # shape: (outcomes, B)
    """MVAE with one random subset per step: all that it may return."""
    if k != 1:
        raise NotImplementedError(f"one random subset expected, got k = {k}.")
    pairs = [s for s in nonempty_subsets(p.modalities) if 1 < len(s) < len(p.modalities)]
    return torch.stack([mvae(p, subsets=[s], **options) for s in pairs])


def mmvae(p: Problem, **options: Any) -> Tensor:  # shape: (B,)
    """MMVAE with one particle."""
    return exact_mmvae(*_arguments(p), **options)


def mopoe(p: Problem, **options: Any) -> Tensor:  # shape: (B,)
    """MoPoE over all chosen subsets."""
    return exact_mopoe(*_arguments(p), private=p.private, **options)


def mopoe_by_subset(p: Problem, **options: Any) -> Tensor:  # shape: (outcomes, B)
    """MoPoE with one random subset per sample: all that it may return; 0 where a sample lacks part of the subset."""
    return torch.stack([mopoe(p, subsets=[s], **options) for s in nonempty_subsets(p.modalities)])


def mvtcae(p: Problem, **options: Any) -> Tensor:  # shape: (B,)
    """MVTCAE."""
    return exact_mvtcae(*_arguments(p), **options)


def jmvae(p: Problem, **options: Any) -> Tensor:  # shape: (B,)
    """JMVAE; the joint posterior of a row with one modality is its expert."""
    return exact_jmvae(*_arguments(p), joint=p.joint, **options)


def product(rule: PriorExpert) -> Callable[[Problem], Gaussian]:
    """q(z | x_O) of product guides, the private latents beside it: those that are not inferred keep their prior."""

    def posterior(p: Problem) -> Gaussian:  # shapes: (B, L + sum P_m)
        rows = []
        for n, names in enumerate(p.sets):
            included = rule == "always" or not names or (rule == "full_only" and len(names) == len(p.modalities))
            rows.append(row_product(p.experts, names, n, p.model.prior if included else None))
        shared = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
        return beside(p, shared)

    return posterior


def beside(p: Problem, shared: Gaussian) -> Gaussian:  # shapes: (B, L) -> (B, L + sum P_m)
    """A posterior of z with the private latents beside it: those that are not inferred keep their prior."""
    if not p.private:
        return shared
    own = {}
    for m, q in p.private.items():
        seen, prior = p.rows[m].unsqueeze(-1), p.model.private_prior[m]  # type: ignore[union-attr]
        own[m] = tuple(torch.where(seen, a, b) for a, b in zip(q, prior, strict=True))
    return p.model.stack(shared, own)  # type: ignore[union-attr, arg-type]


def mixture(p: Problem) -> list[list[Component]]:
    """q(z | x_O) of mixtures of experts, per row."""
    return [mixture_components(p.experts, p.obs_mask, n) for n in range(len(p.sets))]


def mixture_of_products(
    p: Problem, *, subsets: Iterable[Iterable[str]] | None = None, **_: Any
) -> list[list[Component]]:
    """q(z | x_O) of mixtures of products, per row."""
    rows = range(len(p.sets))
    return [mopoe_components(p.experts, p.obs_mask, n, p.model.prior, subsets=subsets) for n in rows]


MIXTURES: set[Callable[..., Any]] = {mixture, mixture_of_products}  # posteriors that are components, per row


def joint(p: Problem) -> Gaussian:  # shapes: (B, L)
    """q(z | x_O) of JMVAE with a masked joint encoder."""
    some = torch.tensor([bool(s) for s in p.sets]).unsqueeze(-1)
    loc, scale = (torch.where(some, q, prior) for q, prior in zip(p.joint, p.model.prior, strict=True))
    return loc, scale


def joint_or_product(kind: Literal["product", "bayes"]) -> Callable[[Problem], Gaussian]:
    """q(z | x_O) of JMVAE whose joint encoder takes complete rows only."""

    def posterior(p: Problem) -> Gaussian:
        loc, scale = (q.clone() for q in product_of_experts(p.experts, p.obs_mask, empty=p.model.prior))
        for n, names in enumerate(p.sets):
            if len(names) == len(p.modalities):
                loc[n], scale[n] = p.joint[0][n], p.joint[1][n]
            elif names and kind == "bayes":
                loc[n], scale[n] = row_product(p.experts, names, n, p.model.prior, 1.0 - len(names))
        return loc, scale

    return posterior


def estimate_mmvae(
    p: Problem,
    eps: Tensor,  # shape: (B, L) or (K, 1, B, L)
    *,
    bound: Literal["looser", "tight"] = "looser",
    density: Literal["mixture", "component"] = "mixture",
    beta: float = 1.0,
    rescale: Mapping[str, float] | None = None,
) -> Tensor:  # shape: (B,)
    """MMVAE's bounds by definition, every expert of a row at the same noise; 0 for an empty row."""
    weights = {} if rescale is None else rescale
    eps = eps.unsqueeze(0) if eps.dim() == 2 else eps.squeeze(1)
    family = FAMILIES[p.family]
    prior = family(*p.model.prior)
    values = []
    for n, names in enumerate(p.sets):
        parts = mixture_components(p.experts, p.obs_mask, n)
        row = {m: x[n : n + 1] for m, x in p.data.items()}, {m: a[n : n + 1] for m, a in p.obs_mask.items()}
        each = []
        for _, loc, scale in parts:
            z = loc + scale * eps[:, n]
            log_q = torch.stack([family(m, s).log_prob(z).sum(-1) for _, m, s in parts]).logsumexp(0)
            log_q = log_q - math.log(len(parts)) if density == "mixture" else family(loc, scale).log_prob(z).sum(-1)
            scored = p.stacked.log_likelihoods(z.unsqueeze(-2), *row)
            score = sum(weights.get(m, 1.0) * s.squeeze(-1) for m, s in scored.items())
            each.append((score + beta * (prior.log_prob(z).sum(-1) - log_q)).logsumexp(0) - math.log(len(z)))
        if not names:
            values.append(eps.new_zeros(()))
        elif bound == "looser":
            values.append(torch.stack(each).mean())
        else:
            values.append(torch.stack(each).logsumexp(0) - math.log(len(each)))
    return torch.stack(values)
