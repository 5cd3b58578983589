"""Exact MVTCAE and JMVAE against evidences, identities and their parts."""

from __future__ import annotations

import pytest
import torch

from .cases import make_case, off_posterior
from .methods import exact_jmvae, exact_mvtcae
from .products import log_normalizer, product_of_experts, row_product
from .terms import expected_log_likelihood, kl_diag, term_value

EXACT = {"rtol": 0.0, "atol": 1e-9}  # closed forms in float64, sums of dozens of terms of order ten
PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
RESCALE = {"a": 0.7, "b": 1.4, "c": 2.2}


@PER_FEATURE
def test_mvtcae_equals_its_form_with_a_geometric_prior(per_feature: bool) -> None:
    case = make_case(3, 2, per_feature=per_feature)
    alpha, beta = 0.6, 1.7
    value = exact_mvtcae(case.model, case.experts, case.data, case.obs_mask, alpha=alpha, beta=beta, rescale=RESCALE)
    q = product_of_experts(case.experts, case.obs_mask, empty=case.model.prior)
    scored = expected_log_likelihood(case.model, *q, case.data, case.obs_mask)
    for row, names in enumerate(case.sets[1:], start=1):
        size = len(names)
        factors = [(1 - alpha, *case.model.prior)]
        factors += [(alpha / size, case.experts[m][0][row], case.experts[m][1][row]) for m in names]
        weights = {m: alpha / size for m in names}
        geometric = row_product(case.experts, names, row, case.model.prior, 1 - alpha, weights)
        log_z = log_normalizer(factors)
        assert log_z <= 0
        score = sum(RESCALE[m] * scored[m][row] for m in names)
        penalty = kl_diag((q[0][row], q[1][row]), geometric) - log_z
        torch.testing.assert_close(value[row], (size - alpha) / size * score - beta * penalty, **EXACT)


def test_mvtcae_is_a_mean_of_an_elbo_and_conditional_bounds() -> None:
    case = make_case(3, 2)
    alpha = 0.6
    value = exact_mvtcae(case.model, case.experts, case.data, case.obs_mask, alpha=alpha)
    q = product_of_experts(case.experts, case.obs_mask, empty=case.model.prior)
    expected = (1 - alpha) * term_value(case.model, q, case.data, case.obs_mask)
    for row, names in enumerate(case.sets):
        for m in names:
            rest = {k: a[row : row + 1] & (k != m) for k, a in case.obs_mask.items()}
            x = {k: v[row : row + 1] for k, v in case.data.items()}
            own, expert = ((p[0][row : row + 1], p[1][row : row + 1]) for p in (q, case.experts[m]))
            expected[row] += alpha / len(names) * term_value(case.model, own, x, rest, r=expert)[0]
    torch.testing.assert_close(value[1:], expected[1:], **EXACT)


def test_mvtcae_may_keep_the_count_of_all_modalities() -> None:
    case = make_case(3, 2)
    args = (case.model, case.experts, case.data, case.obs_mask)
    right, peer = (exact_mvtcae(*args, alpha=0.6, count=c) for c in ("observed", "all"))
    torch.testing.assert_close(right[-1], peer[-1], **EXACT)
    q = case.experts["a"]
    score = sum(v[1] for v in expected_log_likelihood(case.model, *q, case.data, case.obs_mask).values())
    expected = (3 - 0.6) / 3 * score - 0.4 * kl_diag((q[0][1], q[1][1]), case.model.prior)
    torch.testing.assert_close(peer[1], expected, **EXACT)


def test_jmvae_with_the_exact_posterior_is_the_evidence_less_the_distillation() -> None:
    case = make_case(3)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    joint = (loc, cov[..., 0].sqrt())
    args = (case.model, case.experts, case.data, case.obs_mask)
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    value = exact_jmvae(*args, joint=joint, alpha=0.3)
    every = exact_jmvae(*args, joint=joint, alpha=0.3, distill_singletons=True)
    for row, names in enumerate(case.sets):
        q = (joint[0][row], joint[1][row])
        divergences = [kl_diag(q, (case.experts[m][0][row], case.experts[m][1][row])) for m in names]
        loss = 0.3 * sum(divergences, torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(every[row], evidence[row] - loss, **EXACT)
        torch.testing.assert_close(value[row], evidence[row] - (loss if len(names) > 1 else 0.0), **EXACT)


def test_jmvae_anneals_both_penalties() -> None:
    case = make_case(3, 2)
    joint = off_posterior(case)
    args = (case.model, case.experts, case.data, case.obs_mask)
    annealed = exact_jmvae(*args, joint=joint, alpha=0.3, beta=1.7, annealing=0.25, rescale=RESCALE)
    scaled = exact_jmvae(*args, joint=joint, alpha=0.3 * 0.25, beta=1.7 * 0.25, rescale=RESCALE)
    none = exact_jmvae(*args, joint=joint, alpha=0.3, beta=1.7, annealing=0.0, rescale=RESCALE)
    scored = expected_log_likelihood(case.model, *joint, case.data, case.obs_mask)
    torch.testing.assert_close(annealed, scaled, **EXACT)
    torch.testing.assert_close(none, sum(RESCALE[m] * v for m, v in scored.items()), **EXACT)


def test_jmvae_falls_back_to_a_product() -> None:
    case = make_case(3)
    joint, right = off_posterior(case), case.model.experts(case.data)
    args = (case.model, right, case.data, case.obs_mask)
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    product = exact_jmvae(*args, joint=joint, alpha=0.3, incomplete="product")
    plain = exact_jmvae(*args, joint=joint, alpha=0.3, incomplete="product", product="plain")
    masked = exact_jmvae(*args, joint=joint, alpha=0.3)
    dropped = exact_jmvae(*args, joint=joint, alpha=0.3, incomplete="drop")
    torch.testing.assert_close(product[:-1], evidence[:-1], **EXACT)  # exact posteriors: the corrected product is exact
    pairs = torch.tensor([len(s) == 2 for s in case.sets])
    assert (plain[pairs] < evidence[pairs] - 1e-3).all()
    assert (dropped[:-1] == 0).all()
    for value in (product, plain, dropped):
        torch.testing.assert_close(value[-1], masked[-1], **EXACT)
