"""The product family in several settings: gPoE, DMVAE, CRMVAE, mmJSD, DVCCA, and MVAE under other rules.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import pyro_mmvae as mm
from tests.conformance import exact
from tests.conformance.cases import OWN_LOOP, WEIGHTS, Case
from tests.conformance.problems import Problem
from tests.oracles.linear_gaussian import Gaussian
from tests.oracles.product_family import (
    Fuse,
    exact_crmvae,
    exact_dmvae,
    exact_dvcca,
    exact_gpoe,
    exact_mmjsd,
    exact_mvae_by,
    generalized,
    geometric,
    mean_of_parameters,
    several,
    with_prior,
)
from tests.oracles.products import row_product

EXPONENTS = {"a": (0.9, 0.3), "b": (0.5, 0.8), "c": (0.2, 0.6)}  # by latent dimension
SHARES = {"": 0.4, "a": 1.3, "b": 0.6, "c": 0.9}
BETA_PRIVATE = {"a": 0.6, "b": 1.9, "c": 0.3}
PRIVATE = {"private": True}
REFERENCE_ONLY = "only the reference is encoded: the others have no encoders to train or to count rows of (spec 12)"
REFERENCE_PRIOR = "without its reference a row keeps the prior, for one row nearly the exact posterior (spec 12)"
STRATIFIED = "terms draw from the single experts of the mixture, q(z | x_O) of all else is another rule (spec 4)"
NO_BOUND = "the table of mmJSD is no bound of the mixture of its experts (spec 4)"

Rule = Callable[[Problem], Fuse]


def exponents(p: Problem) -> dict[str, Tensor]:  # shapes: (L,)
    """The exponents of gPoE in a problem."""
    return {m: torch.tensor(EXPONENTS[m][: p.latent_dim], dtype=torch.float64) for m in p.modalities}


def set_exponents(vae: mm.MultimodalVAE) -> None:
    """Exponents that are not equal, by the experts' names."""
    encoders, rule = vae.guide.encoders["z"], vae.guide.fusion["z"]
    table = torch.tensor([EXPONENTS[m] for m in encoders], dtype=torch.float64)[:, : rule.logits.shape[1]]
    with torch.no_grad():
        rule.logits.copy_(table.log() if rule.normalize else table)


def never(p: Problem) -> Fuse:
    """PoE0."""
    return lambda experts, names, n: row_product(experts, names, n)


def reference(name: str) -> Rule:
    """REF; the prior where the reference is missing."""

    def rule(p: Problem) -> Fuse:
        def fuse(experts: Mapping[str, Gaussian], names: Any, n: int) -> Gaussian:
            return (experts[name][0][n], experts[name][1][n]) if name in names else p.model.prior

        return fuse

    return rule


def posterior(rule: Rule) -> Callable[[Problem], Gaussian]:
    """q(z | x_O) under a rule, the private latents beside it."""

    def found(p: Problem) -> Gaussian:  # shapes: (B, L + sum P_m)
        rows = [rule(p)(p.experts, names, n) if names else p.model.prior for n, names in enumerate(p.sets)]
        loc, scale = (torch.stack(column) for column in zip(*rows, strict=True))
        return exact.beside(p, (loc, scale))

    return found


def value(objective: Callable[..., Tensor], rule: Rule | None = None) -> Callable[..., Tensor]:
    """An exact objective as a function of the problem."""

    def found(p: Problem, **options: Any) -> Tensor:  # shape: (B,)
        own = {} if rule is None else {"fuse": rule(p)}
        if p.private:
            own["private"] = p.private  # type: ignore[assignment]
        return objective(p.model, p.experts, p.data, p.obs_mask, **own, **options)

    return found


def uneven(p: Problem) -> Fuse:
    """gPoE."""
    return generalized(exponents(p))


def unnormalized(p: Problem) -> Fuse:
    """gPoE with exponents that are free."""
    return generalized(exponents(p), normalize=False)


def equal_geometric(p: Problem) -> Fuse:
    """GEO+ with equal weights."""
    return geometric(p.model.prior)


def uneven_geometric(p: Problem) -> Fuse:
    """GEO+ with the weights of :data:`SHARES`."""
    return geometric(p.model.prior, SHARES)


def some(p: Problem) -> Fuse:
    """The prior beside several experts only."""
    return several(p.model.prior)


def always(p: Problem) -> Fuse:
    """PoE+."""
    return with_prior(p.model.prior)


def mean(p: Problem) -> Fuse:
    """Mean of parameters."""
    return mean_of_parameters()


def mean_with_prior(p: Problem) -> Fuse:
    """Mean of parameters, those of the prior among them."""
    return mean_of_parameters(p.model.prior)


def case(
    name: str,
    method: type[mm.MultimodalVAE],
    objective: Callable[..., Tensor],
    rule: Rule,
    options: Mapping[str, Any],
    *,
    fused: bool = True,
    **further: Any,
) -> Case:
    """A case whose objective (if ``fused``) and posterior share a rule."""
    if further.get("problem") == PRIVATE:
        further["skips"] = {"looped terms": OWN_LOOP, **further.get("skips", {})}
    further.setdefault("posterior", posterior(rule))
    return Case(name, method, value(objective, rule if fused else None), options=options, **further)


def gpoe(name: str, rule: Rule, options: Mapping[str, Any], **further: Any) -> Case:
    """A setting of gPoE."""
    return case(f"GPoE{name}", mm.GPoE, exact_gpoe, rule, options, prepare=set_exponents, **further)


def dmvae(name: str, options: Mapping[str, Any], rule: Rule = some, **further: Any) -> Case:
    """A setting of DMVAE."""
    return case(f"DMVAE{name}", mm.DMVAE, exact_dmvae, rule, options, **further)


def mmjsd(name: str, rule: Rule, options: Mapping[str, Any], **further: Any) -> Case:
    """A setting of mmJSD."""
    skips = {"single term": STRATIFIED, **further.pop("skips", {})}
    if "posterior" not in further:
        skips["stock Pyro = ELBO"] = STRATIFIED
    return case(f"MMJSD{name}", mm.MMJSD, exact_mmjsd, rule, options, fused=False, skips=skips, **further)


def dvcca(name: str, own: str, options: Mapping[str, Any], **further: Any) -> Case:
    """A setting of DVCCA that drops rows without the reference."""
    library = {"fallback": "drop", "reference": own, **further.pop("library", {})}
    oracle = {"reference": own, **further.pop("oracle", {})}
    skips = {"lazy = dense": REFERENCE_ONLY}
    if "problem" not in further:
        skips |= {"stock Pyro": REFERENCE_ONLY, "single term": REFERENCE_PRIOR}
    return case(
        f"DVCCA{name}",
        mm.DVCCA,
        exact_dvcca,
        reference(own),
        options,
        fused=False,
        library=library,
        oracle=oracle,
        skips=skips,
        **further,
    )


ANNEALED = {"library": {"beta": 1.7, "warmup": 4}, "oracle": {"beta": 0.85}, "steps": 1}
OWN = {**WEIGHTS, "beta_private": BETA_PRIVATE}

PRODUCT_CASES = [
    case("MVAE several", mm.MVAE, exact_mvae_by, some, WEIGHTS, library={"prior_expert": "several"}),
    case("MVAE mean", mm.MVAE, exact_mvae_by, mean, WEIGHTS, library={"fusion": mm.fusion.MeanOfParameters()}),
    case(
        "MVAE mean with prior",
        mm.MVAE,
        exact_mvae_by,
        mean_with_prior,
        {**WEIGHTS, "unimodal": False},
        library={"fusion": mm.fusion.MeanOfParameters(prior_expert=True)},
    ),
    gpoe("", uneven, WEIGHTS),
    gpoe(" plain", uneven, {}),
    gpoe(" free", unnormalized, WEIGHTS, library={"normalize": False}),
    gpoe(" private", uneven, OWN, problem=PRIVATE),
    gpoe(" warm-up", uneven, {"beta_private": 0.6}, problem=PRIVATE, **ANNEALED),
    dmvae("", WEIGHTS),
    dmvae(" multivae", {**WEIGHTS, "counting": "multivae"}),
    dmvae(" private", OWN, problem=PRIVATE),
    dmvae(" private multivae", {**OWN, "counting": "multivae", "normalize_rows": True}, problem=PRIVATE),
    dmvae(" normalized", {**WEIGHTS, "normalize_rows": True}),
    dmvae(" zeroed", {**OWN, "reconstruct_joint": False}, problem=PRIVATE),
    dmvae(" prior", {**WEIGHTS}, always, library={"unimodal_prior_expert": True}),
    dmvae(" generalized", OWN, uneven, library={"fusion": "generalized"}, prepare=set_exponents, problem=PRIVATE),
    dmvae(" warm-up", {"beta_private": 0.6}, problem=PRIVATE, **ANNEALED),
    case("CRMVAE", mm.CRMVAE, exact_crmvae, never, WEIGHTS, fused=False),
    case("CRMVAE default", mm.CRMVAE, exact_crmvae, never, {}, fused=False),
    case("CRMVAE warm-up", mm.CRMVAE, exact_crmvae, never, {}, fused=False, **ANNEALED),
    mmjsd("", equal_geometric, WEIGHTS),
    mmjsd(" weights", uneven_geometric, {**WEIGHTS, "weights": SHARES}),
    mmjsd(" private", uneven_geometric, {**OWN, "weights": SHARES}, problem=PRIVATE),
    mmjsd(" product", never, {"weights": SHARES}, library={"subset_posterior": "product"}),
    mmjsd(
        " mixture",
        equal_geometric,
        WEIGHTS,
        library={"subset_posterior": "mixture"},
        posterior=exact.mixture,
        skips={"bounds": NO_BOUND},
    ),
    mmjsd(" warm-up", equal_geometric, {"beta_private": 0.6}, problem=PRIVATE, **ANNEALED),
    dvcca("", "a", WEIGHTS),
    dvcca(" reference", "b", WEIGHTS, minimum=2),
    dvcca(" private", "a", OWN, problem=PRIVATE),
    dvcca(" warm-up", "a", {"beta_private": 0.6}, problem=PRIVATE, **ANNEALED),
]
