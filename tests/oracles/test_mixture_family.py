"""The mixture family's oracles against quadrature, Monte Carlo, the formulas of the papers, and identities."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from .cases import Case, make_case
from .methods import exact_mmvae
from .mixture_family import (
    cluster_sum,
    estimate_mmvaeplus,
    estimate_mmvm,
    exact_mcvae,
    exact_mmvm,
    log_density,
    log_uniform_kl,
)
from .pooled_family import (
    consensus,
    exact_codevae,
    exact_helvae,
    hoelder_components,
    hoelder_moments,
)
from .products import nonempty_subsets, row_product
from .shared_private import SharedPrivate
from .statistics import mean_and_se
from .terms import cross_entropy, expected_log_mixture, kl_diag, log_mixture, private_term_value, quadrature, term_value

EXACT = {"rtol": 0.0, "atol": 1e-10}  # closed forms in float64
WEIGHTS = {"beta": 1.7, "rescale": {"a": 0.7, "b": 1.4, "c": 2.2}}
PLAIN = {"beta": 1.0, "rescale": None}


def private_case(case: Case) -> SharedPrivate:
    """The model of a case with a private latent per modality."""
    generator = torch.Generator().manual_seed(4)
    shape = {m: (w.shape[0], 1) for m, w in case.model.weights.items()}
    own = {m: torch.randn(*s, generator=generator, dtype=torch.float64) for m, s in shape.items()}
    return SharedPrivate(case.model.weights, own, case.model.bias, case.model.noise, *case.model.prior)


def noise(particles: int, batch: int, latent_dim: int, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Standard normal noise of all latents."""
    sizes = {"z": latent_dim} | {f"z_{m}": 1 for m in names}
    return {s: torch.randn(particles, batch, d, dtype=torch.float64) for s, d in sizes.items()}


@pytest.mark.parametrize("auxiliary", ["learned", "prior", "posterior"])
def test_mmvaeplus_with_one_particle_has_its_closed_form_as_expectation(auxiliary: str) -> None:
    case = make_case(2, 1, per_feature=True)
    model, names = private_case(case), case.model.modalities
    private = {m: (0.7 * loc, 0.5 + 0.2 * scale) for m, (loc, scale) in case.experts.items()}
    learned = {
        m: (torch.zeros(1).double(), torch.tensor([s], dtype=torch.float64)) for m, s in (("a", 0.6), ("b", 1.4))
    }
    r = learned if auxiliary == "learned" else auxiliary
    given = model, case.experts, private, case.data, case.obs_mask
    found = torch.zeros(len(case.sets), dtype=torch.float64)
    for node, weight in zip(*quadrature(torch.zeros(1), torch.ones(1), 121), strict=True):
        for sign in (-1.0, 1.0):  # the estimate is quadratic in the private latents, without products of two
            eps = {s: torch.full((1, len(case.sets), 1), sign).double() for s in ("z_a", "z_b")}
            eps["z"] = node.expand(1, len(case.sets), 1)
            found += weight / 2 * estimate_mmvaeplus(*given, eps, auxiliary=r, **WEIGHTS)  # type: ignore[arg-type]
    wanted = []
    for n, observed in enumerate(case.sets):
        row = {m: x[n : n + 1] for m, x in case.data.items()}, {m: a[n : n + 1] for m, a in case.obs_mask.items()}
        total = torch.zeros((), dtype=torch.float64)
        parts = [(1 / len(observed), case.experts[m][0][n], case.experts[m][1][n]) for m in observed]
        for m, (_, loc, scale) in zip(observed, parts, strict=True):
            own = {k: (q[0][n : n + 1], q[1][n : n + 1]) for k, q in private.items() if k in observed}
            inferred = {k: torch.tensor([k in observed and (k == m or auxiliary == "posterior")]) for k in names}
            value = private_term_value(
                model,
                (loc.unsqueeze(0), scale.unsqueeze(0)),
                own,
                inferred,
                *row,
                rescale=WEIGHTS["rescale"],  # type: ignore[arg-type]
                beta=1.7,
                beta_private=1.7,
                auxiliary=learned if auxiliary == "learned" else None,
            )
            mixture = expected_log_mixture(loc, scale, [(1.0, loc, scale)]) - expected_log_mixture(loc, scale, parts)
            total = total + (value.squeeze(0) + 1.7 * mixture) / len(observed)
        wanted.append(total)
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0.0, atol=1e-6)  # 121 nodes


def test_mmvaeplus_climbs_to_the_evidence_of_its_model() -> None:
    case = make_case(2, 1)
    model, names = private_case(case), case.model.modalities
    private = {m: (0.3 * loc, 0.8 + 0.1 * scale) for m, (loc, scale) in case.experts.items()}
    evidence = model.log_evidence(case.data, case.obs_mask)[1:].sum()
    found = []
    for k in (1, 5, 200):
        given = model, case.experts, private, case.data, case.obs_mask
        draws = [
            estimate_mmvaeplus(*given, noise(k, len(case.sets), 1, names), auxiliary="prior", **PLAIN).sum()  # type: ignore[arg-type]
            for _ in range(200)
        ]
        found.append(mean_and_se(torch.stack(draws)))
    assert found[0][0] + 4 * found[0][1] < found[1][0] < found[2][0]
    assert found[2][0] < evidence + 4 * found[2][1]
    assert evidence - found[1][0] < 0.5 * (evidence - found[0][0])


@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_the_sum_over_clusters_is_the_density_of_the_mixture(family: str) -> None:
    clusters = [(w, torch.randn(2).double(), torch.ones(2).double()) for w in (0.2, 0.5, 0.3)]
    z = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    one, other = cluster_sum(z, clusters, family), log_density(z, clusters, family)
    torch.testing.assert_close(one, other, **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), z)[0] for v in (one, other)), **EXACT)
    if family == "normal":
        torch.testing.assert_close(other, log_mixture(z, clusters), **EXACT)


@pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
def test_dense_mcvae_is_mmvae_with_the_density_of_the_component(per_feature: bool) -> None:
    case = make_case(3, 2, per_feature=per_feature)
    given = case.model, case.experts, case.data, case.obs_mask
    torch.testing.assert_close(
        exact_mcvae(*given, **WEIGHTS),  # type: ignore[arg-type]
        exact_mmvae(*given, density="component", **WEIGHTS),  # type: ignore[arg-type]
        **EXACT,
    )


def test_multi_task_weights() -> None:
    case = make_case(3, 2)
    complete = {m: torch.ones_like(a) for m, a in case.obs_mask.items()}
    given = case.model, case.model.experts(case.complete, 0.5, 1.5), case.complete
    one, other = (exact_mcvae(*given, complete, weights=w, **WEIGHTS) for w in ("sample", "multi_task"))  # type: ignore[arg-type]
    torch.testing.assert_close(one, other, **EXACT)
    given = case.model, case.experts, case.data
    one, other = (exact_mcvae(*given, case.obs_mask, weights=w, **WEIGHTS) for w in ("sample", "multi_task"))  # type: ignore[arg-type]
    assert (one[1:] - other[1:]).abs().max() > 0.1
    # by hand: channel a in rows 1, 4, 5, 7, both a and b in rows 4 and 7, of 8 rows
    assert case.sets[4] == ("a", "b")
    only = {"sources": ["a"], "targets": ["b"], "weights": "multi_task"}
    value = exact_mcvae(case.model, case.experts, case.data, case.obs_mask, **only)[4]  # type: ignore[arg-type]
    q = case.experts["a"][0][4:5], case.experts["a"][1][4:5]
    row = {m: x[4:5] for m, x in case.data.items()}
    score = term_value(case.model, q, row, {m: torch.tensor([m == "b"]) for m in case.data}, beta=0.0)
    torch.testing.assert_close(value, 8 / 2 * score[0] - 8 / 4 * kl_diag(q, case.model.prior)[0], **EXACT)


def test_divergence_from_the_log_uniform_prior_is_its_integral_up_to_a_constant() -> None:
    log_alpha = torch.tensor([-5.0, -2.0, 0.0, 2.0, 6.0], dtype=torch.float64)
    loc, scale = torch.full_like(log_alpha, 1.3), 1.3 * (log_alpha / 2).exp()
    point = torch.linspace(-12, 12, 4_000_001, dtype=torch.float64) + 1e-7  # log |z| has an integrable pole at 0
    weight = (-0.5 * point**2).exp()
    log_z = torch.stack(
        [(weight * (m + s * point).abs().log()).sum() / weight.sum() for m, s in zip(loc, scale, strict=True)]
    )
    exact = -Normal(loc, scale).entropy() + log_z
    found = torch.stack([log_uniform_kl(m.view(1), s.view(1)) for m, s in zip(loc, scale, strict=True)])
    offset = found - exact
    assert offset.std() < 0.01  # the accuracy that the approximation's authors report
    torch.testing.assert_close(log_uniform_kl(loc[:1], loc[:1] * 1e9), log_uniform_kl(loc[:1], loc[:1] * 1e6), **EXACT)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.3, "prior_weight": 0.6}], ids=["plain", "prior"])
def test_mmvm_estimates_have_the_exact_expectation(options: dict[str, float]) -> None:
    case = make_case(3, 1)
    given = case.model, case.experts, case.data, case.obs_mask
    found = torch.zeros(len(case.sets), dtype=torch.float64)
    for node, weight in zip(*quadrature(torch.zeros(1), torch.ones(1), 121), strict=True):
        eps = node.expand(len(case.sets), 1)
        found += weight * estimate_mmvm(*given, eps, **WEIGHTS, **options)  # type: ignore[arg-type]
    wanted = exact_mmvm(*given, **WEIGHTS, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-6)  # 121 nodes


def test_mmvm_s_divergences_are_a_jensen_shannon_divergence() -> None:
    case = make_case(3, 1)
    given = case.model, case.experts, case.data, case.obs_mask
    none = {m: 0.0 for m in case.data}
    mixture, pairwise = (exact_mmvm(*given, rescale=none, divergence=d) for d in ("mixture", "pairwise"))  # type: ignore[arg-type]
    assert (pairwise[4:] < mixture[4:] - 1e-3).all()  # the bound by convexity is strict
    names = case.sets[7]
    parts = [(1 / 3, case.experts[m][0][7], case.experts[m][1][7]) for m in names]
    z = torch.linspace(-15, 15, 30001, dtype=torch.float64).unsqueeze(-1)
    step = float(z[1] - z[0])
    density = [log_density(z, [(1.0, *q[1:])]) for q in parts]
    mean = log_density(z, parts)

    def entropy(log_p: torch.Tensor) -> torch.Tensor:
        return -(log_p.exp() * log_p).sum() * step

    jensen_shannon = entropy(mean) - sum(entropy(d) for d in density) / 3
    torch.testing.assert_close(mixture[7], -3 * jensen_shannon, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8])
def test_consensus_is_the_formula_of_the_paper_below_the_cut(rho: float) -> None:
    generator = torch.Generator().manual_seed(1)
    mu = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    sigma = 0.9 + 0.3 * torch.rand(3, 4, generator=generator, dtype=torch.float64)
    u = 1 / sigma
    least = u.min(0).values
    cut = torch.minimum(
        torch.tensor(rho, dtype=torch.float64), least / (u.sum(0) - 2 * least)
    )  # the spec's limit on rho
    assert bool((cut < rho).any()) == (rho == 0.8)
    c = cut / (1 + 2 * cut)
    precision = ((u**2).sum(0) - c * u.sum(0) ** 2) / (1 - cut)
    shift = ((u**2 * mu).sum(0) - c * u.sum(0) * (u * mu).sum(0)) / (1 - cut)
    loc, scale = consensus(mu, sigma, rho)
    torch.testing.assert_close(loc, shift / precision, **EXACT)
    torch.testing.assert_close(scale, precision**-0.5, **EXACT)
    if rho == 0:
        product = row_product(
            {str(i): (m[None], s[None]) for i, (m, s) in enumerate(zip(mu, sigma, strict=True))}, "012", 0
        )
        torch.testing.assert_close(loc, product[0], **EXACT)


def test_hoelder_components_are_the_squared_mean_of_roots() -> None:
    case = make_case(3, 1)
    weights = {"a": 1.3, "b": 0.6, "c": 0.9}
    z = torch.linspace(-15, 15, 30001, dtype=torch.float64).unsqueeze(-1)
    roots = [
        weights[m] * (0.5 * log_density(z, [(1.0, case.experts[m][0][7], case.experts[m][1][7])])).exp() for m in "abc"
    ]
    density = sum(roots) ** 2  # type: ignore[operator]
    density = density / density.sum() / float(z[1] - z[0])
    parts = hoelder_components(case.experts, "abc", 7, weights)
    torch.testing.assert_close(log_mixture(z, parts).exp(), density, rtol=0.0, atol=1e-9)
    mean = (density * z[:, 0]).sum() * (z[1, 0] - z[0, 0])
    second = (density * z[:, 0] ** 2).sum() * (z[1, 0] - z[0, 0])
    loc, scale = hoelder_moments(case.experts, "abc", 7, weights)
    torch.testing.assert_close(loc[0], mean, rtol=0.0, atol=1e-8)
    torch.testing.assert_close(scale[0], (second - mean**2).sqrt(), rtol=0.0, atol=1e-8)


def test_hoelder_overlaps_differ_in_two_dimensions() -> None:
    case = make_case(2, 2)
    dim, joint = (hoelder_moments(case.experts, "ab", 3, bc=b) for b in ("dim", "joint"))
    assert (dim[0] - joint[0]).abs().max() > 1e-3
    (a, s), (b, t) = ((q[0][3], q[1][3]) for q in case.experts.values())
    overlap = ((2 * s * t / (s**2 + t**2)).sqrt() * (-((a - b) ** 2) / (4 * (s**2 + t**2))).exp()).prod()  # eq. (21)
    parts = hoelder_components(case.experts, "ab", 3)
    assert parts[1][0] / parts[0][0] == pytest.approx(float(overlap), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_helvae_s_mixture_is_the_evidence_less_the_divergence_of_one_expert(size: int) -> None:
    case = make_case(1, size)
    given = case.model, case.experts, case.data, case.obs_mask
    one = term_value(case.model, tuple(q[1:] for q in case.experts["a"]), {"a": case.data["a"][1:]})  # type: ignore[arg-type]
    for form in ("moment", "mixture"):
        torch.testing.assert_close(exact_helvae(*given, form=form)[1:], one, rtol=0.0, atol=1e-9)  # type: ignore[arg-type]


def test_codevae_is_an_average_of_bounds_plus_entropy() -> None:
    case = make_case(3, 2)
    given = case.model, case.experts, case.data, case.obs_mask
    logits = {s: 0.3 * len(s) ** 2 - 0.2 * ("b" in s) for s in nonempty_subsets("abc")}
    value = exact_codevae(*given, rho=0.4, logits=logits)
    assert (value[1:] < case.model.log_evidence(case.data, case.obs_mask)[1:]).all()
    bonus = exact_codevae(*given, rho=0.4, logits=logits, entropy=2.0) - value
    mass = torch.tensor([logits[s] for s in nonempty_subsets("ab")], dtype=torch.float64).softmax(0)
    assert case.sets[4] == ("a", "b")
    torch.testing.assert_close(bonus[4], -2.0 * (mass * mass.log()).sum(), **EXACT)
    assert bonus[1] == 0
    assert float(bonus[7]) < 2 * math.log(7)
    q = case.experts["b"][0][2:3], case.experts["b"][1][2:3]
    score = cross_entropy(q, case.model.prior)  # a row with one modality is its expert's ELBO
    row = {m: x[2:3] for m, x in case.data.items()}, {m: a[2:3] for m, a in case.obs_mask.items()}
    assert score.isfinite()
    torch.testing.assert_close(value[2], term_value(case.model, q, *row)[0], **EXACT)
