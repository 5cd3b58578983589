"""What the objectives of the mixture family equal: written-out programs, other methods, bounds, divergences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.objectives import LearnedWeights
from tests.conformance.cases import Case
from tests.conformance.evaluate import by_draws, by_quadrature, by_sigma_points, gradients, value
from tests.conformance.mixture_cases import LEARNED, MIXTURE_CASES, set_weights
from tests.conformance.placed import noise_of_any_family as noise_of_any_family
from tests.conformance.problems import Problem, make_problem
from tests.oracles.mixture_family import exact_mcvae, exact_mmvm, log_density
from tests.oracles.pooled_family import exact_codevae
from tests.oracles.products import nonempty_subsets
from tests.oracles.statistics import mean_and_se
from tests.oracles.terms import kl_diag

pytestmark = pytest.mark.usefixtures("float64", "noise_of_any_family")

EXACT = {"rtol": 1e-10, "atol": 1e-9}  # the same sums in float64, in another order
CASE = {case.name: case for case in MIXTURE_CASES}
PLAIN = {"beta": 1.0, "rescale": None}
NAMES = ("a", "b", "c")
DIMS = {"a": 1, "b": 2, "c": 1}


def networks(family: str) -> dict[str, Any]:
    """Fresh networks of three modalities, small, with activations."""
    options: dict[str, Any] = {"hidden": (5,), "family": "laplace_softmax" if family == "laplace" else "normal"}
    return {
        "encoders": {m: mm.nn.MLPEncoder(3, 2, **options) for m in NAMES},
        "private_encoders": {m: mm.nn.MLPEncoder(3, d, **options) for m, d in DIMS.items()},
        "decoders": {m: mm.nn.MLPDecoder(2 + d, 3, likelihood="laplace", hidden=(5,)) for m, d in DIMS.items()},
        "private_dims": DIMS,
        "latent_dim": 2,
    }


def written_out(
    vae: mm.MultimodalVAE,
    data: Mapping[str, Tensor],
    eps: Mapping[str, Tensor],  # shapes: (K, 1, B, D)
    log_prior: Callable[[Tensor], Tensor],
    family: type[torch.distributions.Distribution],
    beta: float,
) -> Tensor:  # shape: (B,)
    """The looser bound with learned auxiliary priors on complete data, from the networks alone (spec 8)."""
    noise = {site: e.squeeze(1) for site, e in eps.items()}
    shared = {m: vae.guide.encoders["z"][m](data[m]) for m in NAMES}
    own = {m: vae.guide.encoders[f"z_{m}"][m](data[m]) for m in NAMES}
    decoders = vae.model.story.program.decoders
    total: Tensor | float = 0.0
    for m in NAMES:
        z = shared[m].base_dist.loc + shared[m].base_dist.scale * noise["z"]
        log_q = torch.stack([q.log_prob(z) for q in shared.values()]).logsumexp(0) - math.log(3)
        w_m = own[m].base_dist.loc + own[m].base_dist.scale * noise[f"z_{m}"]
        log_p = log_prior(z) + family(0.0, 1.0).log_prob(w_m).sum(-1)  # type: ignore[call-arg]
        log_w = beta * (log_p - log_q - own[m].log_prob(w_m))
        for n in NAMES:
            scale = vae.guide.fusion[f"z_{n}"].auxiliary().base_dist.scale
            w = w_m if n == m else scale * noise[f"z_{n}"]
            log_w = log_w + decoders[n].dense(torch.cat([z, w], -1)).log_prob(data[n])
        total = total + (log_w.logsumexp(0) - math.log(len(z))) / 3
    return total  # type: ignore[return-value]


def spread(vae: mm.MultimodalVAE) -> None:
    """Auxiliary priors of unequal scales, whatever parameter they have."""
    with torch.no_grad():
        for m in NAMES:
            for w in vae.guide.fusion[f"z_{m}"].auxiliary.parameters():
                w.copy_(torch.linspace(0.4, -0.5, w.numel()))


def same(vae: mm.MultimodalVAE, found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Equal values and gradients; the gradients."""
    torch.testing.assert_close(found, wanted, **EXACT)
    one, other = gradients(vae, found.sum()), gradients(vae, wanted.sum())
    for name, g in one.items():
        torch.testing.assert_close(g, other[name], **EXACT)
    return one


def random_noise(particles: int, batch: int = 4) -> dict[str, Tensor]:
    sizes = {"z": 2} | {f"z_{m}": d for m, d in DIMS.items()}
    return {site: torch.randn(particles, 1, batch, d) for site, d in sizes.items()}


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("family", ["laplace", "normal"])
def test_mmvaeplus_is_the_program_written_out(family: Any, particles: int) -> None:
    law = {"laplace": torch.distributions.Laplace, "normal": torch.distributions.Normal}[family]
    options = {"prior": family, "private_prior": family, "num_particles": particles, "beta": 1.7}
    vae = mm.MMVAEPlus(**networks(family), **options).double()
    spread(vae)
    data, eps = {m: torch.randn(4, 3) for m in NAMES}, random_noise(particles)
    wanted = written_out(vae, data, eps, lambda z: law(0.0, 1.0).log_prob(z).sum(-1), law, 1.7)
    same(vae, value(vae, data, None, eps), wanted)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("family", ["laplace", "normal"])
def test_cmvae_is_mmvaeplus_with_the_papers_sum_over_clusters(family: Any, particles: int) -> None:
    law = {"laplace": torch.distributions.Laplace, "normal": torch.distributions.Normal}[family]
    options = {"num_clusters": 3, "cluster_prior": family, "num_particles": particles, "beta": 2.5}
    vae = mm.CMVAE(**networks(family), **options).double()
    spread(vae)
    prior = vae.model.story.program.prior
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.3, -0.8, 0.1]))

    def log_prior(z: Tensor) -> Tensor:
        """sum_c q(c|z) [log pi_c + log p(z|c) - log q(c|z)], q(c|z) the exact posterior."""
        joint = prior.logits.log_softmax(0) + law(prior.loc, 1.0).log_prob(z.unsqueeze(-2)).sum(-1)
        return (joint.softmax(-1) * (joint - joint.log_softmax(-1))).sum(-1)

    data, eps = {m: torch.randn(4, 3) for m in NAMES}, random_noise(particles)
    found = same(vae, value(vae, data, None, eps), written_out(vae, data, eps, log_prior, law, 2.5))
    for name in ("prior.loc", "prior.logits"):
        assert (found[f"model.story.program.{name}"] != 0).all()


@pytest.mark.parametrize("name", ["MMVAE+ prior", "MMVAE+ posterior", "MMVAE+ learned counted", "CMVAE prior"])
@pytest.mark.parametrize("particles", [1, 20])
def test_consistent_priors_make_a_bound(name: str, particles: int) -> None:
    case = CASE[name]
    p = case.make(2)
    vae = case.vae(p, **PLAIN, num_particles=particles)
    draws = by_draws(vae, p, 400)[:, 1:]
    mean, se = mean_and_se(draws)
    each = [math.log(w) + p.under(*q).log_evidence(p.data, p.obs_mask)[1:] for w, *q in case.prior_parts(p)]
    assert (mean <= torch.stack(each).logsumexp(0) + 4 * se).all()
    assert (mean > torch.stack(each).logsumexp(0) - 30).all()


@pytest.mark.parametrize("count", [2, 3])
def test_counting_the_auxiliary_priors_costs_their_divergence(count: int) -> None:
    """The K = 1 difference is (M_n - 1)/M_n times the sum over O of KL(r_n || p(w_n)), in every row (spec 8, 0.4)."""
    plain, counted = CASE["MMVAE+ learned"], CASE["MMVAE+ learned counted"]
    p = plain.make(count)
    difference = torch.zeros(len(p.sets))
    for sign in (-1.0, 1.0):  # the mean over +-1 is exact: log p - log r is quadratic in the noise
        eps = {site: torch.full_like(e, sign) if site != "z" else e for site, e in p.noise().items()}
        both = [value(case.vae(p, **PLAIN), p.data, p.obs_mask, eps) for case in (plain, counted)]
        difference += (both[0] - both[1]).detach() / 2
    cost = {m: kl_diag(LEARNED[m], p.model.private_prior[m]) for m in p.modalities}  # type: ignore[union-attr]
    wanted = [(len(s) - 1) / max(len(s), 1) * sum((cost[m] for m in s), torch.zeros(())) for s in p.sets]
    torch.testing.assert_close(difference, torch.stack(wanted), **EXACT)


def test_gradient_of_learned_weights_is_the_stratified_one() -> None:
    p = make_problem(3, 2)
    options = {"latent_dim": 2, "prior": p.prior(), "entropy": 3.5, "beta": 1.7}
    vae = mm.CoDEVAE(p.encoders(), p.decoders(), **options).double()
    set_weights(vae)
    found = by_sigma_points(vae, p)
    learned = vae.objective.terms.terms[0].weight
    gradient = torch.autograd.grad(found.sum(), learned.logits)[0]
    given = p.model, p.experts, p.data, p.obs_mask
    subsets = nonempty_subsets(p.modalities)
    alone = {s: exact_codevae(*given, rho=0.4, logits={s: 0.0}, beta=1.7) for s in subsets}  # type: ignore[arg-type]
    wanted: dict[tuple[str, ...], Tensor] = dict.fromkeys(subsets, torch.zeros(()))
    logits = dict(zip(order_of(vae), learned.logits.tolist(), strict=True))
    for n, names in enumerate(p.sets):
        inside = [s for s in subsets if set(s) <= set(names)]
        pi = torch.tensor([logits[s] for s in inside]).softmax(0) if inside else torch.zeros(0)
        reward = torch.stack([alone[s][n] for s in inside]) - 3.5 * pi.log() if inside else pi
        for s, share, r in zip(inside, pi, reward, strict=True):  # d sum pi T / d eta = pi (T - mean), H adds -a log pi
            wanted[s] = wanted[s] + share * (r - (pi * reward).sum())
    torch.testing.assert_close(gradient, torch.stack([wanted[s] for s in order_of(vae)]), **EXACT)
    assert (gradient.abs() > 1e-3).all()


def order_of(vae: mm.MultimodalVAE) -> list[tuple[str, ...]]:
    """The subsets in the order of their weights."""
    term = vae.objective.terms.terms[0]
    context = mm.objectives.subsets.Context(torch.ones(1, 3, dtype=torch.bool), NAMES)
    rows = term.source(context)[:, 0].tolist()
    return [tuple(m for m, inside in zip(NAMES, row, strict=True) if inside) for row in rows]


def test_learned_weights_are_a_softmax_over_what_is_valid() -> None:
    weights = LearnedWeights(3, entropy=2.0).double()
    with torch.no_grad():
        weights.logits.copy_(torch.tensor([0.5, -1.0, 2.0]))
    valid = torch.tensor([[True, True, False, True], [True, False, False, True], [True, True, False, False]])
    found = weights(valid)
    mass = torch.tensor([0.5, -1.0, 2.0]).exp()
    total = torch.tensor([mass.sum(), mass[0] + mass[2], 1.0, mass[0] + mass[1]])
    torch.testing.assert_close(found, torch.where(valid, mass.unsqueeze(-1) / total, 0.0), **EXACT)
    entropy = [-sum(float(c) * math.log(c) for c in column if c > 0) for column in found.detach().T]
    torch.testing.assert_close(weights.bonus(found), 2.0 * torch.tensor(entropy), **EXACT)
    gradient = torch.autograd.grad(weights.bonus(found).sum() + found.sum(), weights.logits)[0]
    assert gradient.isfinite().all()
    only = torch.tensor([[True], [False], [False]])
    assert weights.bonus(weights(only)).item() == 0.0
    assert torch.autograd.grad(weights.bonus(weights(only)).sum(), weights.logits)[0].abs().max() == 0


@pytest.mark.parametrize("divergence", ["mixture", "pairwise"])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_mmvm_of_one_modality_is_a_vae_in_every_row(divergence: Any, alpha: float) -> None:
    p = make_problem(3, 2)
    options = {"latent_dim": 2, "prior": p.prior(), "divergence": divergence, "alpha": alpha, "beta": 1.7}
    vae = mm.MMVM(p.encoders(), p.decoders(), **options).double()
    single = mm.ELBO(mm.Terms([mm.Term(beta=1.7)]))
    given = vae, p.data, p.obs_mask, p.noise()
    one = torch.tensor([len(s) == 1 for s in p.sets])
    torch.testing.assert_close(value(*given)[one], by_expert(p, vae, single)[one], **EXACT)


def by_expert(p: Problem, vae: mm.MultimodalVAE, objective: mm.ELBO) -> Tensor:  # shape: (B,)
    """The ELBO of each row under the first expert of what it observes, with a product guide (one expert is itself)."""
    guide = mm.guides.Product(vae.model, {m: vae.guide.encoders["z"][m] for m in p.modalities}, prior_expert="never")
    with mm.handlers.noise(p.noise()):
        return objective.per_sample(vae.model, guide, p.data, p.obs_mask)


def test_mmvm_s_divergences_add_up_to_jensen_shannon() -> None:
    p = make_problem(3, 1)
    values = []
    for beta in (0.0, 1.0):
        vae = mm.MMVM(
            p.encoders(), p.decoders(), latent_dim=1, prior=p.prior(), beta=beta, divergence="mixture"
        ).double()
        values.append(by_quadrature(vae, p).detach())
    z = torch.linspace(-15, 15, 30001).unsqueeze(-1)
    for n, names in enumerate(p.sets):
        if len(names) < 2:
            continue
        parts = [(1 / len(names), p.experts[m][0][n], p.experts[m][1][n]) for m in names]
        logs = [log_density(z, [(1.0, loc, scale)]) for _, loc, scale in parts]
        mean = log_density(z, parts)
        divergence = sum((q.exp() * (q - mean)).sum() * float(z[1] - z[0]) for q in logs) / len(names)
        torch.testing.assert_close(values[0][n] - values[1][n], len(names) * divergence, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("divergence", ["mixture", "pairwise"])
def test_mmvm_s_gradients_reach_the_experts_through_the_prior_too(divergence: Any) -> None:
    p = make_problem(3, 2)
    options: dict[str, Any] = {"divergence": divergence, "alpha": 0.3, "beta": 1.7, "learn_prior": True}
    if divergence == "mixture":
        options["prior_weight"] = 0.6
    vae = mm.MMVM(p.encoders(), p.decoders(), latent_dim=2, **options).double()
    eps = torch.randn(len(p.sets), 2)
    q = {m: vae.guide.encoders["z"][m](p.complete[m]) for m in NAMES}
    prior = vae.model.story.program.prior()
    wanted: Tensor | float = 0.0
    for m in NAMES:
        z = q[m].base_dist.loc + q[m].base_dist.scale * eps
        if divergence == "mixture":
            mass = [h.log_prob(z) for h in q.values()] + [math.log(0.6) + prior.log_prob(z)]
            tie = q[m].log_prob(z) - torch.stack(mass).logsumexp(0) + math.log(3.6)
        else:
            tie = sum(torch.distributions.kl_divergence(q[m], h) for h in q.values()) / 3  # type: ignore[assignment]
        cost = 0.3 * torch.distributions.kl_divergence(q[m], prior.expand((len(p.sets),))) + 0.7 * tie
        wanted = wanted + vae.model.story.program.decoders[m](z).log_prob(p.complete[m]) - 1.7 * cost
    same(vae, value(vae, p.complete, None, {"z": eps}), wanted)  # type: ignore[arg-type]


def test_mmvm_s_alpha_falls_linearly() -> None:
    p = make_problem(2, 2)
    options = {"latent_dim": 2, "prior": p.prior(), "divergence": "pairwise", "alpha": 0.2, "alpha_steps": 4}
    vae = mm.MMVM(p.encoders(), p.decoders(), **options).double()
    given = p.model, p.experts, p.data, p.obs_mask
    for step in range(6):  # as the other schedules: step t counts as t + 1 of 4
        alpha = 1 - 0.8 * min(1.0, (step + 1) / 4)
        wanted = exact_mmvm(*given, divergence="pairwise", alpha=alpha)  # type: ignore[arg-type]
        torch.testing.assert_close(by_sigma_points(vae, p).detach(), wanted, **EXACT)
        vae.objective.advance()


@pytest.mark.parametrize("weights", ["sample", "multi_task"])
def test_mcvae_s_channels_that_are_encoded_and_explained(weights: Any) -> None:
    p = make_problem(3, 2)
    some: dict[str, Any] = {"sources": ["a", "b"], "targets": ["b", "c"], "weights": weights, "beta": 1.7}
    vae = mm.MCVAE(p.encoders(), p.decoders(), latent_dim=2, prior=p.prior(), **some).double()
    wanted = exact_mcvae(p.model, p.experts, p.data, p.obs_mask, **some)  # type: ignore[arg-type]
    torch.testing.assert_close(by_sigma_points(vae, p).detach(), wanted, **EXACT)


ONE: list[tuple[str, str]] = [
    ("MMVAE+ learned", "sampled"),
    ("MMVAE+ prior", "sampled"),
    ("CMVAE prior", "sampled"),
    ("MCVAE", "sampled"),
    ("MMVM pairwise", "analytic"),
    ("MMVM alpha", "analytic"),
    ("CoDEVAE", "analytic"),
    ("HELVAE", "analytic"),
]


@pytest.mark.parametrize(("name", "kl"), ONE, ids=[name for name, _ in ONE])
def test_one_modality_makes_a_vae(name: str, kl: Any) -> None:
    case: Case = CASE[name]
    p = case.make(1)
    vae, eps = case.vae(p, **PLAIN), {site: e[1:] for site, e in p.noise().items()}
    data, mask = {"a": p.data["a"][1:]}, {"a": p.obs_mask["a"][1:]}
    q = p.experts["a"][0][1:], p.experts["a"][1][1:]
    latent = [q[0] + q[1] * eps["z"]]
    z = latent[0]
    log_q = log_density(z, [(1.0, *q)])
    cost = log_q - log_density(z, case.prior_parts(p)) if kl == "sampled" else kl_diag(q, p.model.prior)
    if name == "MCVAE":
        cost = kl_diag(q, p.model.prior)
    if p.private:
        own, prior = (p.private["a"][0][1:], p.private["a"][1][1:]), p.model.private_prior["a"]  # type: ignore[union-attr]
        latent.append(own[0] + own[1] * eps["z_a"])
        cost = cost + log_density(latent[1], [(1.0, *own)]) - log_density(latent[1], [(1.0, *prior)])
    score = p.stacked.log_likelihoods(torch.cat(latent, -1), data, mask)["a"]
    torch.testing.assert_close(value(vae, data, mask, eps), score - cost, **EXACT)
