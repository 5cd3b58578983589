"""Every rule that makes a Gaussian, with the oracle it must equal.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae import fusion
from pyro_mmvae.distributions import unwrap
from pyro_mmvae.fusion import Experts
from tests.oracles import products
from tests.oracles.cases import Case, make_case
from tests.oracles.linear_gaussian import Gaussian

WEIGHTS = (0.5, 1.0, 2.0, 0.25)  # of the prior and three experts
LOGITS = torch.tensor([[0.3, -0.8], [-1.1, 0.4], [0.9, 0.2]], dtype=torch.float64)


@dataclass(frozen=True)
class Rule:
    """A rule, its oracle, and whether one expert alone comes out as itself."""

    name: str
    make: Callable[[], fusion.Fusion]
    oracle: Callable[[Case], Gaussian]
    one_is_itself: bool


def product(rule: products.PriorExpert) -> Callable[[Case], Gaussian]:
    """Product with the prior in all, no, or complete rows."""

    def oracle(case: Case) -> Gaussian:
        full = torch.tensor([len(s) == len(case.model.modalities) for s in case.sets]).unsqueeze(-1)
        without = products.product_of_experts(case.experts, case.obs_mask, empty=case.model.prior)
        if rule == "never":
            return without
        own = products.product_of_experts(case.experts, case.obs_mask, case.model.prior)
        if rule == "always":
            return own
        return torch.where(full, own[0], without[0]), torch.where(full, own[1], without[1])

    return oracle


def generalized(case: Case) -> Gaussian:
    """gPoE; rows that observe nothing keep the prior."""
    positive = dict(zip(case.model.modalities, LOGITS.exp(), strict=True))
    some = slice(1, None)
    found = products.generalized_product(
        {m: (q[0][some], q[1][some]) for m, q in case.experts.items()},
        {m: a[some] for m, a in case.obs_mask.items()},
        positive,
    )
    loc, scale = (torch.cat([p.unsqueeze(0), q]) for p, q in zip(case.model.prior, found, strict=True))
    return loc, scale


def geometric(case: Case) -> Gaussian:
    """GEO+ with weights that are renormalized over the prior and what each row observes."""
    rows = []
    for n, names in enumerate(case.sets):
        own = {m: WEIGHTS[1 + i] for i, m in enumerate(case.model.modalities) if m in names}
        total = WEIGHTS[0] + sum(own.values())
        shares = {m: w / total for m, w in own.items()}
        rows.append(products.row_product(case.experts, names, n, case.model.prior, WEIGHTS[0] / total, shares))
    return torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])


def mean_of_parameters(case: Case) -> Gaussian:
    """Arithmetic mean of the locations, geometric mean of the scales, row by row."""
    return by_row(case, lambda loc, scale: (loc.mean(0), scale.prod(0) ** (1 / len(scale))))


def mean_with_prior(case: Case) -> Gaussian:
    """The prior as one more expert."""
    own = [p.unsqueeze(0) for p in case.model.prior]

    def fused(loc: Tensor, scale: Tensor) -> Gaussian:
        loc, scale = torch.cat([own[0], loc]), torch.cat([own[1], scale])
        return loc.mean(0), scale.prod(0) ** (1 / len(scale))

    return by_row(case, fused)


def barycenter(case: Case) -> Gaussian:
    """Arithmetic means of both."""
    return by_row(case, lambda loc, scale: (loc.mean(0), scale.mean(0)))


def consensus(rho: float, nonnegative: str) -> Callable[[Case], Gaussian]:
    """Explicit inverses; the largest correlation with non-negative weights by bisection."""

    def oracle(case: Case) -> Gaussian:
        def fused(loc: Tensor, scale: Tensor) -> Gaussian:
            found = [dependent(a, b, rho, nonnegative) for a, b in zip(loc.t(), scale.t(), strict=True)]
            return torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])

        return by_row(case, fused)

    return oracle


def dependent(loc: Tensor, scale: Tensor, rho: float, nonnegative: str | None) -> Gaussian:  # shapes: (k,)
    """Best linear combination of k estimates with equal correlations; ``nonnegative=None``: whatever the signs."""

    def solved(rho: float) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(scale), dtype=scale.dtype)
        cov = (eye + rho * (1 - eye)) * scale.outer(scale)
        v = torch.linalg.inv(cov).sum(1)
        return v / v.sum(), cov

    v, cov = solved(rho)
    if nonnegative == "weights":
        v = v.clamp(min=0) / v.clamp(min=0).sum()
    elif nonnegative == "rho" and (v < 0).any():
        low, high = 0.0, rho
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if (solved(middle)[0] < 0).any() else (middle, high)
        v, cov = solved(low)
    return v @ loc, (v @ cov @ v).sqrt()


def hoelder(bc: str) -> Callable[[Case], Gaussian]:
    """Moments of (mean of square roots of densities) squared, by sums over a grid."""

    def oracle(case: Case) -> Gaussian:
        def fused(loc: Tensor, scale: Tensor) -> Gaussian:
            if bc == "joint":
                return grid_moments(loc, scale)
            found = [grid_moments(loc[:, d : d + 1], scale[:, d : d + 1]) for d in range(loc.shape[1])]
            return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

        return by_row(case, fused)

    return oracle


def grid_moments(loc: Tensor, scale: Tensor) -> Gaussian:  # shapes: (k, D)
    """Mean and standard deviation per dimension; sums over a grid are exact to rounding for such smooth densities."""
    axes = [torch.arange(float((a - 11 * b).min()), float((a + 11 * b).max()), float(b.min()) / 3)
            for a, b in zip(loc.t(), scale.t(), strict=True)]  # fmt: skip
    grid = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    root = sum((0.5 * dist.Normal(a, b).log_prob(grid).sum(-1)).exp() for a, b in zip(loc, scale, strict=True))
    weight = torch.as_tensor(root).square()
    weight = weight / weight.sum()
    mean = weight @ grid
    return mean, (weight @ (grid - mean).square()).sqrt()


def by_row(case: Case, fused: Callable[[Tensor, Tensor], Gaussian]) -> Gaussian:
    """A rule of stacked observed experts ``(k, D)`` in each row; the prior where there are none."""
    rows = []
    for n, names in enumerate(case.sets):
        own = [case.experts[m] for m in case.model.modalities if m in names]
        stacked = [torch.stack([q[i][n] for q in own]) for i in (0, 1)] if own else []
        rows.append(fused(*stacked) if own else case.model.prior)
    return torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])


def make_generalized() -> fusion.Fusion:
    """gPoE with weights that are not equal."""
    rule = fusion.GeneralizedProduct(3, 2).double()
    rule.logits.data.copy_(LOGITS)
    return rule


RULES = [
    Rule("product always", lambda: fusion.Product(), product("always"), False),
    Rule("product never", lambda: fusion.Product(prior_expert="never"), product("never"), True),
    Rule("product full only", lambda: fusion.Product(prior_expert="full_only"), product("full_only"), True),
    Rule("generalized", make_generalized, generalized, True),
    Rule("geometric", lambda: fusion.GeometricMean(WEIGHTS), geometric, False),
    Rule(
        "geometric equal",
        lambda: fusion.GeometricMean(),
        lambda case: products.geometric_mean(case.experts, case.obs_mask, case.model.prior),
        False,
    ),
    Rule("mean", fusion.MeanOfParameters, mean_of_parameters, True),
    Rule("mean with prior", lambda: fusion.MeanOfParameters(prior_expert=True), mean_with_prior, False),
    Rule("barycenter", fusion.WassersteinBarycenter, barycenter, True),
    Rule("consensus", lambda: fusion.ConsensusOfDependentExperts(0.8), consensus(0.8, "rho"), True),
    Rule(
        "consensus weights",
        lambda: fusion.ConsensusOfDependentExperts(0.8, nonnegative="weights"),
        consensus(0.8, "weights"),
        True,
    ),
    Rule("hoelder", lambda: fusion.Hoelder(), hoelder("dim"), True),
    Rule("hoelder joint", lambda: fusion.Hoelder(bc="joint"), hoelder("joint"), True),
    Rule("hoelder mixture", lambda: fusion.Hoelder("mixture"), hoelder("dim"), True),
    Rule("hoelder joint mixture", lambda: fusion.Hoelder("mixture", "joint"), hoelder("joint"), True),
]


def case_of(seed: int = 0) -> Case:
    """Three modalities, two latent dimensions, a row for every set of observed modalities."""
    return make_case(3, 2, seed=seed)


def experts_of(case: Case, fill: float = 0.0, order: tuple[str, ...] | None = None) -> Experts:
    """The case's experts; hidden rows hold a constant."""
    names = case.model.modalities if order is None else order
    made = []
    for m in names:
        loc, scale = case.experts[m]
        hidden = loc.isnan()
        made.append(dist.Normal(torch.where(hidden, fill, loc), torch.where(hidden, 1.0, scale)).to_event(1))
    return Experts(names, tuple(made))


def mask_of(case: Case, order: tuple[str, ...] | None = None) -> Tensor:  # shape: (M, B)
    """The masks, in the order of the experts."""
    return torch.stack([case.obs_mask[m] for m in (case.model.modalities if order is None else order)])


def prior_of(case: Case) -> Any:
    """The model's prior."""
    return dist.Normal(*case.model.prior).to_event(1)


def parameters(q: Any) -> Gaussian:
    """Location and scale of a fused Gaussian."""
    base = unwrap(q)
    return (base.loc, base.scale) if isinstance(base, dist.Normal) else (q.mean, q.variance.sqrt())
