"""With one modality every method is a VAE: its objective is a known multiple of one evidence bound, and it does all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_mmvae as mm
from tests.conformance.evaluate import by_draws, by_sigma_points, sigma_points, value
from tests.conformance.pools import by_product
from tests.conformance.problems import Problem, make_problem
from tests.oracles.linear_gaussian import Gaussian
from tests.oracles.product_family import exact_mmjsd
from tests.oracles.products import product_of_experts
from tests.oracles.statistics import mean_and_se, within
from tests.oracles.terms import private_term_value, term_value

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

EXACT = {"rtol": 1e-10, "atol": 1e-9}  # closed forms in float64, sums of a dozen terms of order ten
WEIGHTS: dict[str, Any] = {"beta": 1.7, "rescale": {"a": 0.7}}
CLUSTER = torch.tensor([[0.4, -0.9]])


@dataclass(frozen=True)
class Vae:
    """
    A method with one modality, and what it must be.

    :ivar factor: how many times the evidence bound its objective is; None: something else.
    :ivar prior_expert: whether the prior is an expert beside the only one.
    :ivar private: with a private latent.
    :ivar given: options that take the place of the library's default prior.
    :ivar idle: parts of parameters' names that one modality gives no gradient.
    """

    name: str
    method: Any
    factor: float | None
    options: dict[str, Any] = field(default_factory=dict)
    prior_expert: bool = False
    private: bool = False
    given: bool = True
    idle: tuple[str, ...] = ()

    def problem(self) -> Problem:
        """One modality: a row without it, a row with it."""
        return make_problem(1, private=self.private)

    def make(self, p: Problem, **changed: Any) -> mm.MultimodalVAE:
        """The method on the problem's networks."""
        options = {**WEIGHTS, **self.options, **changed}
        if self.given:
            options["prior"] = p.prior()
        if self.method is mm.JMVAE:
            options["joint_encoder"] = p.joint_encoder()
        if self.private:
            options |= {"private_encoders": p.private_encoders(), "private_dims": {"a": 1}}
        vae = self.method(p.encoders(), p.decoders(), latent_dim=2, **options).double()
        if self.method is mm.CMVAE:
            with torch.no_grad():
                vae.model.story.program.prior.loc.copy_(CLUSTER)
        return vae


NORMAL = {"private_prior": "normal"}
VAES = [
    Vae("MVAE", mm.MVAE, 2, prior_expert=True),
    Vae("MVAE joint", mm.MVAE, 1, {"unimodal": False}, prior_expert=True),
    Vae("MVAE drop", mm.MVAE, 1, {"duplicates": "drop"}, prior_expert=True),
    Vae("MVAE never", mm.MVAE, 2, {"prior_expert": False}),
    Vae("MVAE several", mm.MVAE, 2, {"prior_expert": "several"}),
    Vae("MVAE mean", mm.MVAE, 2, {"fusion": mm.fusion.MeanOfParameters()}),
    Vae("MMVAE", mm.MMVAE, 1, {"num_particles": 1}),
    Vae("MMVAE tight", mm.MMVAE, 1, {"num_particles": 1, "bound": "tight"}),
    Vae("MMVAE component", mm.MMVAE, 1, {"num_particles": 1, "density": "component"}),
    Vae("MMVAE dreg", mm.MMVAE, 1, {"num_particles": 1, "gradient": "dreg"}),
    Vae("MoPoE", mm.MoPoE, 1, prior_expert=True),
    Vae("MoPoE never", mm.MoPoE, 1, {"prior_expert": "never"}),
    Vae("MoPoE private", mm.MoPoE, 1, prior_expert=True, private=True),
    Vae("MoPoE random", mm.MoPoE, 1, {"num_subsets": 1}, prior_expert=True),
    Vae("MVTCAE", mm.MVTCAE, 0.4, {"alpha": 0.6}),
    Vae("MVTCAE alpha 0", mm.MVTCAE, 1, {"alpha": 0.0}),
    Vae("JMVAE", mm.JMVAE, 1, idle=("encoder",)),
    Vae("GPoE", mm.GPoE, 1, idle=("logits",)),
    Vae("GPoE private", mm.GPoE, 1, private=True, idle=("logits",)),
    Vae("CRMVAE", mm.CRMVAE, 0.5),
    Vae("DVCCA", mm.DVCCA, 1, {"fallback": "drop"}),
    Vae("DVCCA private", mm.DVCCA, 1, {"fallback": "drop"}, private=True),
    Vae("MCVAE", mm.MCVAE, 1),
    Vae("MMVAEPlus", mm.MMVAEPlus, 1, NORMAL, private=True, idle=("auxiliary",)),
    Vae("MMVAEPlus prior", mm.MMVAEPlus, 1, {**NORMAL, "auxiliary": "prior"}, private=True),
    Vae("MMVAEPlus kl", mm.MMVAEPlus, 1, {**NORMAL, "auxiliary_kl": True}, private=True, idle=("auxiliary",)),
    Vae(
        "CMVAE",
        mm.CMVAE,
        1,
        {"num_clusters": 1, "cluster_prior": "normal"},
        private=True,
        given=False,
        idle=("auxiliary", "logits"),
    ),
    Vae("DMVAE", mm.DMVAE, 2),
    Vae("DMVAE multivae", mm.DMVAE, 2, {"counting": "multivae"}, private=True),
    Vae("DMVAE normalized", mm.DMVAE, 1, {"normalize_rows": True}, private=True),
    Vae("CoDEVAE", mm.CoDEVAE, 1, idle=("logits",)),
    Vae("CoDEVAE fixed", mm.CoDEVAE, 1, {"learn_weights": False}),
    Vae("HELVAE", mm.HELVAE, 1),
    Vae("MMVM", mm.MMVM, 1, {"divergence": "mixture"}),
    Vae("MMVM pairwise", mm.MMVM, 1, {"divergence": "pairwise"}),
    Vae("MMVM prior", mm.MMVM, 1, {"divergence": "mixture", "prior_weight": 0.5, "alpha": 0.3}),
    Vae("MaskedVAE", by_product, 1, prior_expert=True),
    Vae("MaskedVAE path", by_product, 1, {"gradient": "path"}, prior_expert=True),
    Vae("MMJSD", mm.MMJSD, None),
]
EACH = pytest.mark.parametrize("case", VAES, ids=lambda case: case.name)


def expectation(vae: mm.MultimodalVAE, p: Problem) -> Tensor:  # shape: (B,)
    """The objective's expectation, exactly: one particle is quadratic in the noise."""
    if not isinstance(vae.objective, mm.IWAE):
        return by_sigma_points(vae, p)
    points = sigma_points(p)
    count = len(points["z"])
    each = [{site: eps[k, 0].expand(len(p.sets), -1) for site, eps in points.items()} for k in range(count)]
    return torch.stack([value(vae, p.data, p.obs_mask, eps) for eps in each]).mean(0)


def evidence_bound(case: Vae, p: Problem) -> Tensor:  # shape: (B,)
    """The plain evidence bound, weighted; 0 where nothing is observed."""
    prior = p.model.prior
    q: Gaussian = product_of_experts(p.experts, p.obs_mask, prior if case.prior_expert else None, empty=prior)
    r = (CLUSTER[0], torch.ones(2)) if case.method is mm.CMVAE else prior
    if case.private:
        found = private_term_value(
            p.model,
            q,
            p.private,
            p.rows,
            p.data,
            p.obs_mask,
            beta_private=1.7,
            r=r,
            **WEIGHTS,  # type: ignore[arg-type]
        )
    else:
        found = term_value(p.model, q, p.data, p.obs_mask, r=r, **WEIGHTS)  # type: ignore[arg-type]
    return torch.where(p.rows["a"], found, 0.0)


def test_no_method_is_left_out() -> None:
    named = {case.method for case in VAES} - {by_product} | {mm.MaskedVAE}
    assert named == {getattr(mm.models, name) for name in mm.models.__all__}


@EACH
def test_the_objective_is_a_multiple_of_the_evidence_bound(case: Vae) -> None:
    p = case.problem()
    if case.method is mm.CMVAE:  # a prior that is a mixture takes no given noise
        draws = by_draws(case.make(p), p, 4000)
        within(*mean_and_se(draws), evidence_bound(case, p), resolution=0.2)
        return
    found = expectation(case.make(p), p).detach()
    if case.factor is None:
        wanted = exact_mmjsd(p.model, p.experts, p.data, p.obs_mask, **WEIGHTS)  # type: ignore[arg-type]
        assert abs(float(wanted[1] - evidence_bound(case, p)[1])) > 0.1  # the docstring says it is no bound
    else:
        wanted = case.factor * evidence_bound(case, p)
    torch.testing.assert_close(found, wanted, **EXACT)
    assert found[0] == 0


@pytest.mark.parametrize("method", [mm.MMVAE, mm.MMVM, mm.MVTCAE, mm.CRMVAE, mm.GPoE, mm.HELVAE, mm.CoDEVAE])
def test_importance_weighting_over_one_expert_is_that_of_the_vae(method: Any) -> None:
    p = make_problem(1)
    vae = Vae("", method, 1).make(p)
    plain = Vae("", mm.MVAE, 1, {"prior_expert": False, "unimodal": False}).make(p)
    eps = p.noise(5)
    found, wanted = (value(v, p.data, p.obs_mask, eps, objective=mm.IWAE(num_particles=5)) for v in (vae, plain))
    torch.testing.assert_close(found, wanted, **EXACT)


@EACH
def test_it_trains(case: Vae) -> None:
    p = case.problem()
    vae = case.make(p)
    before = {name: w.detach().clone() for name, w in vae.named_parameters()}
    history = mm.fit(vae, mm.MultimodalDataset(p.data, p.obs_mask), epochs=2, batch_size=2, lr=1e-2, progress=False)
    still = [name for name, w in vae.named_parameters() if torch.equal(w, before[name])]
    assert [name for name in still if not any(part in name.split(".") for part in case.idle)] == []
    assert all(w.isfinite().all() for w in vae.parameters())
    assert history is not None


@EACH
def test_it_answers_every_verb(case: Vae) -> None:
    p = case.problem()
    vae = case.make(p)
    q = vae.posterior(p.data, p.obs_mask)
    assert q.batch_shape == (2,)
    for draws in (vae.predict(p.data, p.obs_mask, num_samples=3), vae.impute(p.data, p.obs_mask, num_samples=3)):
        assert draws["a"].shape == (3, 2, 2)
        assert draws["a"].isfinite().all()
    assert torch.equal(draws["a"][:, 1], p.data["a"][1].expand(3, -1))
    assert vae.generate(4)["a"].shape == (4, 2)
    z: Any = {"z": torch.zeros(4, 2), "z_a": torch.zeros(4, 1)} if case.private else torch.zeros(4, 2)
    assert vae.decode(z)["a"].mean.shape == (4, 2)
    found = vae.log_likelihood(p.data, p.obs_mask, num_particles=4000)
    assert found[0] == 0
    assert found[1].isfinite()
    if case.given:  # 4000 draws from a proposal within half a nat: the error is a few hundredths
        evidence = p.stacked.log_evidence(p.data, p.obs_mask)
        torch.testing.assert_close(found[1], evidence[1], rtol=0.0, atol=0.2)
    pytest.importorskip("arviz")
    idata = vae.to_inference_data(p.data, p.obs_mask, num_samples=2)
    assert idata.posterior["z"].shape == (1, 2, 2, 2)
