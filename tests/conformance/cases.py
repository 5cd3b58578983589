"""The methods in several settings, each with what it must return; a new method joins with one line in CASES.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

import pyro_mmvae as mm
from tests.conformance import exact
from tests.conformance.problems import Problem, make_problem
from tests.oracles.linear_gaussian import Gaussian
from tests.oracles.terms import Component

RESCALE = {"a": 0.7, "b": 1.4, "c": 2.2}
PAIRS = [["a"], ["b"], ["a", "b"], ["b", "c"]]

MIXTURE_TERM = "q(z | x_O) is a mixture: a term asks for one component, the evidence is bounded by all (spec 2, 15)"
MIXTURE_LOOP = "the density of a mixture needs all components at all draws at once (spec 0.5)"
OWN_LOOP = "a guide written by hand cannot know that private latents listen to all that is observed (design 4)"


@dataclass(frozen=True)
class Case:
    """
    One method in one setting.

    :ivar name: of the row in the table of methods and laws.
    :ivar method: class of the method.
    :ivar closed_form: expectation of the objective given the table of terms, ``(B,)``, or ``(outcomes, B)`` if the
        table is random.
    :ivar estimate: the objective at given noise, for estimators that have no closed form.
    :ivar posterior: q(z | x_O): a diagonal Gaussian, all latents in one line, or the components of a mixture per row.
    :ivar options: of the method and of its oracle alike.
    :ivar library: further options of the method alone.
    :ivar oracle: further options of the oracle alone.
    :ivar steps: training steps done before.
    :ivar problem: how the problem differs from the usual one.
    :ivar random: whether the table of terms is drawn once per "batch" or for each "sample".
    :ivar batch_statistics: whether networks mix rows on purpose, which exempts a case from laws on rows.
    :ivar minimum: the least number of modalities.
    :ivar prepare: sets parameters of the method that no option sets.
    :ivar clusters: weights, locations and scales of the method's own p(z); none: the problem's prior is an option.
    :ivar skips: law -> reason, from the spec.
    """

    name: str
    method: type[mm.MultimodalVAE]
    closed_form: Callable[..., Tensor] | None
    posterior: Callable[[Problem], Gaussian | list[list[Component]]]
    options: Mapping[str, Any] = field(default_factory=dict)
    estimate: Callable[..., Tensor] | None = None
    library: Mapping[str, Any] = field(default_factory=dict)
    oracle: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    problem: Mapping[str, Any] = field(default_factory=dict)
    random: Literal["batch", "sample"] | None = None
    batch_statistics: bool = False
    minimum: int = 1
    prepare: Callable[[mm.MultimodalVAE], None] = lambda vae: None
    clusters: tuple[Component, ...] = ()
    skips: Mapping[str, str] = field(default_factory=dict)

    def make(self, num_modalities: int = 3, latent_dim: int = 2, *, per_feature: bool = False) -> Problem:
        """The problem of this case."""
        return make_problem(num_modalities, latent_dim, per_feature=per_feature, **self.problem)

    def vae(
        self,
        p: Problem,
        *,
        lazy: bool = False,
        cost: int | None = None,
        order: slice = slice(None),
        decoder_order: slice = slice(None),
        **changed: Any,
    ) -> mm.MultimodalVAE:
        """
        A fresh model of the method; its encoders are the problem's experts, its decoders the problem's likelihoods.

        :param order: of the modalities in the encoders' mapping. :param decoder_order: in that of the decoders.
        """
        encoders, decoders = p.encoders(), p.decoders(lazy=lazy, cost=cost)
        options = {"prior": p.prior(), **_known(self.options, p), **_known(self.library, p), **changed}
        if self.clusters or options.get("sparse"):
            del options["prior"]
        if self.method is mm.JMVAE:
            options["joint_encoder"] = p.joint_encoder()
        if p.private:
            own = p.private_encoders()
            options["private_encoders"] = own
            options["private_dims"] = {m: e.offset.shape[0] for m, e in own.items()}
        if isinstance(options.get("weights"), Mapping):  # by name, "" for the prior: the method takes them in order
            names = [m for m in ("", *_ordered(decoders, decoder_order)) if m in options["weights"]]
            options["weights"] = [options["weights"][m] for m in names]
        vae = self.method(
            _ordered(encoders, order), _ordered(decoders, decoder_order), latent_dim=p.latent_dim, **options
        ).double()
        self.prepare(vae)
        vae.objective.advance(self.steps)
        return vae

    def outcomes(self, p: Problem) -> Tensor:  # shape: (outcomes, B)
        """All that the expectation over draws may be, given the table of terms."""
        if self.closed_form is None:
            raise NotImplementedError(f"{self.name} has no closed form.")
        value = self.closed_form(p, **_known({**self.options, **self.oracle}, p))
        return value if value.dim() == 2 else value.unsqueeze(0)

    def at_noise(self, p: Problem, eps: Mapping[str, Tensor]) -> Tensor:  # shape: (B,)
        """The estimate at given noise of every latent site."""
        if self.estimate is None:
            raise NotImplementedError(f"{self.name} has no estimate by definition.")
        chosen = _known({**self.options, **self.oracle}, p)
        return self.estimate(p, eps if p.private else eps["z"], **chosen)

    def prior_parts(self, p: Problem) -> list[Component]:
        """p(z): one component, or the clusters."""
        return list(self.clusters) if self.clusters else [(1.0, *p.model.prior)]

    def mixture(self, p: Problem) -> list[list[Component]]:
        """The components of q(z | x_O), per row."""
        chosen = {k: v for k, v in _known(self.options, p).items() if k == "subsets"}
        return self.posterior(p, **chosen)  # type: ignore[call-arg, return-value]

    @property
    def is_mixture(self) -> bool:
        """Whether q(z | x_O) is a mixture."""
        return self.posterior in exact.MIXTURES


def _known(options: Mapping[str, Any], p: Problem) -> dict[str, Any]:
    """Options restricted to the modalities of the problem."""
    out = dict(options)
    for by_name in ("rescale", "beta_private"):
        if isinstance(out.get(by_name), Mapping):
            out[by_name] = {m: out[by_name][m] for m in p.modalities}
    if out.get("subsets") is not None:
        out["subsets"] = [s for s in out["subsets"] if set(s) <= set(p.modalities)]
    return out


def _ordered(modules: Mapping[str, torch.nn.Module], order: slice) -> dict[str, torch.nn.Module]:
    return dict(list(modules.items())[order])


WEIGHTS = {"beta": 1.7, "rescale": RESCALE}
ALWAYS, NEVER, FULL = (exact.product(rule) for rule in ("always", "never", "full_only"))
MIX = {"single term": MIXTURE_TERM, "looped terms": MIXTURE_LOOP}
SPLIT = {"single term": MIXTURE_TERM}
EXPERTS, PRODUCTS = exact.mixture, exact.mixture_of_products
K5 = {"num_particles": 5}
OWN = {"looped terms": OWN_LOOP}

# One line per method and setting; every weight differs from 0 and 1 in one setting at least.
CASES = [
    Case("MVAE", mm.MVAE, exact.mvae, ALWAYS, WEIGHTS),
    Case("MVAE joint", mm.MVAE, exact.mvae, ALWAYS, {"unimodal": False}),
    Case("MVAE k=1", mm.MVAE, exact.mvae_by_subset, ALWAYS, {**WEIGHTS, "k": 1}, random="batch", minimum=3),
    Case("MVAE drop", mm.MVAE, exact.mvae, ALWAYS, {**WEIGHTS, "duplicates": "drop"}),
    Case(
        "MVAE warm-up", mm.MVAE, exact.mvae, ALWAYS, library={"beta": 1.7, "warmup": 4}, oracle={"beta": 0.85}, steps=1
    ),
    Case("MVAE no prior expert", mm.MVAE, exact.mvae, NEVER, {**WEIGHTS, "prior_expert": False}),
    Case("MMVAE K=1", mm.MMVAE, exact.mmvae, EXPERTS, WEIGHTS, library={"num_particles": 1}, skips=MIX),
    Case(
        "MMVAE component",
        mm.MMVAE,
        exact.mmvae,
        EXPERTS,
        {**WEIGHTS, "density": "component"},
        library={"num_particles": 1},
        skips=SPLIT,
    ),
    Case("MMVAE K=5", mm.MMVAE, None, EXPERTS, WEIGHTS, exact.estimate_mmvae, K5, skips=MIX),
    Case("MMVAE tight", mm.MMVAE, None, EXPERTS, {**WEIGHTS, "bound": "tight"}, exact.estimate_mmvae, K5, skips=MIX),
    Case("MMVAE dreg", mm.MMVAE, None, EXPERTS, WEIGHTS, exact.estimate_mmvae, {**K5, "gradient": "dreg"}, skips=MIX),
    Case(
        "MMVAE exact dreg",
        mm.MMVAE,
        None,
        EXPERTS,
        WEIGHTS,
        exact.estimate_mmvae,
        {**K5, "gradient": "dreg_mixture"},
        skips=MIX,
    ),
    Case(
        "MMVAE laplace",
        mm.MMVAE,
        None,
        EXPERTS,
        WEIGHTS,
        exact.estimate_mmvae,
        K5,
        problem={"family": "laplace"},
        skips=MIX,
    ),
    Case("MoPoE", mm.MoPoE, exact.mopoe, FULL, WEIGHTS),
    Case("MoPoE subsets", mm.MoPoE, exact.mopoe, FULL, {**WEIGHTS, "subsets": PAIRS}),
    Case("MoPoE never", mm.MoPoE, exact.mopoe, NEVER, {**WEIGHTS, "prior_expert": "never"}),
    Case("MoPoE always", mm.MoPoE, exact.mopoe, ALWAYS, {"prior_expert": "always"}),
    Case(
        "MoPoE mixture",
        mm.MoPoE,
        exact.mopoe,
        PRODUCTS,
        {**WEIGHTS, "subsets": PAIRS},
        library={"subset_posterior": "mixture"},
        skips=SPLIT,
    ),
    Case(
        "MoPoE one subset", mm.MoPoE, exact.mopoe_by_subset, FULL, WEIGHTS, library={"num_subsets": 1}, random="sample"
    ),
    Case(
        "MoPoE private",
        mm.MoPoE,
        exact.mopoe,
        FULL,
        WEIGHTS,
        library={"beta_private": 0.6},
        oracle={"beta_style": 0.6},
        problem={"private": True},
        skips=OWN,
    ),
    Case("MVTCAE", mm.MVTCAE, exact.mvtcae, NEVER, {**WEIGHTS, "alpha": 0.6}),
    Case("MVTCAE alpha=0.1", mm.MVTCAE, exact.mvtcae, NEVER, {"beta": 2.5, "alpha": 0.1}),
    Case("JMVAE", mm.JMVAE, exact.jmvae, exact.joint, {**WEIGHTS, "alpha": 0.3}),
    Case(
        "JMVAE warm-up",
        mm.JMVAE,
        exact.jmvae,
        exact.joint,
        {**WEIGHTS, "alpha": 0.3},
        library={"warmup": 4},
        oracle={"annealing": 0.5},
        steps=1,
    ),
    Case(
        "JMVAE product",
        mm.JMVAE,
        exact.jmvae,
        exact.joint_or_product("product"),
        {**WEIGHTS, "alpha": 0.3},
        library={"subset_posterior": "product"},
        oracle={"incomplete": "product", "product": "plain"},
    ),
    Case(
        "JMVAE bayes",
        mm.JMVAE,
        exact.jmvae,
        exact.joint_or_product("bayes"),
        {**WEIGHTS, "alpha": 0.3},
        library={"subset_posterior": "bayes"},
        oracle={"incomplete": "product"},
        problem={"stretch": 0.8},
    ),
]

from tests.conformance.product_cases import PRODUCT_CASES  # noqa: E402  (its cases are made with Case)

CASES += PRODUCT_CASES

from tests.conformance.mixture_cases import MIXTURE_CASES  # noqa: E402  (as above)

CASES += MIXTURE_CASES

from tests.conformance.masked_cases import MASKED_CASES  # noqa: E402  (as above)

CASES += MASKED_CASES
