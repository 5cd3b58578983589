"""The masked bound against the evidence, its definition by Monte Carlo, and the law of its random subsets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from .cases import Case, make_case
from .linear_gaussian import Gaussian
from .masked_bound import Posterior, masked_bound, masked_bound_outcomes, subsets
from .products import observed, row_product
from .statistics import mean_and_se, within
from .terms import kl_full, term_value

PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
MODALITIES = pytest.mark.parametrize("num_modalities", [1, 2, 3])
EXACT = {"rtol": 0.0, "atol": 1e-10}  # closed forms in float64


def exact(case: Case, names: Sequence[str]) -> tuple[Tensor, Tensor]:  # shapes: (B, L), (B, L, L)
    """p(z | x_S) of every row."""
    return case.model.posterior(case.data, {m: a & (m in names) for m, a in case.obs_mask.items()})


def exact_posterior(case: Case, moved: float = 0.0) -> Posterior:
    """p(z | x_S) as q(z | x_S), one latent dimension; ``moved``: its location off by so many standard deviations."""

    def posterior(names: Sequence[str], n: int) -> Gaussian:
        loc, cov = exact(case, names)
        scale = cov[n, :, 0].sqrt()
        return loc[n] + moved * scale, scale

    return posterior


def wrong(case: Case) -> Posterior:
    """Products of wrong experts, with the prior."""
    return lambda names, n: row_product(case.experts, names, n, case.model.prior)


@PER_FEATURE
@MODALITIES
def test_exact_posteriors_make_it_the_evidence_for_every_subset(num_modalities: int, per_feature: bool) -> None:
    case = make_case(num_modalities, 1, per_feature=per_feature)
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    for s in subsets(case.model.modalities):
        found = masked_bound(case.model, exact_posterior(case), case.data, case.obs_mask, s)
        torch.testing.assert_close(found, evidence, **EXACT)


@PER_FEATURE
@MODALITIES
def test_its_distance_from_the_evidence(num_modalities: int, per_feature: bool) -> None:
    """-KL(q_S || p_S) - KL(q_O || p_O) + E_{q_O} log q_S / p_S, p_S the exact posterior given S."""
    case = make_case(num_modalities, 2, per_feature=per_feature)
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    posterior = wrong(case)
    for s in subsets(case.model.modalities):
        found = masked_bound(case.model, posterior, case.data, case.obs_mask, s)
        (loc_s, cov_s), (loc_o, cov_o) = exact(case, s), exact(case, case.model.modalities)
        for n in range(1, len(case.sets)):
            inside = [m for m in case.sets[n] if m in s]
            q_s = posterior(inside, n) if inside else case.model.prior
            q_o = posterior(case.sets[n], n)
            mine, whole = ((q[0], q[1].square().diag()) for q in (q_s, q_o))
            distance = kl_full(*mine, loc_s[n], cov_s[n]) + kl_full(*whole, loc_o[n], cov_o[n])
            gain = kl_full(*whole, loc_s[n], cov_s[n]) - kl_full(*whole, *mine)
            torch.testing.assert_close(found[n], evidence[n] - distance + gain, **EXACT)
    assert masked_bound(case.model, posterior, case.data, case.obs_mask, ())[0] == 0


def test_nothing_or_all_inside_is_the_evidence_bound() -> None:
    case = make_case(3, 2)
    for n, names in enumerate(case.sets[1:], 1):
        q = tuple(p.unsqueeze(0) for p in wrong(case)(names, n))
        target = {m: a[n : n + 1] for m, a in case.obs_mask.items()}
        elbo = term_value(case.model, q, {m: x[n : n + 1] for m, x in case.data.items()}, target, beta=1.7)[0]
        for s in ((), case.model.modalities):
            found = masked_bound(case.model, wrong(case), case.data, case.obs_mask, s, beta=1.7)
            torch.testing.assert_close(found[n], elbo, **EXACT)


def test_it_may_exceed_the_evidence() -> None:
    """With q_O exact and q_S moved towards it, the second part wins to first order what the first one loses."""
    case = make_case(2, 1)
    row = len(case.sets) - 1
    (loc_s, _), (loc_o, _) = exact(case, ("a",)), exact(case, ("a", "b"))

    def posterior(names: Sequence[str], n: int) -> Gaussian:
        loc, scale = exact_posterior(case)(names, n)
        return (loc + 0.2 * (loc_o[n] - loc_s[n]) if len(names) == 1 else loc), scale

    evidence = case.model.log_evidence(case.data, case.obs_mask)
    assert masked_bound(case.model, posterior, case.data, case.obs_mask, ("a",))[row] > evidence[row] + 1e-3


def test_weights_equal_monte_carlo_of_the_definition() -> None:
    case = make_case(3, 2, per_feature=True)
    rescale, beta, s, row = {"a": 0.7, "b": 1.4, "c": 2.2}, 2.5, ("a", "c"), 7
    q_s, q_o = (Normal(*wrong(case)(names, row)) for names in (s, case.sets[row]))
    data, mask = ({m: x[row : row + 1] for m, x in d.items()} for d in (case.data, case.obs_mask))
    total = 0.0
    for q, target, r in ((q_s, s, Normal(*case.model.prior)), (q_o, ("b",), q_s)):
        z = q.sample((40000,))
        scored = case.model.log_likelihoods(z.unsqueeze(1), data, mask)
        total = total + sum(rescale[m] * scored[m].squeeze(1) for m in target)
        total = total + beta * (r.log_prob(z) - q.log_prob(z)).sum(-1)
    found = masked_bound(case.model, wrong(case), case.data, case.obs_mask, s, beta=beta, rescale=rescale)
    within(*mean_and_se(total), found[row], resolution=0.05)


def test_shares_of_subsets_are_those_of_a_uniform_rate() -> None:
    """P(S) is the integral of u^|S| (1 - u)^(|O| - |S|), by the midpoint rule (error below 1e-8)."""
    case = make_case(3, 1)
    outcomes = masked_bound_outcomes(case.model, wrong(case), case.data, case.obs_mask)
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for n in range(len(case.sets)):
        names = observed(case.obs_mask, n)
        mean = torch.zeros((), dtype=torch.float64)
        for s in subsets(names):
            value = masked_bound(case.model, wrong(case), case.data, case.obs_mask, s)[n]
            mean = mean + (u ** len(s) * (1 - u) ** (len(names) - len(s))).mean() * value
            assert (outcomes[:, n] == value).any()
        torch.testing.assert_close(outcomes[:, n].mean(), mean, rtol=0.0, atol=1e-6)
