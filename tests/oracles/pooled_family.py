"""CoDEVAE and HELVAE written naively: consensus of dependent experts, Hoelder pooling, their objectives exactly.

Test layer: loops over rows, subsets and pairs; every M is M_n, a row with nothing observed is exactly 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Normal

from .linear_gaussian import Gaussian, LinearGaussian, Masks
from .methods import Rescale, _one, _rows, _target, _values
from .products import observed
from .terms import Component, expected_log_mixture, kl_diag, log_mixture, term_value


def consensus(locs: Tensor, scales: Tensor, rho: float) -> Gaussian:  # shapes: (k, L), (k, L) -> (L,)
    """
    CoDE's consensus by explicit inverses, one latent dimension at a time; rho is cut where a weight would be negative.

    The cut is found by bisection.

    Example::

        >>> consensus(torch.ones(2, 1), torch.ones(2, 1), 0.5)[1] ** 2
        tensor([0.7500], dtype=torch.float64)
    """
    out = []
    for mu, sigma in zip(locs.double().T, scales.double().T, strict=True):

        def weights(r: float, sigma: Tensor = sigma) -> tuple[Tensor, Tensor]:
            k = len(sigma)
            correlation = r * torch.ones(k, k, dtype=torch.float64) + (1 - r) * torch.eye(k, dtype=torch.float64)
            raw = torch.linalg.solve(torch.outer(sigma, sigma) * correlation, torch.ones(k, dtype=torch.float64))
            return raw / raw.sum(), 1 / raw.sum()

        low, high = 0.0, rho
        if bool((weights(rho)[0] < 0).any()):
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (low, middle) if bool((weights(middle)[0] < 0).any()) else (middle, high)
        v, variance = weights(rho if high == rho else low)
        out.append((v @ mu, variance.sqrt()))
    return torch.stack([a for a, _ in out]), torch.stack([b for _, b in out])


def consensus_posterior(
    model: LinearGaussian, experts: Mapping[str, Gaussian], obs_mask: Masks, rho: float
) -> Gaussian:  # shapes: (B, L)
    """q(z | x_O) of CoDEVAE; the prior where nothing is observed."""
    rows = range(next(iter(obs_mask.values())).shape[0])
    found = [_pooled(experts, observed(obs_mask, n), n, rho) if observed(obs_mask, n) else model.prior for n in rows]
    return torch.stack([q[0] for q in found]), torch.stack([q[1] for q in found])


def _pooled(experts: Mapping[str, Gaussian], names: Sequence[str], n: int, rho: float) -> Gaussian:
    locs, scales = (torch.stack([experts[m][i][n] for m in names]) for i in (0, 1))
    return consensus(locs, scales, rho)


def exact_codevae(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    rho: float,
    logits: Mapping[tuple[str, ...], float],
    entropy: float = 0.0,
    beta: float = 1.0,
    rescale: Rescale = None,
) -> Tensor:  # shape: (B,)
    """
    CoDEVAE: sum_S pi_S {E_{q_S} sum_{m in O} lambda_m log p(x_m|z) - beta KL(q_S||p)} + a H(pi), S within O.

    :param logits: of the subsets used; pi is their softmax over the subsets within O.
    """
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        inside = [s for s in logits if set(s) <= set(names)]
        mass = [math.exp(logits[s]) for s in inside]
        total: Tensor | float = 0.0
        for s, e in zip(inside, mass, strict=True):
            pi = e / sum(mass)
            q = _one(_pooled(experts, s, n, rho))
            value = term_value(model, q, x, _target(obs_mask, n, names), rescale=rescale, beta=beta)
            total = total + pi * value - entropy * pi * math.log(pi)
        values.append(total)
    return _values(values)


def hoelder_components(
    experts: Mapping[str, Gaussian], names: Sequence[str], n: int, weights: Mapping[str, float] | None = None
) -> list[Component]:
    """
    (sum_i w_i sqrt(q_i))^2, normalized, of the vectors: all ordered pairs, the normalizers from the densities' product.

    sqrt(q_i q_j) is a Gaussian with the mean of the precisions, times its integral: read off at one point.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for i, j in itertools.product(names, repeat=2):
        (a, s), (b, t) = ((experts[m][0][n].double(), experts[m][1][n].double()) for m in (i, j))
        precision = 0.5 * (s**-2 + t**-2)
        loc, scale = 0.5 * (a / s**2 + b / t**2) / precision, precision**-0.5
        at = torch.zeros_like(loc)
        product = 0.5 * (Normal(a, s).log_prob(at) + Normal(b, t).log_prob(at)).sum(-1)
        factor = 1.0 if weights is None else weights[i] * weights[j]
        parts.append((factor * (product - Normal(loc, scale).log_prob(at).sum(-1)).exp(), loc, scale))
    total = sum(w for w, _, _ in parts)
    return [(float(w / total), loc, scale) for w, loc, scale in parts]


def hoelder_mixture(
    experts: Mapping[str, Gaussian],
    names: Sequence[str],
    n: int,
    weights: Mapping[str, float] | None = None,
    bc: Literal["dim", "joint"] = "dim",
) -> list[Component]:
    """The pooled density as one mixture; "dim": every combination of the components of each dimension."""
    if bc == "joint":
        return hoelder_components(experts, names, n, weights)
    parts: list[Component] = [(1.0, torch.zeros(0).double(), torch.zeros(0).double())]
    for single in _by_dimension(experts):
        own = hoelder_components(single, names, n, weights)
        parts = [(v * w, torch.cat([a, b]), torch.cat([s, t])) for v, a, s in parts for w, b, t in own]
    return parts


def _by_dimension(experts: Mapping[str, Gaussian]) -> list[dict[str, Gaussian]]:
    size = next(iter(experts.values()))[0].shape[-1]
    return [{m: (q[0][:, d : d + 1], q[1][:, d : d + 1]) for m, q in experts.items()} for d in range(size)]


def pick(parts: Sequence[Component], eps: Tensor) -> Tensor:  # shapes: (K, L) -> (K, L)
    """Draws of a mixture: the noise picks a component, ordered by the first location, then places it."""
    parts = sorted(parts, key=lambda part: float(part[1][0]))
    share = torch.special.ndtr(eps.sum(-1) / eps.shape[-1] ** 0.5)
    index = (share.unsqueeze(-1) > torch.tensor([w for w, _, _ in parts], dtype=torch.float64).cumsum(0)[:-1]).sum(-1)
    return torch.stack([p[1] for p in parts])[index] + torch.stack([p[2] for p in parts])[index] * eps


def estimate_helvae(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    eps: Tensor,  # shape: (K, B, L)
    *,
    bc: Literal["dim", "joint"] = "dim",
    weights: Mapping[str, float] | None = None,
    beta: float = 1.0,
    rescale: Rescale = None,
) -> Tensor:  # shape: (B,)
    """HELVAE with the exact pooling at given noise: the mean over draws of the sampled ELBO."""
    lam = {} if rescale is None else rescale
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        if not names:
            values.append(0.0)
            continue
        parts = hoelder_mixture(experts, names, n, weights, bc)
        if bc == "joint":
            z = pick(parts, eps[:, n])
        else:
            single = [hoelder_components(e, names, n, weights) for e in _by_dimension(experts)]
            z = torch.cat([pick(own, eps[:, n, d : d + 1]) for d, own in enumerate(single)], -1)
        scored = model.log_likelihoods(z.unsqueeze(-2), x, _target(obs_mask, n, names))
        score = sum(lam.get(m, 1.0) * s.squeeze(-1) for m, s in scored.items())
        values.append((score + beta * (model.log_prior(z) - log_mixture(z, parts))).mean())
    return _values(values)


def hoelder_moments(
    experts: Mapping[str, Gaussian],
    names: Sequence[str],
    n: int,
    weights: Mapping[str, float] | None = None,
    bc: Literal["dim", "joint"] = "dim",
) -> Gaussian:  # shapes: (L,)
    """Mean and standard deviation of the pooling of the vectors ("joint") or of each dimension ("dim")."""
    if bc == "dim":
        found = [hoelder_moments(e, names, n, weights, "joint") for e in _by_dimension(experts)]
        return torch.cat([q[0] for q in found]), torch.cat([q[1] for q in found])
    parts = hoelder_components(experts, names, n, weights)
    mean = sum(w * loc for w, loc, _ in parts)
    second = sum(w * (loc**2 + scale**2) for w, loc, scale in parts)
    return mean, (second - mean**2).sqrt()  # type: ignore[operator, union-attr, return-value]


def hoelder_posterior(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    obs_mask: Masks,
    weights: Mapping[str, float] | None = None,
    bc: Literal["dim", "joint"] = "dim",
) -> Gaussian:  # shapes: (B, L)
    """HELVAE's Gaussian q(z | x_O); the prior where nothing is observed."""
    sets = [observed(obs_mask, n) for n in range(next(iter(obs_mask.values())).shape[0])]
    found = [hoelder_moments(experts, s, n, weights, bc) if s else model.prior for n, s in enumerate(sets)]
    return torch.stack([q[0] for q in found]), torch.stack([q[1] for q in found])


def exact_helvae(
    model: LinearGaussian,
    experts: Mapping[str, Gaussian],
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    form: Literal["moment", "mixture"] = "moment",
    bc: Literal["dim", "joint"] = "dim",
    weights: Mapping[str, float] | None = None,
    beta: float = 1.0,
    rescale: Rescale = None,
) -> Tensor:  # shape: (B,)
    """HELVAE: the ELBO of each row on what it observes; "mixture" by quadrature, with one overlap (L 1, or "joint")."""
    values: list[Tensor | float] = []
    for n, names, x in _rows(data, obs_mask):
        target = _target(obs_mask, n, names)
        if not names:
            values.append(0.0)
        elif form == "moment":
            q = _one(hoelder_moments(experts, names, n, weights, bc))
            values.append(term_value(model, q, x, target, rescale=rescale, beta=beta))
        else:
            parts = hoelder_components(experts, names, n, weights)
            total: Tensor | float = 0.0
            for weight, loc, scale in parts:
                q = _one((loc, scale))
                score = term_value(model, q, x, target, rescale=rescale, beta=0.0)
                kl = kl_diag((loc, scale), model.prior) - expected_log_mixture(loc, scale, [(1.0, loc, scale)])
                total = total + weight * (score - beta * (kl + expected_log_mixture(loc, scale, parts)))
            values.append(total)
    return _values(values)
