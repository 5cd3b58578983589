"""Exact objectives of the product family against evidences, grids, Monte Carlo and each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from .cases import Case, likelihood_experts, make_case
from .linear_gaussian import Gaussian
from .methods import exact_mvae
from .product_family import (
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
from .products import generalized_product, geometric_mean, pool, row_product
from .shared_private import random_shared_private
from .statistics import mean_and_se, within
from .terms import kl_diag, kl_full, term_value

EXACT = {"rtol": 0.0, "atol": 1e-9}  # closed forms in float64, sums of dozens of terms of order ten
RESCALE = {"a": 0.7, "b": 1.4, "c": 2.2}
WEIGHTS = {"beta": 1.7, "rescale": RESCALE}
SHARES = {"": 0.4, "a": 1.3, "b": 0.6, "c": 0.9}
EXPONENTS = {m: torch.tensor(e).double() for m, e in {"a": [0.9, 0.3], "b": [0.5, 0.8], "c": [0.2, 0.6]}.items()}
PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])


def run(exact: Callable[..., Tensor], case: Case, **options: object) -> Tensor:  # shape: (B,)
    """One objective on a case."""
    return exact(case.model, case.experts, case.data, case.obs_mask, **options)


METHODS: dict[str, Callable[[Case], Tensor]] = {
    "gpoe": lambda c: run(exact_gpoe, c, **WEIGHTS, fuse=generalized(EXPONENTS)),
    "gpoe_free": lambda c: run(exact_gpoe, c, fuse=generalized(EXPONENTS, normalize=False)),
    "mvae_several": lambda c: run(exact_mvae_by, c, **WEIGHTS, fuse=several(c.model.prior)),
    "mvae_mean": lambda c: run(exact_mvae_by, c, fuse=mean_of_parameters(c.model.prior)),
    "dmvae": lambda c: run(exact_dmvae, c, **WEIGHTS, fuse=several(c.model.prior)),
    "dmvae_multivae": lambda c: run(
        exact_dmvae, c, fuse=with_prior(c.model.prior), counting="multivae", normalize_rows=True
    ),
    "dmvae_zeroed": lambda c: run(exact_dmvae, c, fuse=generalized(EXPONENTS), reconstruct_joint=False),
    "crmvae": lambda c: run(exact_crmvae, c, **WEIGHTS),
    "mmjsd": lambda c: run(exact_mmjsd, c, **WEIGHTS, weights=SHARES),
    "dvcca": lambda c: run(exact_dvcca, c, **WEIGHTS, reference="a"),
}


def part(case: Case, row: int, names: tuple[str, ...]) -> Case:
    """One row and some modalities of a case."""
    model, at = case.model, slice(row, row + 1)
    weights, bias, noise = ({m: d[m] for m in names} for d in (model.weights, model.bias, model.noise))
    smaller = type(model)(weights, bias, noise, *model.prior)
    data, mask, complete = ({m: d[m][at] for m in names} for d in (case.data, case.obs_mask, case.complete))
    experts = {m: (case.experts[m][0][at], case.experts[m][1][at]) for m in names}
    return Case(smaller, data, mask, experts, complete, case.sets[at])


@pytest.mark.parametrize("method", METHODS)
@PER_FEATURE
def test_rows_are_independent_and_an_empty_row_is_zero(method: str, per_feature: bool) -> None:
    case = make_case(3, 2, per_feature=per_feature)
    value = METHODS[method](case)
    assert value[0] == 0
    assert value.isfinite().all()
    for row in (1, 4, 7):
        alone = METHODS[method](part(case, row, case.model.modalities))
        torch.testing.assert_close(alone, value[row : row + 1], **EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_modality_is_a_model_without_it(method: str) -> None:
    case = make_case(3, 2)
    row = case.sets.index(("a", "c"))
    without = METHODS[method](part(case, row, ("a", "c")))
    torch.testing.assert_close(METHODS[method](case)[row : row + 1], without, **EXACT)


def test_rules_equal_those_of_the_naive_products() -> None:
    case = make_case(3, 2)
    mask = {m: a[1:] for m, a in case.obs_mask.items()}
    experts = {m: (q[0][1:], q[1][1:]) for m, q in case.experts.items()}
    prior = case.model.prior
    wanted = [generalized_product(experts, mask, EXPONENTS), geometric_mean(experts, mask, prior)]
    for fuse, (loc, scale) in zip((generalized(EXPONENTS), geometric(prior)), wanted, strict=True):
        for n, names in enumerate(case.sets[1:]):
            found = fuse(experts, names, n)
            torch.testing.assert_close(found[0], loc[n], **EXACT)
            torch.testing.assert_close(found[1], scale[n], **EXACT)


def test_free_and_normalized_exponents() -> None:
    case = make_case(3, 2)
    a, b = ((case.experts[m][0][7], case.experts[m][1][7]) for m in "ab")
    free = generalized(EXPONENTS, normalize=False)(case.experts, ("a", "b"), 7)
    by_hand = pool([(EXPONENTS["a"], *a), (EXPONENTS["b"], *b)])
    torch.testing.assert_close(free[1], by_hand[1], **EXACT)
    normalized = generalized(EXPONENTS)(case.experts, ("a", "b"), 7)
    torch.testing.assert_close(normalized[0], free[0], **EXACT)  # one factor on all precisions
    total = EXPONENTS["a"] + EXPONENTS["b"]
    torch.testing.assert_close(normalized[1] ** -2 * total, free[1] ** -2, **EXACT)
    equal = generalized(normalize=False)(case.experts, ("a",), 7)
    torch.testing.assert_close(equal[1], 3**0.5 * a[1], **EXACT)  # exponent 1 / M, whatever is observed


def test_mean_of_parameters_by_hand() -> None:
    experts = {"a": (torch.tensor([[1.0]]), torch.tensor([[2.0]])), "b": (torch.tensor([[4.0]]), torch.tensor([[8.0]]))}
    loc, scale = mean_of_parameters()(experts, "ab", 0)
    assert (loc.item(), scale.item()) == (2.5, pytest.approx(4.0))
    loc, scale = mean_of_parameters((torch.zeros(1).double(), torch.ones(1).double()))(experts, "a", 0)
    assert (loc.item(), scale.item()) == (0.5, pytest.approx(2**0.5))


@PER_FEATURE
def test_mvae_by_a_rule_is_mvae(per_feature: bool) -> None:
    case = make_case(3, 2, per_feature=per_feature)
    for unimodal in (True, False):
        options = {**WEIGHTS, "unimodal": unimodal}
        always = run(exact_mvae_by, case, fuse=with_prior(case.model.prior), **options)
        torch.testing.assert_close(always, run(exact_mvae, case, **options), **EXACT)
        never = run(exact_mvae_by, case, fuse=lambda e, names, n: row_product(e, names, n), **options)
        torch.testing.assert_close(never, run(exact_mvae, case, prior_expert=False, **options), **EXACT)


@PER_FEATURE
def test_one_term_falls_short_of_the_evidence_by_its_divergence(per_feature: bool) -> None:
    """gPoE, and DVCCA where the reference is observed."""
    case = make_case(3, 2, per_feature=per_feature)
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    joint = run(exact_gpoe, case, fuse=generalized(EXPONENTS))
    reference = run(exact_dvcca, case, reference="b")
    for row, names in enumerate(case.sets[1:], start=1):
        q = generalized(EXPONENTS)(case.experts, names, row)
        gap = kl_full(q[0], torch.diag(q[1] ** 2), loc[row], cov[row])
        torch.testing.assert_close(joint[row], evidence[row] - gap, **EXACT)
        if "b" not in names:
            assert reference[row] == 0
            continue
        q = case.experts["b"][0][row], case.experts["b"][1][row]
        gap = kl_full(q[0], torch.diag(q[1] ** 2), loc[row], cov[row])
        torch.testing.assert_close(reference[row], evidence[row] - gap, **EXACT)


def private_case() -> tuple[tuple[object, ...], dict[str, Gaussian]]:
    """Two rows, the second without "b", posteriors that fit nothing; private posteriors."""
    model = random_shared_private({"a": 2, "b": 3}, 2, 1)
    _, data = model.joint.sample(2, torch.Generator().manual_seed(0))
    mask = {"a": torch.tensor([True, True]), "b": torch.tensor([True, False])}
    draw = torch.Generator().manual_seed(1)

    def gaussian(size: int) -> Gaussian:
        normal = torch.randn(2, size, generator=draw, dtype=torch.float64)
        return normal, 0.5 + torch.rand(2, size, generator=draw, dtype=torch.float64)

    return (model, {m: gaussian(2) for m in mask}, data, mask), {m: gaussian(1) for m in mask}


@pytest.mark.parametrize("method", ["gpoe", "dvcca"])
def test_private_latents_make_the_elbo_of_all_latents(method: str) -> None:
    (model, experts, data, mask), private = private_case()
    fuse = generalized(EXPONENTS)
    options = {"reference": "a"} if method == "dvcca" else {"fuse": fuse}
    exact = exact_dvcca if method == "dvcca" else exact_gpoe
    value = exact(model, experts, data, mask, private=private, **options)
    loc, cov = model.joint.posterior(data, mask)
    for row, names in enumerate((("a", "b"), ("a",))):
        q = fuse(experts, names, row) if method == "gpoe" else (experts["a"][0][row], experts["a"][1][row])
        own = {m: (private[m][0][row : row + 1], private[m][1][row : row + 1]) for m in names}
        mean, scale = model.stack((q[0][None], q[1][None]), own)
        gap = kl_full(mean[0], torch.diag(scale[0] ** 2), loc[row], cov[row])
        torch.testing.assert_close(value[row], model.log_evidence(data, mask)[row] - gap, **EXACT)


def test_private_divergences_are_counted_as_often_as_the_formulas_say() -> None:
    """The change of an objective with beta_private, against sums of divergences."""
    (model, experts, data, mask), private = private_case()
    kl = {m: kl_diag(private[m], model.private_prior[m]) * mask[m] for m in mask}
    fuse, beta = several(model.prior), 1.7
    for exact, options, count in [
        (exact_gpoe, {"fuse": fuse}, [1, 1]),
        (exact_dvcca, {"reference": "a"}, [1, 1]),
        (exact_mmjsd, {}, [1, 1]),
        (exact_dmvae, {"fuse": fuse}, [3, 2]),
        (exact_dmvae, {"fuse": fuse, "counting": "multivae"}, [3, 2]),
        (exact_dmvae, {"fuse": fuse, "reconstruct_joint": False}, [3, 2]),
        (exact_dmvae, {"fuse": fuse, "normalize_rows": True}, [1, 1]),
    ]:
        at = {"private": private, "beta": beta, **options}
        none, both = (exact(model, experts, data, mask, beta_private=b, **at) for b in (0.0, {"a": 0.6, "b": 1.9}))
        expected = beta * torch.tensor(count).double() * (0.6 * kl["a"] + 1.9 * kl["b"])
        torch.testing.assert_close(none - both, expected, **EXACT)


def test_dmvae_of_exact_posteriors_falls_short_by_each_row_s_divergence() -> None:
    case = make_case(3)
    experts = likelihood_experts(case.model, case.data)
    fuse = with_prior(case.model.prior)
    args = (case.model, experts, case.data, case.obs_mask)
    sums, paper = (exact_dmvae(*args, fuse=fuse, counting=c) for c in ("multivae", "paper"))
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    for row, names in enumerate(case.sets[1:], start=1):
        exact, total = (loc[row], cov[row, :, 0].sqrt()), (len(names) + 1) * evidence[row]
        posteriors = [fuse(experts, (m,), row) for m in names]
        expected = total - sum(kl_diag(q, exact) for q in posteriors)
        torch.testing.assert_close(sums[row], expected, **EXACT)
        extra = sum(kl_diag(q, case.model.prior) for q in [exact, *posteriors])
        torch.testing.assert_close(paper[row], expected - (len(names) - 1) * extra, **EXACT)


def test_crmvae_at_beta_one_half_is_an_elbo_and_its_coordination() -> None:
    case = make_case(3, 2)
    value = run(exact_crmvae, case, beta=0.5)
    elbo = run(exact_mvae, case, unimodal=False, prior_expert=False)
    for row, names in enumerate(case.sets[1:], start=1):
        q, at = row_product(case.experts, names, row), slice(row, row + 1)
        x = {m: d[at] for m, d in case.data.items()}
        extra = torch.zeros((), dtype=torch.float64)
        for m in names:
            own = case.experts[m][0][at], case.experts[m][1][at]
            target = {k: a[at] & (k == m) for k, a in case.obs_mask.items()}
            extra = extra + term_value(case.model, own, x, target, beta=0.0)[0] - kl_diag(q, (own[0][0], own[1][0]))
        torch.testing.assert_close(2 * (len(names) + 1) * value[row], elbo[row] + extra, **EXACT)


@PER_FEATURE
def test_mmjsd_equals_its_definition_on_a_grid(per_feature: bool) -> None:
    """f normalized on a grid, divergences as integrals, scores by Monte Carlo weights on the same grid."""
    case = make_case(3, 1, per_feature=per_feature)
    value = run(exact_mmjsd, case, **WEIGHTS, weights=SHARES)
    z = torch.linspace(-40, 40, 80001, dtype=torch.float64)
    prior = Normal(*case.model.prior).log_prob(z)
    for row, names in enumerate(case.sets[1:], start=1):
        experts = {m: Normal(case.experts[m][0][row], case.experts[m][1][row]).log_prob(z) for m in names}
        pi = {m: SHARES[m] / (SHARES[""] + sum(SHARES[k] for k in names)) for m in ("", *names)}
        log_f = pi[""] * prior + sum(pi[m] * q for m, q in experts.items())
        log_f = log_f - (log_f.logsumexp(0) + (z[1] - z[0]).log())
        masses = {m: q.softmax(0) for m, q in experts.items()} | {"": prior.softmax(0)}
        js = sum(pi[m] * (masses[m] * (q - log_f)).sum() for m, q in [("", prior), *experts.items()])
        x, a = ({m: d[m][row : row + 1] for m in d} for d in (case.data, case.obs_mask))
        scored = case.model.log_likelihoods(z[:, None, None], x, a)
        score = sum(RESCALE[m] * (masses[j] @ s[:, 0]) for m, s in scored.items() for j in names) / len(names)
        torch.testing.assert_close(value[row], score - 1.7 * js, rtol=0.0, atol=1e-6)  # quadratic tails on the grid


@pytest.mark.parametrize("method", ["crmvae", "dmvae"])
def test_objectives_equal_monte_carlo_of_their_definition(method: str) -> None:
    case = make_case(2, 2, per_feature=True)
    value = METHODS[method](case)
    prior = Normal(*case.model.prior)
    for row, names in enumerate(case.sets[1:], start=1):
        x, a = ({m: d[m][row : row + 1] for m in d} for d in (case.data, case.obs_mask))
        experts = {m: Normal(case.experts[m][0][row], case.experts[m][1][row]) for m in names}
        fuse = several(case.model.prior) if method == "dmvae" else lambda e, s, n: row_product(e, s, n)
        joint = Normal(*fuse(case.experts, names, row))
        size, draws = len(names), torch.zeros(20000, dtype=torch.float64)
        for q, own in [(joint, None), *((q, m) for m, q in experts.items())]:
            z = q.sample((20000,))
            scored = case.model.log_likelihoods(z.unsqueeze(1), x, a)
            score = sum(RESCALE[m] * s[:, 0] for m, s in scored.items() if method == "dmvae" or own in (None, m))
            log_q = q.log_prob(z).sum(-1)
            if method == "dmvae":
                draws += score + size * 1.7 * (prior.log_prob(z).sum(-1) - log_q)
                continue
            draws += score / (2 * (size + 1))
            for r in [prior, *experts.values()] if own is None else []:
                draws += 1.7 / (size + 1) * (r.log_prob(z).sum(-1) - log_q)
        within(*mean_and_se(draws), value[row], resolution=0.05)


def test_one_modality_reduces_every_method_to_its_elbo() -> None:
    case = make_case(1, 2)
    at = slice(1, 2)
    elbo = term_value(case.model, case.experts["a"], case.data, case.obs_mask)[at]
    score = term_value(case.model, case.experts["a"], case.data, case.obs_mask, beta=0.0)[at]
    fuse = several(case.model.prior)
    torch.testing.assert_close(run(exact_gpoe, case, fuse=generalized(EXPONENTS))[at], elbo, **EXACT)
    torch.testing.assert_close(run(exact_dvcca, case, reference="a")[at], elbo, **EXACT)
    torch.testing.assert_close(run(exact_dmvae, case, fuse=fuse)[at], 2 * elbo, **EXACT)
    torch.testing.assert_close(run(exact_dmvae, case, fuse=fuse, normalize_rows=True)[at], elbo, **EXACT)
    torch.testing.assert_close(run(exact_mvae_by, case, fuse=fuse)[at], 2 * elbo, **EXACT)
    # the score of q twice, halved by 2 (M + 1); the divergence once, halved by M + 1
    torch.testing.assert_close(run(exact_crmvae, case, beta=1.0)[at], 0.5 * elbo, **EXACT)
    f = geometric(case.model.prior)(case.experts, ("a",), 1)
    q = case.experts["a"][0][1], case.experts["a"][1][1]
    js = 0.5 * (kl_diag(case.model.prior, f) + kl_diag(q, f))
    torch.testing.assert_close(run(exact_mmjsd, case)[at], score - js, **EXACT)
