"""Exact objectives of the published methods on a linear-Gaussian model, each sample on its own modalities.

Test layer: naive loops over rows and terms; every M of a formula is M_n, a row with nothing observed is exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .linear_gaussian import Gaussian, LinearGaussian, Masks
from .products import PriorExpert, mixture_components, mopoe_components, observed, row_product
from .shared_private import SharedPrivate
from .terms import Number, cross_entropy, expected_log_mixture, kl_diag, private_term_value, term_value

Rescale = Mapping[str, Number] | None


def _rows(data: Mapping[str, Tensor], mask: Masks) -> Iterator[tuple[int, tuple[str, ...], dict[str, Tensor]]]:
    """Every row: its number, O_n, and its data as a batch of one."""
    for n in range(next(iter(mask.values())).shape[0]):
        yield n, observed(mask, n), {m: x[n : n + 1] for m, x in data.items()}


def _target(mask: Masks, n: int, names: Iterable[str]) -> dict[str, Tensor]:
    """The observed entries of the named modalities of row n, as a batch of one."""
    chosen = set(names)
    return {m: entry[n : n + 1] & (m in chosen) for m, entry in mask.items()}


def _one(q: Gaussian) -> Gaussian:
    """Loc and scale (L,) as a batch of one."""
    return q[0].unsqueeze(0).double(), q[1].unsqueeze(0).double()


def _values(values: Sequence[Tensor | float]) -> Tensor:
    """One value per row to (B,)."""
    return torch.stack([torch.as_tensor(v, dtype=torch.float64).reshape(()) for v in values])


def exact_mvae(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    beta: float = 1.0,
    rescale: Rescale = None,
    unimodal: bool = True,
    subsets: Iterable[Iterable[str]] = (),
    rule: Literal["intersect", "contained"] = "intersect",
    duplicates: Literal["keep", "drop"] = "keep",
    weights: Literal["keep", "renormalize"] = "keep",
    prior_expert: bool = True,
) -> Tensor:  # shape: (B,)
    """
    MVAE: sum of ELBO_S over S = O_n, each {m}, and the given subsets, with products that include the prior expert.

    :param subsets: the sampled subsets, the same for all rows.
    :param rule: "intersect": a subset s becomes s and O_n; "contained": it is dropped unless O_n holds it.
    :param duplicates: "drop" counts equal sets of one row once.
    :param weights: "renormalize" multiplies a row by (number of terms in the table) / (number that remain).
    """
    table = [tuple(model.modalities)]
    if unimodal:
        table += [(m,) for m in model.modalities]
    asked = [tuple(s) for s in subsets]
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        sets = [names]
        for s in table[1:] + asked:
            if rule == "intersect" or set(s) <= set(names):
                sets.append(tuple(m for m in model.modalities if m in s and m in names))
        sets = [s for s in sets if s]
        if duplicates == "drop":
            sets = list(dict.fromkeys(sets))
        total: Tensor | float = 0.0
        for s in sets:
            q = _one(row_product(experts, s, n, model.prior if prior_expert else None))
            total = total + term_value(model, q, x, _target(obs_mask, n, s), rescale=rescale, beta=beta)
        factor = len(table + asked) / len(sets) if sets and weights == "renormalize" else 1.0
        values.append(factor * total)
    return _values(values)


def exact_mmvae(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    beta: float = 1.0,
    rescale: Rescale = None,
    density: Literal["mixture", "component"] = "mixture",
) -> Tensor:  # shape: (B,)
    """
    MMVAE with K = 1: the mean over the observed experts e of
    E_{q_e}[sum lambda_m log p(x_m|z) + beta (log p(z) - log q(z))].

    :param density: q in the formula: the mixture (needs L at most 2), or the component itself (naive ELBO, any L).
    """
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        components = mixture_components(experts, obs_mask, n)
        total: Tensor | float = 0.0
        for weight, loc, scale in components:
            q = _one((loc, scale))
            score = term_value(model, q, x, _target(obs_mask, n, names), rescale=rescale, beta=0.0)
            if density == "mixture":
                log_q = expected_log_mixture(loc, scale, components)
            else:
                log_q = cross_entropy((loc, scale), (loc, scale))
            total = total + weight * (score + beta * (cross_entropy(q, model.prior) - log_q))
        values.append(total)
    return _values(values)


def exact_mopoe(
    model: LinearGaussian | SharedPrivate,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    beta: float = 1.0,
    beta_style: float = 1.0,
    rescale: Rescale = None,
    prior_expert: PriorExpert = "full_only",
    subsets: Iterable[Iterable[str]] | None = None,
    private: Mapping[str, Gaussian] | None = None,
) -> Tensor:  # shape: (B,)
    """
    MoPoE: mean over subsets T of O_n of E_{q_T}[sum lambda_m log p(x_m|z,w_m)] - beta KL(q_T || p), minus
    beta * beta_style * sum over the observed private latents of KL(q(w_m|x_m) || p(w_m)), counted once.

    :param private: loc and scale (B, P_m) of q(w_m | x_m); the model is then a :class:`SharedPrivate`.
    """
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        target = _target(obs_mask, n, names)
        parts = mopoe_components(experts, obs_mask, n, model.prior, prior_expert=prior_expert, subsets=subsets)
        total: Tensor | float = 0.0
        for weight, loc, scale in parts:
            q = _one((loc, scale))
            if isinstance(model, LinearGaussian):
                value = term_value(model, q, x, target, rescale=rescale, beta=beta)
            else:
                own = {m: _one((p[0][n], p[1][n])) for m, p in (private if private is not None else {}).items()}
                known = {m: torch.tensor([m in names and m in own]) for m in model.modalities}
                value = private_term_value(
                    model, q, own, known, x, target, rescale=rescale, beta=beta, beta_private=beta * beta_style
                )
            total = total + weight * value
        values.append(total)
    return _values(values)


def exact_mvtcae(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    alpha: float,
    beta: float = 1.0,
    rescale: Rescale = None,
    count: Literal["observed", "all"] = "observed",
) -> Tensor:  # shape: (B,)
    """
    MVTCAE: (M_n - alpha)/M_n E_q[sum lambda_m log p(x_m|z)] - beta {(1-alpha) KL(q||p) + alpha/M_n sum KL(q||q_m)}.

    q is the product of the observed experts without prior expert.

    :param count: "all" keeps M in place of M_n, as multivae does on incomplete rows.
    """
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        if not names:
            values.append(0.0)
            continue
        size = len(names) if count == "observed" else len(model.modalities)
        q = row_product(experts, names, n)
        score = term_value(model, _one(q), x, _target(obs_mask, n, names), rescale=rescale, beta=0.0)
        to_experts: Tensor | float = 0.0
        for m in names:
            to_experts = to_experts + kl_diag(q, (experts[m][0][n], experts[m][1][n]))
        penalty = (1 - alpha) * kl_diag(q, model.prior) + alpha / size * to_experts
        values.append((size - alpha) / size * score - beta * penalty)
    return _values(values)


def exact_jmvae(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    joint: Gaussian,  # shapes: (B, L)
    alpha: float,
    beta: float = 1.0,
    annealing: float = 1.0,
    rescale: Rescale = None,
    incomplete: Literal["masked", "product", "drop"] = "masked",
    product: Literal["bayes", "plain"] = "bayes",
    distill_singletons: bool = False,
) -> Tensor:  # shape: (B,)
    """
    JMVAE: E_q[sum lambda_m log p(x_m|z)] - a_e {beta KL(q||p) + alpha sum_m KL(q||q_m)}, q the joint posterior.

    :param joint: loc and scale of the joint encoder, given what each row observes.
    :param annealing: a_e, on both penalties.
    :param incomplete: rows that miss a modality: "masked": the same with O_n, without the alpha-sum if M_n = 1 (unless
        ``distill_singletons``); "product": T(O_n -> O_n || p) under the product of experts; "drop": 0.
    :param product: "bayes": p^(1-M_n) prod q_m; "plain": prod q_m.
    """
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        complete = len(names) == len(model.modalities)
        if not names or (incomplete == "drop" and not complete):
            values.append(0.0)
            continue
        distill = len(names) > 1 or distill_singletons
        q = (joint[0][n].double(), joint[1][n].double())
        if incomplete == "product" and not complete:
            prior = model.prior if product == "bayes" else None
            q, distill = row_product(experts, names, n, prior, 1.0 - len(names)), False
        target = _target(obs_mask, n, names)
        value = term_value(model, _one(q), x, target, rescale=rescale, beta=annealing * beta)
        if distill:
            for m in names:
                value = value - annealing * alpha * kl_diag(q, (experts[m][0][n], experts[m][1][n]))
        values.append(value)
    return _values(values)
