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
