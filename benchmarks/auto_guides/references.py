"""log p(x_O) of the example stories, in closed form or by quadrature, in float64 and without Pyro."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.auto_guides.quadrature import log_integral
from pyro_mmvae.stories import examples

__all__ = ["EXACT", "log_evidence"]

Values = Mapping[str, Tensor]

#: Rows per block of a quadrature: they share the memory.
BLOCK = 64

#: What each number is, for the table.
EXACT = {
    "FactorAnalysis": "closed form",
    "DiscreteMixture": "sum over 4 classes",
    "ZINB": "quadrature, 3-d",
    "MixedTable": "quadrature, 2-d",
    "Hospitals": "closed form",
    "GammaPoisson": "closed form",
    "DirichletCategorical": "closed form",
    "SharedPrivate": "closed form",
}


def log_evidence(
    story: Any,
    data: Values,
    obs_mask: Mapping[str, Tensor] | None = None,
    *,
    points: int = 33,
) -> Tensor:  # shape: (B,), nats, float64
    r"""
    log p(x_O) of each row, exact but for ZINB and MixedTable, whose quadrature is good to 1e-4 nats, mostly to 1e-6.

    Rows of Hospitals depend on each other through the effects: there row n has
    :math:`\log p(x_n \mid x_1, \dots, x_{n-1})`, and the sum is the exact log p of the whole data set.

    Example::

        >>> story = examples.FactorAnalysis()
        >>> ds = story.simulate(3)
        >>> log_evidence(story, ds.data, ds.obs_mask).shape
        torch.Size([3])

    :param story: one of ``pyro_mmvae.stories.examples``.
    :param data: with the covariates; what lies under the mask does not matter.
    :param obs_mask: modality -> bool, ``(B,)`` or ``(B, *event)``; None: all observed.
    :param points: of the quadrature, per dimension.
    """
    masks = {m: _cells(data[m], None if obs_mask is None else obs_mask[m]) for m in story.modalities}
    x = {m: torch.where(masks[m], data[m], 0).double() for m in story.modalities}
    x |= {name: value for name, value in data.items() if name not in x}
    return _REFERENCES[type(story)](story, x, masks, points).where(_any(masks), 0.0)


def _any(masks: Values) -> Tensor:  # shape: (B,)
    return torch.stack([mask.reshape(len(mask), -1).any(-1) for mask in masks.values()]).any(0)


def _cells(x: Tensor, mask: Tensor | None) -> Tensor:  # shape: (B, *event)
    if mask is None:
        return torch.ones_like(x, dtype=torch.bool)
    return mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())).expand(x.shape)


def masked_normal(
    residual: Tensor,  # shape: (*batch, F), x - mean, 0 where not observed
    covariance: Tensor,  # shape: (*batch, F, F)
    mask: Tensor,  # shape: (*batch, F), bool
) -> Tensor:  # shape: (*batch,), nats
    """Log-density of the observed features of a multivariate normal: the others are cut out of the covariance."""
    tril = torch.linalg.cholesky(_cut(covariance, mask))
    white = torch.linalg.solve_triangular(tril, residual.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * white.square().sum(-1) - log_det - 0.5 * math.log(2 * math.pi) * mask.sum(-1)


def _cut(covariance: Tensor, mask: Tensor) -> Tensor:
    """The covariance with rows and columns of the identity where nothing is observed."""
    keep = mask.to(covariance)
    return covariance * keep.unsqueeze(-1) * keep.unsqueeze(-2) + torch.diag_embed(1 - keep)


def _stacked(x: Values, masks: Values, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:  # shapes: (B, F)
    return torch.cat([x[m] for m in names], -1), torch.cat([masks[m] for m in names], -1)


def _poisson(x: Tensor, rate: Tensor) -> Tensor:
    return x * rate.log() - rate - torch.lgamma(x + 1)


def _factor_analysis(story: examples.FactorAnalysis, x: Values, masks: Values, points: int) -> Tensor:
    value, mask = _stacked(x, masks, story.modalities)
    w, bias, noise = story.weights.double(), story.bias.double(), story.noise.double()
    return masked_normal((value - bias) * mask, w @ w.mT + noise.square().diag(), mask)


def _shared_private(story: examples.SharedPrivate, x: Values, masks: Values, points: int) -> Tensor:
    value, mask = _stacked(x, masks, story.modalities)

    def all_of(what: str) -> list[Tensor]:
        return [story.of(what, m).double() for m in story.modalities]

    shared, own = torch.cat(all_of("shared")), torch.block_diag(*all_of("private"))
    covariance = shared @ shared.mT + own @ own.mT + torch.cat(all_of("noise")).square().diag()
    return masked_normal((value - torch.cat(all_of("bias"))) * mask, covariance, mask)


def _discrete_mixture(story: examples.DiscreteMixture, x: Values, masks: Values, points: int) -> Tensor:
    w, rates = story.weights.double(), story.rates.double()
    loc = story.centers.double() @ w.mT + story.bias.double()  # shape: (C, F)
    covariance = story.spread**2 * w @ w.mT + story.noise**2 * torch.eye(4, dtype=torch.float64)
    mask = masks["expression"].unsqueeze(1).expand(-1, len(loc), -1)
    real = masked_normal((x["expression"].unsqueeze(1) - loc) * mask, covariance, mask)  # shape: (B, C)
    counts = (_poisson(x["counts"].unsqueeze(1), rates) * masks["counts"].unsqueeze(1)).sum(-1)
    return (story.logits.double().log_softmax(-1) + real + counts).logsumexp(-1)


def _gamma_poisson(story: examples.GammaPoisson, x: Values, masks: Values, points: int) -> Tensor:
    value, mask = _stacked(x, masks, story.modalities)
    a, b, e = story.concentration.double(), story.rate.double(), story.exposure.double()
    groups = torch.nn.functional.one_hot(story.group, 2).double()  # shape: (6, 2)
    new_a, new_b = a + (value * mask) @ groups, b + (e * mask) @ groups
    gamma = a * b.log() - torch.lgamma(a) + torch.lgamma(new_a) - new_a * new_b.log()
    return gamma.sum(-1) + ((value * e.log() - torch.lgamma(value + 1)) * mask).sum(-1)


def _dirichlet_categorical(story: examples.DirichletCategorical, x: Values, masks: Values, points: int) -> Tensor:
    value, mask = _stacked(x, masks, story.modalities)
    alpha = story.concentration.double()
    counts = (torch.nn.functional.one_hot(value.long(), 4) * mask.unsqueeze(-1)).sum(-2)
    return _log_beta(alpha + counts) - _log_beta(alpha)


def _log_beta(alpha: Tensor) -> Tensor:
    return torch.lgamma(alpha).sum(-1) - torch.lgamma(alpha.sum(-1))


def _hospitals(story: examples.Hospitals, x: Values, masks: Values, points: int) -> Tensor:
    """One row after the other, as a Kalman filter of the effects."""
    value, mask = _stacked(x, masks, story.modalities)
    w, slope, noise = story.weights.double(), story.slope.double(), story.noise.double()
    loc = torch.zeros(story.count, dtype=torch.float64)
    cov = story.between**2 * torch.eye(story.count, dtype=torch.float64) + 1.0  # the mean's variance is common
    own, found = w @ w.mT + noise.square().diag(), []
    for row, seen, h in zip(value, mask, x["hospital"].tolist(), strict=True):
        residual = (row - story.bias.double() - slope * loc[h]) * seen
        total = own + cov[h, h] * torch.outer(slope, slope)
        found.append(masked_normal(residual, total, seen))
        gain = torch.outer(cov[h], torch.linalg.solve(_cut(total, seen), slope * seen))  # shape: (H, F)
        loc, cov = loc + gain @ residual, cov - torch.outer(gain @ (slope * seen), cov[h])
    return torch.stack(found)


def _by_quadrature(
    log_joint: Callable[[Any, Values, Values, Tensor], Tensor],
    dim: int,
    story: Any,
    x: Values,
    masks: Values,
    points: int,
) -> Tensor:  # shape: (B,)
    rows, found = len(next(iter(masks.values()))), []
    for start in range(0, rows, BLOCK):
        block = slice(start, start + BLOCK)
        part = {m: v[block] for m, v in x.items()}, {m: v[block] for m, v in masks.items()}
        count = len(next(iter(part[1].values())))
        found.append(log_integral(partial(log_joint, story, *part), count, dim, points=points))
    return torch.cat(found)


def _log_prior(t: Tensor) -> Tensor:  # shape: (B, P, D) -> (B, P)
    return -0.5 * (t.square() + math.log(2 * math.pi)).sum(-1)


def _normal(x: Tensor, loc: Tensor, scale: float) -> Tensor:
    return -0.5 * ((x - loc) / scale).square() - math.log(scale) - 0.5 * math.log(2 * math.pi)


def _zinb(story: examples.ZINB, x: Values, masks: Values, t: Tensor) -> Tensor:  # shape: (B, P, 3) -> (B, P)
    """Coordinates: z, and the standardized log of the library size."""
    z, log_library = t[..., :2], story.library_loc + story.library_scale * t[..., 2:]
    bias = story.gene_bias.double() + story.shift.double()[x["batch"]].unsqueeze(1)
    log_mean = log_library + (z @ story.genes.double().mT + bias).log_softmax(-1)
    theta, gate, n = story.dispersion.double(), story.gate.double(), x["rna"].unsqueeze(1)
    log_total = torch.logaddexp(theta.log(), log_mean)
    counts = torch.lgamma(n + theta) - torch.lgamma(theta) - torch.lgamma(n + 1)
    counts = counts + theta * (theta.log() - log_total) + n * (log_mean - log_total)
    counts = torch.where(n == 0, torch.logaddexp(gate.log(), (1 - gate).log() + counts), (1 - gate).log() + counts)
    loc = z @ story.weights.double().mT + story.bias.double()
    protein = _normal(x["protein"].unsqueeze(1), loc, story.protein_scale)
    scores = (counts * masks["rna"].unsqueeze(1)).sum(-1) + (protein * masks["protein"].unsqueeze(1)).sum(-1)
    return scores + _log_prior(t)


def _mixed_table(story: examples.MixedTable, x: Values, masks: Values, t: Tensor) -> Tensor:  # shape: -> (B, P)
    raw = t @ story.weights.double().mT + story.bias.double()
    lab, flags, kind, stage = raw.split(list(story.sizes.values()), -1)
    real = _normal(x["lab"].unsqueeze(1), lab, story.noise)
    binary = logsigmoid((2 * x["flags"].unsqueeze(1) - 1) * flags)
    label = x["kind"].long().reshape(-1, 1, 1).expand(*kind.shape[:2], 1)
    named = kind.log_softmax(-1).gather(-1, label).squeeze(-1)
    ends = torch.tensor([-math.inf, *story.cut_points.tolist(), math.inf], dtype=torch.float64)
    grade = x["stage"].long().unsqueeze(-1)
    low, high = ends[grade] - stage.squeeze(-1), ends[grade + 1] - stage.squeeze(-1)
    # sigmoid(high) - sigmoid(low) = sigmoid(high) sigmoid(-low) (1 - exp(low - high))
    ordered = logsigmoid(high) + logsigmoid(-low) + torch.log(-torch.expm1(ends[grade] - ends[grade + 1]))
    scores = (real * masks["lab"].unsqueeze(1)).sum(-1) + (binary * masks["flags"].unsqueeze(1)).sum(-1)
    scores = scores + named * masks["kind"].unsqueeze(1) + ordered * masks["stage"].unsqueeze(1)
    return scores + _log_prior(t)


_REFERENCES: dict[type, Callable[..., Tensor]] = {
    examples.FactorAnalysis: _factor_analysis,
    examples.SharedPrivate: _shared_private,
    examples.DiscreteMixture: _discrete_mixture,
    examples.GammaPoisson: _gamma_poisson,
    examples.DirichletCategorical: _dirichlet_categorical,
    examples.Hospitals: _hospitals,
    examples.ZINB: partial(_by_quadrature, _zinb, 3),
    examples.MixedTable: partial(_by_quadrature, _mixed_table, 2),
}
