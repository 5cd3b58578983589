"""Exact values of bound terms T(S -> A || r) under Gaussian and mixture posteriors.

Test layer: closed forms, and dense quadrature where a mixture density has none; independent of the library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .linear_gaussian import Gaussian, LinearGaussian, Masks, batch_size, features
from .shared_private import SharedPrivate

Component = tuple[float, Tensor, Tensor]  # weight, loc (L,), scale (L,)
Number = float | Tensor  # a number, or one per row (B,)


def kl_diag(q: Gaussian, p: Gaussian) -> Tensor:  # shapes: (*batch, L) -> (*batch)
    """
    KL(q || p) of diagonal Gaussians in nats, summed over the last dimension.

    Example::

        >>> kl_diag((torch.ones(1), torch.ones(1)), (torch.zeros(1), torch.ones(1)))
        tensor(0.5000, dtype=torch.float64)
    """
    (loc, scale), (loc0, scale0) = ((a.double(), b.double()) for a, b in (q, p))
    return (torch.log(scale0 / scale) + (scale**2 + (loc - loc0) ** 2) / (2 * scale0**2) - 0.5).sum(-1)


def kl_full(
    loc: Tensor,  # shape: (L,)
    cov: Tensor,  # shape: (L, L)
    loc0: Tensor,  # shape: (L,)
    cov0: Tensor,  # shape: (L, L)
) -> Tensor:  # shape: ()
    """
    KL(N(loc, cov) || N(loc0, cov0)) in nats.

    Example::

        >>> kl_full(torch.ones(1), torch.eye(1), torch.zeros(1), torch.eye(1))
        tensor(0.5000)
    """
    delta = loc0 - loc
    trace = torch.linalg.solve(cov0, cov).trace()
    quadratic = delta @ torch.linalg.solve(cov0, delta)
    return 0.5 * (trace + quadratic - loc.numel() + torch.logdet(cov0) - torch.logdet(cov))


def kl_to_prior(model: LinearGaussian | SharedPrivate, q: Gaussian) -> Tensor:  # shape: (B,)
    """KL(q(z) || p(z)) in nats, p the prior of the (shared) latent."""
    return kl_diag(q, model.prior)


def cross_entropy(q: Gaussian, p: Gaussian) -> Tensor:  # shapes: (*batch, L) -> (*batch)
    """
    E_q[log p(z)] in nats for diagonal Gaussians.

    Example::

        >>> cross_entropy((torch.zeros(1), torch.ones(1)), (torch.zeros(1), torch.ones(1)))
        tensor(-1.4189, dtype=torch.float64)
    """
    (loc, scale), (loc0, scale0) = ((a.double(), b.double()) for a, b in (q, p))
    quadratic = (scale**2 + (loc - loc0) ** 2) / scale0**2
    return -0.5 * (quadratic + 2 * scale0.log() + math.log(2 * math.pi)).sum(-1)


def expected_log_likelihood(
    model: LinearGaussian,
    loc: Tensor,  # shape: (B, L)
    scale: Tensor,  # shape: (B, L), standard deviation, or (B, L, L), covariance
    data: Mapping[str, Tensor],
    mask: Masks | None = None,
) -> dict[str, Tensor]:  # shapes: (B,)
    r"""
    E_q[log p(x_m | z)] of each modality in nats, summed over the features that count.

    .. math:: \sum_d -\frac12 \log 2\pi s_d^2 - \frac{(x_d - b_d - W_d \mu)^2 + W_d \Sigma W_d^T}{2 s_d^2}
    """
    loc, scale = loc.double(), scale.double()
    result = {}
    for name, weight in model.weights.items():
        values = []
        for row in range(batch_size(data)):
            keep = features(mask, name, row, weight.shape[0])
            if not keep.any():
                values.append(loc.new_zeros(()))
                continue
            w, b, s = weight[keep], model.bias[name][keep], model.noise[name][keep]
            cov = torch.diag(scale[row] ** 2) if scale.ndim == 2 else scale[row]
            square = (data[name][row][keep].double() - b - w @ loc[row]) ** 2 + (w @ cov @ w.T).diagonal()
            values.append((-0.5 * (2 * math.pi * s**2).log() - square / (2 * s**2)).sum())
        result[name] = torch.stack(values)
    return result


def term_value(
    model: LinearGaussian,
    q: Gaussian,  # shapes: (B, L)
    data: Mapping[str, Tensor],
    target: Masks | None = None,
    *,
    rescale: Mapping[str, Number] | None = None,
    beta: Number = 1.0,
    r: Gaussian | None = None,  # shapes: (B, L) or (L,)
) -> Tensor:  # shape: (B,)
    r"""
    Exact value of one term, in nats.

    .. math:: T(S \to A \| r) = E_{q}\Big[\sum_{m \in A} \lambda_m \log p(x_m \mid z)\Big] - \beta KL(q \| r)

    :param q: loc and scale of q(z | x_S); S enters through it only.
    :param target: the entries that are scored, per sample or per feature (what is unobserved must be False already).
    :param rescale: lambda_m, 1 without an entry.
    :param r: the prior of the term; ``None`` for that of the model.
    """
    weights = rescale if rescale is not None else {}
    scored = expected_log_likelihood(model, *q, data, target)
    total = sum(weights.get(name, 1.0) * value for name, value in scored.items())
    return total - beta * kl_diag(q, r if r is not None else model.prior)


def private_term_value(
    model: SharedPrivate,
    q: Gaussian,  # shapes: (B, L)
    private: Mapping[str, Gaussian],  # shapes: (B, P_m)
    inferred: Mapping[str, Tensor],  # shapes: (B,), bool
    data: Mapping[str, Tensor],
    target: Masks | None = None,
    *,
    rescale: Mapping[str, Number] | None = None,
    beta: Number = 1.0,
    beta_private: Number = 1.0,
    r: Gaussian | None = None,
    auxiliary: Mapping[str, Gaussian] | None = None,  # shapes: (B, P_m) or (P_m,)
) -> Tensor:  # shape: (B,)
    r"""
    A term with private latents: where w_m is inferred it follows q(w_m | x_m) and pays beta_private * KL to its prior;
    elsewhere it is neutral, drawn from the prior (or from the auxiliary r_m) and adding no density.

    :param private: loc and scale of q(w_m | x_m).
    :param inferred: the rows in which w_m is inferred; all other rows use the prior or the auxiliary.
    """
    weights = rescale if rescale is not None else {}
    batch = q[0].shape[0]
    chosen: dict[str, Gaussian] = {}
    penalty = torch.zeros(batch, dtype=torch.float64)
    for name, prior in model.private_prior.items():
        fallback = auxiliary[name] if auxiliary is not None and name in auxiliary else prior
        source = private.get(name, prior)
        known = inferred[name].unsqueeze(-1)
        pairs = zip(source, fallback, strict=True)
        loc, scale = (torch.where(known, a.double(), b.double().expand(batch, -1)) for a, b in pairs)
        chosen[name] = (loc, scale)
        penalty = penalty + torch.where(inferred[name], kl_diag((loc, scale), prior), 0.0)
    scored = expected_log_likelihood(model.joint, *model.stack(q, chosen), data, target)
    total = sum(weights.get(name, 1.0) * value for name, value in scored.items())
    return total - beta * kl_diag(q, r if r is not None else model.prior) - beta_private * penalty


def quadrature(
    loc: Tensor,  # shape: (L,)
    scale: Tensor,  # shape: (L,)
    points: int | None = None,
) -> tuple[Tensor, Tensor]:  # shapes: (P, L), (P,)
    """
    Nodes and weights with sum_p weight_p f(node_p) = E[f(z)], z ~ N(loc, diag scale^2), L at most 2.

    The trapezoidal rule on +-9 standard deviations, whose error falls exponentially for analytic f. Default: 4001
    points for L = 1, 321 per dimension for L = 2.

    Example::

        >>> node, weight = quadrature(torch.tensor([1.0]), torch.tensor([2.0]))
        >>> round((weight * node[:, 0] ** 2).sum().item(), 12)
        5.0

    :raises NotImplementedError: for L > 2; use Monte Carlo there.
    """
    dim = loc.shape[-1]
    if dim > 2:
        raise NotImplementedError(f"quadrature in {dim} dimensions; expected at most 2, use Monte Carlo")
    size = points if points is not None else {1: 4001, 2: 321}[dim]
    t = torch.linspace(-9, 9, size, dtype=torch.float64)
    w = torch.exp(-0.5 * t**2)
    w = w / w.sum()
    grid = torch.cartesian_prod(*[torch.arange(size)] * dim).reshape(-1, dim)
    return loc.double() + scale.double() * t[grid], w[grid].prod(-1)


def log_mixture(z: Tensor, components: Sequence[Component]) -> Tensor:  # shapes: (*sample, L) -> (*sample)
    """
    Log-density of a mixture of diagonal Gaussians, nats.

    Example::

        >>> log_mixture(torch.zeros(1), [(0.5, torch.zeros(1), torch.ones(1))] * 2)
        tensor(-0.9189, dtype=torch.float64)
    """
    parts = []
    for weight, loc, scale in components:
        unit = (z - loc) / scale
        density = (-0.5 * unit**2 - scale.log() - 0.5 * math.log(2 * math.pi)).double().sum(-1)
        parts.append(math.log(weight) + density)
    return torch.logsumexp(torch.stack(parts), 0)


def expected_log_mixture(
    loc: Tensor,  # shape: (L,)
    scale: Tensor,  # shape: (L,)
    components: Sequence[Component],
    points: int | None = None,
) -> Tensor:  # shape: ()
    """
    E[log sum_e w_e q_e(z)] in nats for z ~ N(loc, diag scale^2), by quadrature, L at most 2.

    Error below 1e-10 for scales within a factor 4 of each other, below 1e-6 within a factor 10. Differentiable.

    Example::

        >>> q = (torch.zeros(1), torch.ones(1))
        >>> round(expected_log_mixture(*q, [(1.0, *q)]).item(), 4)
        -1.4189
    """
    node, weight = quadrature(loc, scale, points)
    return (weight * log_mixture(node, components)).sum()
