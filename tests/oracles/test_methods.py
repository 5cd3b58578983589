"""Exact objectives against evidences, identities and Monte Carlo of each method's own formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from .cases import Case, likelihood_experts, make_case, off_posterior
from .linear_gaussian import Gaussian
from .methods import exact_jmvae, exact_mmvae, exact_mopoe, exact_mvae, exact_mvtcae
from .monte_carlo import mixture_iwae
from .products import mixture_components, mopoe_components, nonempty_subsets, row_product
from .shared_private import random_shared_private
from .statistics import mean_and_se, within
from .terms import kl_diag, kl_full, private_term_value, term_value

EXACT = {"rtol": 0.0, "atol": 1e-9}  # closed forms in float64, sums of dozens of terms of order ten
PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
RESCALE = {"a": 0.7, "b": 1.4, "c": 2.2}


Run = Callable[..., Tensor]


def run(exact: Run, case: Case, **options: object) -> Tensor:  # shape: (B,)
    """One objective on a case."""
    return exact(case.model, case.experts, case.data, case.obs_mask, **options)


WEIGHTS = {"beta": 1.7, "rescale": RESCALE}
METHODS: dict[str, Callable[[Case], Tensor]] = {
    "mvae": lambda c: run(exact_mvae, c, **WEIGHTS, subsets=[("a", "b")]),
    "mvae_drop": lambda c: run(exact_mvae, c, duplicates="drop", rule="contained"),
    "mmvae": lambda c: run(exact_mmvae, c, **WEIGHTS),
    "mmvae_component": lambda c: run(exact_mmvae, c, density="component"),
    "mopoe": lambda c: run(exact_mopoe, c, **WEIGHTS, prior_expert="never"),
    "mopoe_full": lambda c: run(exact_mopoe, c),
    "mvtcae": lambda c: run(exact_mvtcae, c, **WEIGHTS, alpha=0.6),
    "jmvae": lambda c: run(exact_jmvae, c, **WEIGHTS, joint=off_posterior(c), alpha=0.3),
}
ALL = pytest.mark.parametrize("method", METHODS)


def part(case: Case, rows: slice, names: tuple[str, ...]) -> Case:
    """Some rows and modalities of a case."""
    model = type(case.model)(
        {m: case.model.weights[m] for m in names},
        {m: case.model.bias[m] for m in names},
        {m: case.model.noise[m] for m in names},
        *case.model.prior,
    )
    return Case(
        model,
        {m: case.data[m][rows] for m in names},
        {m: case.obs_mask[m][rows] for m in names},
        {m: (case.experts[m][0][rows], case.experts[m][1][rows]) for m in names},
        {m: case.complete[m][rows] for m in names},
        case.sets[rows],
    )


@ALL
@PER_FEATURE
def test_rows_are_independent_and_an_empty_row_is_zero(method: str, per_feature: bool) -> None:
    case = make_case(3, 2, per_feature=per_feature)
    value = METHODS[method](case)
    assert value[0] == 0
    assert value.isfinite().all()
    for row in (1, 4, 7):
        alone = METHODS[method](part(case, slice(row, row + 1), case.model.modalities))
        torch.testing.assert_close(alone, value[row : row + 1], **EXACT)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("mopoe_full", "mvae")])
def test_a_missing_modality_is_a_model_without_it(method: str) -> None:
    case = make_case(3, 2)
    row = case.sets.index(("a", "c"))
    without = METHODS[method](part(case, slice(row, row + 1), ("a", "c")))
    torch.testing.assert_close(METHODS[method](case)[row : row + 1], without, **EXACT)


def test_one_modality_reduces_every_method_to_its_elbo() -> None:
    case = make_case(1, 2)
    q, rows = case.experts["a"], slice(1, 2)
    elbo = term_value(case.model, q, case.data, case.obs_mask)[rows]
    args = (case.model, case.experts, case.data, case.obs_mask)
    keep, drop = (exact_mvae(*args, prior_expert=False, duplicates=d)[rows] for d in ("keep", "drop"))
    torch.testing.assert_close(keep, 2 * elbo, **EXACT)
    torch.testing.assert_close(drop, elbo, **EXACT)
    torch.testing.assert_close(exact_mmvae(*args)[rows], elbo, **EXACT)
    torch.testing.assert_close(exact_mopoe(*args, prior_expert="never")[rows], elbo, **EXACT)
    torch.testing.assert_close(exact_mvtcae(*args, alpha=0.3)[rows], 0.7 * elbo, **EXACT)
    torch.testing.assert_close(exact_jmvae(*args, joint=q, alpha=0.3)[rows], elbo, **EXACT)


@PER_FEATURE
@pytest.mark.parametrize("rule", ["intersect", "contained"])
def test_mvae_with_exact_posteriors_is_a_sum_of_evidences(rule: str, per_feature: bool) -> None:
    case = make_case(3)
    experts = likelihood_experts(case.model, case.data)
    subsets = [("a", "b"), ("b", "c")]
    value = exact_mvae(case.model, experts, case.data, case.obs_mask, subsets=subsets, rule=rule)
    for row, names in enumerate(case.sets):
        expected = torch.zeros((), dtype=torch.float64)
        for s in [case.model.modalities, ("a",), ("b",), ("c",), *subsets]:
            inside = set(s) & set(names)
            if rule == "intersect" or inside == set(s) or len(s) == 3:
                mask = {m: torch.tensor([m in inside]) for m in case.model.modalities}
                expected = (
                    expected + case.model.log_evidence({m: x[row : row + 1] for m, x in case.data.items()}, mask)[0]
                )
        torch.testing.assert_close(value[row], expected, **EXACT)


def test_mvae_counts_duplicates_and_renormalizes() -> None:
    case = make_case(3, 2)
    args = (case.model, case.experts, case.data, case.obs_mask)
    single = exact_mvae(*args, unimodal=False)
    row = case.sets.index(("b",))
    # joint and unimodal terms coincide; with the subset there are three of them, of five terms in the table
    counts = [({}, 3), ({"duplicates": "drop"}, 1), ({"rule": "contained"}, 2), ({"weights": "renormalize"}, 5)]
    for options, factor in counts:
        value = exact_mvae(*args, subsets=[("b", "c")], **options)
        torch.testing.assert_close(value[row], factor * single[row], **EXACT)


@PER_FEATURE
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_mmvae_equals_monte_carlo(latent_dim: int, per_feature: bool) -> None:
    case = make_case(3, latent_dim, per_feature=per_feature)
    exact = exact_mmvae(case.model, case.experts, case.data, case.obs_mask, beta=1.7, rescale=RESCALE)
    mean, se = mixture_iwae(
        case.model,
        case.experts,
        case.data,
        case.obs_mask,
        num_particles=1,
        repeats=20000,
        generator=torch.Generator().manual_seed(0),
        rescale=RESCALE,
        beta=1.7,
    )
    within(mean, se, exact, resolution=0.05)


def test_mmvae_of_components_lies_below_that_of_the_mixture() -> None:
    case = make_case(3, 2)
    args = (case.model, case.experts, case.data, case.obs_mask)
    by_component, by_mixture = exact_mmvae(*args, density="component"), exact_mmvae(*args)
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    several = torch.tensor([len(s) > 1 for s in case.sets])
    assert (by_component[several] < by_mixture[several]).all()
    assert (by_mixture[1:] < evidence[1:]).all()
    torch.testing.assert_close(by_component[~several], by_mixture[~several], **EXACT)


@pytest.mark.parametrize("prior_expert", ["full_only", "never", "always"])
def test_mopoe_equals_monte_carlo(prior_expert: str) -> None:
    case = make_case(3, 2, per_feature=True)
    exact = exact_mopoe(
        case.model, case.experts, case.data, case.obs_mask, beta=1.7, rescale=RESCALE, prior_expert=prior_expert
    )
    for row in range(1, len(case.sets)):
        data, mask = ({m: x[row : row + 1] for m, x in d.items()} for d in (case.data, case.obs_mask))
        draws = torch.zeros(20000, dtype=torch.float64)
        for w, *q in mopoe_components(case.experts, case.obs_mask, row, case.model.prior, prior_expert=prior_expert):
            z = Normal(*q).sample((20000,))
            scored = case.model.log_likelihoods(z.unsqueeze(1), data, mask)
            ratio = (Normal(*case.model.prior).log_prob(z) - Normal(*q).log_prob(z)).sum(-1)
            draws += w * (sum(RESCALE[m] * v[:, 0] for m, v in scored.items()) + 1.7 * ratio)
        within(*mean_and_se(draws), exact[row], resolution=0.05)


def test_mopoe_with_the_full_subset_only_is_the_joint_term_of_mvae() -> None:
    case = make_case(3, 2)
    args = (case.model, case.experts, case.data, case.obs_mask)
    full = exact_mopoe(*args, subsets=[("a", "b", "c")])
    torch.testing.assert_close(full[-1], exact_mvae(*args, unimodal=False)[-1], **EXACT)
    assert (full[:-1] == 0).all()


def test_mopoe_of_exact_posteriors_falls_short_by_the_mean_divergence() -> None:
    case = make_case(3)
    experts = likelihood_experts(case.model, case.data)
    value = exact_mopoe(case.model, experts, case.data, case.obs_mask, prior_expert="always")
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    for row, names in enumerate(case.sets[1:], start=1):
        subsets = nonempty_subsets(names)
        posteriors = [row_product(experts, s, row, case.model.prior) for s in subsets]
        gap = sum(kl_diag(q, (loc[row], cov[row, :, 0].sqrt())) for q in posteriors) / len(subsets)
        torch.testing.assert_close(value[row], evidence[row] - gap, **EXACT)


def test_mopoe_counts_private_latents_once() -> None:
    model = random_shared_private({"a": 2, "b": 3}, 2, 1)
    _, data = model.joint.sample(2, torch.Generator().manual_seed(0))
    mask = {"a": torch.tensor([True, True]), "b": torch.tensor([True, False])}
    draw = torch.Generator().manual_seed(1)

    def gaussian(size: int) -> Gaussian:
        return (
            torch.randn(2, size, generator=draw, dtype=torch.float64),
            0.5 + torch.rand(2, size, generator=draw, dtype=torch.float64),
        )

    experts, private = {m: gaussian(2) for m in mask}, {m: gaussian(1) for m in mask}
    whole = exact_mopoe(model, experts, data, mask, private=private, subsets=[("a",)])
    # one component, everything weighted by 1: the ELBO of (z, w_a, w_b), short by its divergence from the posterior
    stacked = model.stack(experts["a"], private)
    loc, cov = model.joint.posterior(data, mask)
    gap = kl_full(stacked[0][0], torch.diag(stacked[1][0] ** 2), loc[0], cov[0])
    torch.testing.assert_close(whole[0], model.log_evidence(data, mask)[0] - gap, **EXACT)
    # weights: the private penalty carries beta * beta_style and does not depend on the number of components
    value = exact_mopoe(model, experts, data, mask, beta=1.7, beta_style=0.4, rescale=RESCALE, private=private)
    for row in range(2):
        rows = slice(row, row + 1)
        x, a = ({m: t[rows] for m, t in d.items()} for d in (data, mask))
        own = {m: (q[0][rows], q[1][rows]) for m, q in private.items()}
        parts = mopoe_components(experts, mask, row, model.prior)
        expected = sum(
            w * private_term_value(model, (m[None], s[None]), own, a, x, a, rescale=RESCALE, beta=1.7, beta_private=0.0)
            for w, m, s in parts
        )
        for name in mask:
            if mask[name][row]:
                expected = expected - 1.7 * 0.4 * kl_diag(own[name], model.private_prior[name])
        torch.testing.assert_close(value[rows], expected, **EXACT)


def test_objectives_are_differentiable_in_experts_and_model() -> None:
    case = make_case(2)
    loc = case.experts["a"][0].clone().requires_grad_()
    experts = {**case.experts, "a": (loc, case.experts["a"][1])}
    for value in (
        exact_mvae(case.model, experts, case.data, case.obs_mask),
        exact_mmvae(case.model, experts, case.data, case.obs_mask),
        exact_mopoe(case.model, experts, case.data, case.obs_mask),
        exact_mvtcae(case.model, experts, case.data, case.obs_mask, alpha=0.5),
    ):
        (grad,) = torch.autograd.grad(value.sum(), loc)
        assert grad.isfinite().all()
        assert (grad[torch.tensor(["a" not in s for s in case.sets])] == 0).all()
        assert (grad[torch.tensor(["a" in s for s in case.sets])] != 0).all()


def test_mixture_of_two_equal_experts_is_one() -> None:
    case = make_case(2)
    experts = {"a": case.experts["a"], "b": case.experts["a"]}
    row = case.sets.index(("a", "b"))
    assert len(mixture_components(experts, case.obs_mask, row)) == 2
    q = tuple(p[row : row + 1] for p in case.experts["a"])
    x, a = ({m: t[row : row + 1] for m, t in d.items()} for d in (case.data, case.obs_mask))
    value = exact_mmvae(case.model, experts, case.data, case.obs_mask)[row : row + 1]
    torch.testing.assert_close(value, term_value(case.model, (q[0], q[1]), x, a), **EXACT)
