"""The mixture family in several settings: MMVAE+, CMVAE, MCVAE, MMVM, CoDEVAE, HELVAE.

Test layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.objectives.subsets import Context
from tests.conformance import exact
from tests.conformance.cases import EXPERTS, MIX, PAIRS, SPLIT, WEIGHTS, Case
from tests.conformance.problems import Problem
from tests.oracles.linear_gaussian import Gaussian
from tests.oracles.mixture_family import estimate_mmvaeplus, estimate_mmvm, exact_mcvae, exact_mmvm
from tests.oracles.pooled_family import (
    consensus_posterior,
    estimate_helvae,
    exact_codevae,
    exact_helvae,
    hoelder_mixture,
    hoelder_posterior,
)
from tests.oracles.products import nonempty_subsets
from tests.oracles.terms import Component

PRIVATE = {"private": True}
SCALES = {"a": 0.6, "b": 1.4, "c": 0.8}  # of the auxiliary priors
LEARNED = {m: (torch.zeros(1).double(), torch.full((1,), s, dtype=torch.float64)) for m, s in SCALES.items()}
SHARES = {"a": 1.3, "b": 0.6, "c": 0.9}  # of the experts in a Hoelder pooling
LOGITS = {"a": 0.4, "b": -0.7, "c": 0.2, "": 0.3}  # of a subset: its members' sum, and a share of its size squared

OTHER_MODEL = "with learned r it bounds the evidence of another model, not of p (spec 8)"
NO_BOUND = "the prior depends on the data: no bound on log p(x_O) (spec, joint 6.1)"
STATISTICS = "the weights of a row depend on its batch: no bound on its own evidence (spec 11)"
TOGETHER = "the learned weights are a softmax over all subsets at once (spec, joint 6.2)"
IMPROPER = "the log-uniform prior is improper: no evidence, and no draws where nothing is observed (spec 11)"


def set_auxiliary(vae: mm.MultimodalVAE) -> None:
    """Auxiliary priors of unequal scales, where they are learned."""
    for m, s in SCALES.items():
        name = f"z_{m}"
        if name in vae.guide.fusion and hasattr(getattr(vae.guide.fusion[name], "auxiliary", None), "log_scale"):
            with torch.no_grad():
                vae.guide.fusion[name].auxiliary.log_scale.fill_(math.log(s))


def flat(eps: Tensor) -> Tensor:  # shapes: (B, D) or (K, 1, B, D) -> (K, B, D)
    """Noise with its particles."""
    return eps.unsqueeze(0) if eps.dim() == 2 else eps.squeeze(1)


def mmvaeplus(p: Problem, eps: Mapping[str, Tensor], **options: Any) -> Tensor:  # shape: (B,)
    """MMVAE+ at given noise."""
    noise = {site: flat(e) for site, e in eps.items()}
    given = p.model, p.experts, p.private, p.data, p.obs_mask, noise
    return estimate_mmvaeplus(*given, family=p.family, **options)  # type: ignore[arg-type]


def plus(name: str, auxiliary: str, particles: int = 1, *, counted: bool = False, **further: Any) -> Case:
    """A setting of MMVAE+."""
    shared = {**WEIGHTS, "auxiliary_kl": counted}
    library = {"auxiliary": auxiliary, "num_particles": particles, "private_prior": "normal"}
    oracle = {"auxiliary": LEARNED if auxiliary == "learned" else auxiliary}
    bound = counted or auxiliary != "learned"
    skips = MIX if bound else {**MIX, "bounds": OTHER_MODEL}
    settings = {"library": library, "oracle": oracle, "skips": skips, "problem": PRIVATE, **further}
    return Case(f"MMVAE+{name}", mm.MMVAEPlus, None, EXPERTS, shared, mmvaeplus, prepare=set_auxiliary, **settings)


CLUSTERS: tuple[Component, ...] = tuple(
    (w, torch.tensor(loc, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    for w, loc in ((0.2, (-0.8, 0.5)), (0.5, (0.4, 0.9)), (0.3, (1.1, -0.6)))
)


def clusters_of(size: int) -> tuple[Component, ...]:
    """The clusters in a latent of another size."""
    return tuple((w, loc[:size], scale[:size]) for w, loc, scale in CLUSTERS)


def set_clusters(vae: mm.MultimodalVAE) -> None:
    """Clusters of unequal weights, at different places; auxiliary priors of unequal scales."""
    prior = vae.model.story.program.prior
    parts = clusters_of(prior.loc.shape[-1])
    with torch.no_grad():
        prior.loc.copy_(torch.stack([loc for _, loc, _ in parts]))
        prior.logits.copy_(torch.tensor([w for w, _, _ in parts]).log())
    set_auxiliary(vae)


def cmvae_at(p: Problem, eps: Mapping[str, Tensor], **options: Any) -> Tensor:  # shape: (B,)
    """CMVAE at given noise."""
    return mmvaeplus(p, eps, clusters=clusters_of(p.latent_dim), **options)


def cmvae(name: str, auxiliary: str, particles: int = 1) -> Case:
    """A setting of CMVAE."""
    library = {"auxiliary": auxiliary, "num_particles": particles, "num_clusters": 3, "cluster_prior": "normal"}
    oracle = {"auxiliary": LEARNED if auxiliary == "learned" else auxiliary}
    return Case(
        f"CMVAE{name}",
        mm.CMVAE,
        None,
        EXPERTS,
        WEIGHTS,
        cmvae_at,
        library,
        oracle,
        problem=PRIVATE,
        prepare=set_clusters,
        clusters=CLUSTERS,
        skips=MIX if auxiliary == "prior" else {**MIX, "bounds": OTHER_MODEL},
    )


def closed(objective: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An exact objective as a function of the problem."""

    def found(p: Problem, **options: Any) -> Tensor:  # shape: (B,)
        return objective(p.model, p.experts, p.data, p.obs_mask, **options)

    return found


def mmvm_at(p: Problem, eps: Tensor, **options: Any) -> Tensor:  # shape: (B,)
    """MMVM at given noise, the mean over its particles."""
    each = [estimate_mmvm(p.model, p.experts, p.data, p.obs_mask, e, **options) for e in flat(eps)]  # type: ignore[arg-type]
    return torch.stack(each).mean(0)

#: asked for one modality, a guide written by hand answers with a mixture of which all components but one are absent
BY_HAND = "a guide by hand gives r as a mixture: the KL is sampled there, in closed form in one pass (spec 6.1)"


def mmvm(name: str, divergence: str = "mixture", **further: Any) -> Case:
    """A setting of MMVM."""
    options = {**WEIGHTS, **further.pop("options", {})}
    settings = {"library": {"divergence": divergence}, "skips": {**SPLIT, "bounds": NO_BOUND}, **further}
    if divergence == "pairwise":
        settings["oracle"] = {"divergence": "pairwise"}
        settings["skips"] = {**settings["skips"], "looped terms": BY_HAND}
        return Case(f"MMVM{name}", mm.MMVM, closed(exact_mmvm), EXPERTS, options, **settings)
    return Case(f"MMVM{name}", mm.MMVM, None, EXPERTS, options, mmvm_at, **settings)


def logit(subset: tuple[str, ...]) -> float:
    """What a subset's weight is learned to be, whatever the order of its members."""
    return sum(LOGITS[m] for m in subset) + LOGITS[""] * len(subset) ** 2


def set_weights(vae: mm.MultimodalVAE) -> None:
    """Learned weights that are not equal, by subset."""
    term = vae.objective.terms.terms[0]
    names = tuple(vae.model.modalities)
    table = term.source(Context(torch.ones(1, len(names), dtype=torch.bool), names))[:, 0]
    logits = [logit(tuple(m for m, inside in zip(names, row, strict=True) if inside)) for row in table.tolist()]
    with torch.no_grad():
        term.weight.logits.copy_(torch.tensor(logits))


def codevae_value(p: Problem, *, subsets: Any = None, learn: bool = True, **options: Any) -> Tensor:  # shape: (B,)
    """CoDEVAE with the logits of :func:`logit`, or equal ones."""
    used = [tuple(s) for s in subsets] if subsets is not None else nonempty_subsets(p.modalities)
    logits = {s: logit(s) if learn else 0.0 for s in used}
    return exact_codevae(p.model, p.experts, p.data, p.obs_mask, logits=logits, **options)  # type: ignore[arg-type]


def codevae(name: str, rho: float, options: Mapping[str, Any], **further: Any) -> Case:
    """A setting of CoDEVAE."""

    def posterior(p: Problem) -> Gaussian:
        return consensus_posterior(p.model, p.experts, p.obs_mask, rho)  # type: ignore[arg-type]

    if "prepare" not in further:
        further |= {"prepare": set_weights, "skips": {"looped terms": TOGETHER}}
    return Case(f"CoDEVAE{name}", mm.CoDEVAE, codevae_value, posterior, {"rho": rho, **options}, **further)


def helvae(name: str, form: str = "moment", **pooling: Any) -> Case:
    """A setting of HELVAE: its Gaussian, or the exact pooling, a mixture."""
    options = {**WEIGHTS, **pooling}
    if form == "moment":

        def posterior(p: Problem) -> Gaussian:
            return hoelder_posterior(p.model, p.experts, p.obs_mask, **pooling)  # type: ignore[arg-type]

        return Case(f"HELVAE{name}", mm.HELVAE, closed(exact_helvae), posterior, options)

    def components(p: Problem) -> list[list[Component]]:
        return [hoelder_mixture(p.experts, s, n, **pooling) if s else [] for n, s in enumerate(p.sets)]

    def at_noise(p: Problem, eps: Tensor, **options: Any) -> Tensor:  # shape: (B,)
        return estimate_helvae(p.model, p.experts, p.data, p.obs_mask, flat(eps), **options)  # type: ignore[arg-type]

    exact.MIXTURES.add(components)
    return Case(
        f"HELVAE{name}", mm.HELVAE, None, components, options, at_noise, library={"form": "mixture"}, skips=SPLIT
    )


NEEDS_A_PRIOR = ("single term", "bounds", "stock Pyro = ELBO", "Predictive", "poutine")
SPARSE = {**dict.fromkeys(NEEDS_A_PRIOR, IMPROPER), "gates": "the log-uniform prior has no parameters (spec 11)"}

MIXTURE_CASES = [
    plus(" prior", "prior"),
    plus(" learned", "learned"),
    plus(" learned K=5", "learned", 5),
    plus(" prior K=5", "prior", 5),
    plus(" posterior", "posterior"),
    plus(" posterior K=5", "posterior", 5),
    plus(" learned counted", "learned", counted=True),
    plus(" learned counted K=5", "learned", 5, counted=True),
    cmvae(" prior", "prior"),
    cmvae(" learned K=5", "learned", 5),
    Case("MCVAE", mm.MCVAE, closed(exact_mcvae), EXPERTS, WEIGHTS, skips=SPLIT),
    Case(
        "MCVAE multi-task",
        mm.MCVAE,
        closed(exact_mcvae),
        EXPERTS,
        {**WEIGHTS, "weights": "multi_task"},
        batch_statistics=True,
        skips={**SPLIT, "bounds": STATISTICS},
    ),
    Case("MCVAE sparse", mm.MCVAE, closed(exact_mcvae), EXPERTS, {**WEIGHTS, "sparse": True}, skips=SPARSE),
    mmvm(""),
    mmvm(" alpha", options={"alpha": 0.3, "prior_weight": 0.6}),
    mmvm(" pairwise", "pairwise", options={"alpha": 0.3}),
    codevae("", 0.4, {**WEIGHTS, "entropy": 3.5}),
    codevae(" rho=0.8 subsets", 0.8, {**WEIGHTS, "entropy": 1.0, "subsets": PAIRS}),
    codevae(
        " equal weights",
        0.4,
        WEIGHTS,
        library={"learn_weights": False},
        oracle={"learn": False},
        prepare=lambda vae: None,
    ),
    helvae(""),
    helvae(" joint", bc="joint", weights=SHARES),
    helvae(" weights", weights=SHARES),
    helvae(" mixture", "mixture", weights=SHARES),
    helvae(" mixture joint", "mixture", bc="joint"),
]
