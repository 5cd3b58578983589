"""The masked bound in several settings: a posterior known in closed form, and the library's own pooling.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import pyro_mmvae as mm
from tests.conformance.cases import WEIGHTS, Case
from tests.conformance.pools import by_product, by_set, pooled, products, set_networks
from tests.conformance.problems import Problem
from tests.oracles.linear_gaussian import Gaussian
from tests.oracles.masked_bound import Posterior, masked_bound_outcomes

NO_ENCODERS = "a set encoder is one network of all modalities: there are no encoders of single ones to count rows of"
NAMES = "the feature networks are the pooling's: the case with a pooling of its own checks that they move"


def case(
    name: str,
    rule: Callable[[Problem], Posterior],
    options: Mapping[str, Any],
    *,
    method: Any = mm.MaskedVAE,
    skips: Mapping[str, str] | None = None,
    **further: Any,
) -> Case:
    """A setting of MaskedVAE whose posterior given a set is ``rule``."""

    def outcomes(p: Problem, **given: Any) -> Tensor:  # shape: (outcomes, B)
        return masked_bound_outcomes(p.model, rule(p), p.data, p.obs_mask, **given)  # type: ignore[arg-type]

    def posterior(p: Problem) -> Gaussian:  # shapes: (B, L)
        ask = rule(p)
        found = [ask(names, n) if names else p.model.prior for n, names in enumerate(p.sets)]
        loc, scale = (torch.stack(column) for column in zip(*found, strict=True))
        return loc, scale

    reasons = {"lazy = dense": NO_ENCODERS, **({} if skips is None else skips)}
    return Case(name, method, outcomes, posterior, options, random="sample", skips=reasons, **further)


SUM, ATTENTION = by_set(mm.nn.SumPoolingEncoder), by_set(mm.nn.AttentionEncoder, num_heads=2, num_blocks=1)
PATH = {"gradient": "path"}
OWN: dict[str, Any] = {"method": by_product}
SET: dict[str, Any] = {"prepare": set_networks, "skips": {"stock Pyro": NAMES}}

MASKED_CASES = [
    case("MaskedVAE", products, {**WEIGHTS}, **OWN),
    case("MaskedVAE path", products, {**WEIGHTS}, library=PATH, **OWN),
    case("MaskedVAE plain", products, {}, **OWN),
    case(
        "MaskedVAE warm-up",
        products,
        {},
        library={**PATH, "beta": 1.7, "warmup": 4},
        oracle={"beta": 0.85},
        steps=1,
        **OWN,
    ),
    case("MaskedVAE sum", pooled(SUM), {**WEIGHTS}, library=PATH, method=SUM, **SET),
    case("MaskedVAE attention", pooled(ATTENTION), {**WEIGHTS}, method=ATTENTION, **SET),
]
