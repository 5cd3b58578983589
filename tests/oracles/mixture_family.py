"""The mixture family written naively: MMVAE+ and CMVAE at given noise, MMVM at given noise and exactly, MCVAE exactly.

Test layer: loops over rows, experts and pairs; every M is M_n, a row with nothing observed is exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Laplace, Normal

from .linear_gaussian import Gaussian, LinearGaussian, Masks
from .methods import Rescale, _one, _rows, _target, _values
from .products import mixture_components
from .shared_private import SharedPrivate
from .terms import Component, expected_log_mixture, kl_diag, term_value

FAMILIES = {"normal": Normal, "laplace": Laplace}
Auxiliary = Literal["prior", "posterior"] | Mapping[str, Gaussian]


def log_density(z: Tensor, parts: Sequence[Component], family: str = "normal") -> Tensor:  # shapes: (*, L) -> (*)
    """
    Log-density of a mixture of Normals or Laplaces, nats.

    Example::

        >>> log_density(torch.zeros(1), [(1.0, torch.zeros(1), torch.ones(1))], "laplace")
        tensor(-0.6931)
    """
    scored = [math.log(w) + FAMILIES[family](loc, scale).log_prob(z).sum(-1) for w, loc, scale in parts]
    return torch.stack(scored).logsumexp(0)


def cluster_sum(z: Tensor, clusters: Sequence[Component], family: str = "normal") -> Tensor:  # shapes: (*, L) -> (*)
    """CMVAE's prior term as in the paper: sum_c q(c|z) [log pi_c + log p(z|c) - log q(c|z)], q(c|z) exact."""
    joint = [math.log(w) + FAMILIES[family](loc, scale).log_prob(z).sum(-1) for w, loc, scale in clusters]
    total = sum(j.exp() for j in joint)
    posterior = [j.exp() / total for j in joint]
    return sum(p * (j - p.log()) for p, j in zip(posterior, joint, strict=True))  # type: ignore[return-value]


def estimate_mmvaeplus(
    model: SharedPrivate,
    experts: Mapping[str, Gaussian],
    private: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    eps: Mapping[str, Tensor],  # shapes: (K, B, D)
    *,
    auxiliary: Auxiliary,
    auxiliary_kl: bool = False,
    beta: float = 1.0,
    rescale: Rescale = None,
    family: str = "normal",
    clusters: Sequence[Component] | None = None,
) -> Tensor:  # shape: (B,)
    """
    MMVAE+'s looser bound by definition: row m draws z from q_m and w_m from q(w_m|x_m), every other w_n from r_n.

    All rows use the same noise. z pays the density of the mixture, w_m its own, w_n nothing; w_n is of O only.

    :param auxiliary: r_n: the prior of w_n, its posterior (then it pays as w_m does), or loc and scale (P_n,).
    :param auxiliary_kl: whether w_n pays log p(w_n) - log r_n(w_n) too.
    :param clusters: CMVAE: the components of p(z), scored by :func:`cluster_sum`; None: the model's prior.
    """
    weights = {} if rescale is None else rescale
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        parts = mixture_components(experts, obs_mask, n)
        each = []
        for m, (_, loc, scale) in zip(names, parts, strict=True):
            z = loc + scale * eps["z"][:, n]
            prior = cluster_sum(z, clusters, family) if clusters else log_density(z, [(1.0, *model.prior)], family)
            log_w = beta * (prior - log_density(z, parts, family))
            latents = [z]
            for k, p_w in model.private_prior.items():
                own = (private[k][0][n], private[k][1][n])
                if k == m or auxiliary == "posterior":
                    q_w = own
                else:
                    q_w = p_w if auxiliary == "prior" else auxiliary[k]  # type: ignore[index]
                w = q_w[0] + q_w[1] * eps[f"z_{k}"][:, n] if k in names else torch.zeros_like(eps[f"z_{k}"][:, n])
                latents.append(w)
                if k == m or (k in names and (auxiliary_kl or auxiliary == "posterior")):
                    ratio = log_density(w, [(1.0, *p_w)], family) - log_density(w, [(1.0, *q_w)], family)
                    log_w = log_w + beta * ratio
            scored = model.joint.log_likelihoods(torch.cat(latents, -1).unsqueeze(-2), x, _target(obs_mask, n, names))
            score = sum(weights.get(k, 1.0) * s.squeeze(-1) for k, s in scored.items())
            each.append((score + log_w).logsumexp(0) - math.log(len(z)))
        values.append(torch.stack(each).mean() if each else 0.0)
    return _values(values)


def log_uniform_kl(loc: Tensor, scale: Tensor) -> Tensor:  # shapes: (*batch, L) -> (*batch)
    """KL to the log-uniform prior, Molchanov's approximation; alpha = scale^2 / (|loc| + 1e-8)^2, log cut at +-8."""
    log_alpha = (2 * scale.log() - 2 * (loc.abs() + 1e-8).log()).clamp(-8, 8)
    k1, k2, k3 = 0.63576, 1.8732, 1.48695
    return -(k1 / (1 + (-k2 - k3 * log_alpha).exp()) - 0.5 * (1 + (-log_alpha).exp()).log() - k1).sum(-1)


def exact_mcvae(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    beta: float = 1.0,
    rescale: Rescale = None,
    sparse: bool = False,
    sources: Iterable[str] | None = None,
    targets: Iterable[str] | None = None,
    weights: Literal["sample", "multi_task"] = "sample",
) -> Tensor:  # shape: (B,)
    """
    MCVAE: (1/M_n) sum_c {E_{q_c} sum_i lambda_i log p(x_i|z) - beta KL(q_c||p)} over the observed sources c.

    :param weights: "multi_task": the objective of the batch is B times the sum over outputs i of the mean over sources
        c of the mean over the samples that have both, less beta times the mean over sources of the mean KL; its share
        per row.
    """
    sent = set(model.modalities if sources is None else sources)
    kept = set(model.modalities if targets is None else targets)
    rows = list(_rows(data, obs_mask))
    pairs = {(c, i): [n for n, names, _ in rows if c in names and i in names] for c in sent for i in kept}
    alone = {c: [n for n, names, _ in rows if c in names] for c in sent}
    values: list[Tensor | float] = []
    for n, names, x in rows:
        total: Tensor | float = 0.0
        own = [c for c in names if c in sent]
        for c in own:
            q = (experts[c][0][n].double(), experts[c][1][n].double())
            for i in names:
                if i not in kept:
                    continue
                score = term_value(model, _one(q), x, _target(obs_mask, n, [i]), rescale=rescale, beta=0.0)
                explain = [d for d in sent if pairs[d, i]]
                share = 1 / len(own) if weights == "sample" else len(rows) / (len(explain) * len(pairs[c, i]))
                total = total + share * score
            kl = log_uniform_kl(*q) if sparse else kl_diag(q, model.prior)
            seen = [d for d in sent if alone[d]]
            share = 1 / len(own) if weights == "sample" else len(rows) / (len(seen) * len(alone[c]))
            total = total - beta * share * kl
        values.append(total)
    return _values(values)


def estimate_mmvm(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    eps: Tensor,  # shape: (B, L)
    *,
    prior_weight: float = 0.0,
    alpha: float = 0.0,
    beta: float = 1.0,
    rescale: Rescale = None,
) -> Tensor:  # shape: (B,)
    """
    MMVM at one draw of each expert: sum_m lambda_m log p(x_m|z_m) - beta {alpha KL(q_m||p) + (1-alpha) log q_m/h}.

    h(z) = (sum_l q_l(z) + kappa p(z)) / (M_n + kappa); alpha is 1 in a row with one modality. KL(q_m||p) is exact.
    """
    lam = {} if rescale is None else rescale
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        total: Tensor | float = 0.0
        h = [(1 / (len(names) + prior_weight), *part[1:]) for part in mixture_components(experts, obs_mask, n)]
        if prior_weight and names:
            h.append((prior_weight / (len(names) + prior_weight), *model.prior))
        share = 1.0 if len(names) == 1 else alpha
        for m in names:
            q = (1.0, experts[m][0][n].double(), experts[m][1][n].double())
            z = q[1] + q[2] * eps[n]
            score = model.log_likelihoods(z.unsqueeze(0), x, _target(obs_mask, n, [m]))[m].squeeze(0)
            divergence = share * kl_diag(q[1:], model.prior) + (1 - share) * (log_density(z, [q]) - log_density(z, h))
            total = total + lam.get(m, 1.0) * score - beta * divergence
        values.append(total)
    return _values(values)


def exact_mmvm(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    divergence: Literal["mixture", "pairwise"] = "mixture",
    prior_weight: float = 0.0,
    alpha: float = 0.0,
    beta: float = 1.0,
    rescale: Rescale = None,
) -> Tensor:  # shape: (B,)
    """
    MMVM's expectation: as :func:`estimate_mmvm`, KL(q_m||h) by quadrature (L at most 2).

    :param divergence: "pairwise": KL(q_m||h) becomes its bound by convexity, the mean over h of KL(q_m||component).
    """
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        total: Tensor | float = 0.0
        h = [(1 / (len(names) + prior_weight), *part[1:]) for part in mixture_components(experts, obs_mask, n)]
        if prior_weight and names:
            h.append((prior_weight / (len(names) + prior_weight), *model.prior))
        share = 1.0 if len(names) == 1 else alpha
        for m in names:
            q = (experts[m][0][n].double(), experts[m][1][n].double())
            score = term_value(model, _one(q), x, _target(obs_mask, n, [m]), rescale=rescale, beta=0.0)
            if divergence == "mixture":
                to_h = expected_log_mixture(*q, [(1.0, *q)]) - expected_log_mixture(*q, h)
            else:
                to_h = sum(w * kl_diag(q, (loc, scale)) for w, loc, scale in h)  # type: ignore[assignment]
            total = total + score - beta * (share * kl_diag(q, model.prior) + (1 - share) * to_h)
        values.append(total)
    return _values(values)
