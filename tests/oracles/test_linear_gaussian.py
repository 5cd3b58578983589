"""The linear-Gaussian closed forms against grid integration and identities."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from .cases import Case, make_case
from .linear_gaussian import LinearGaussian, normal_log_density, random_model
from .statistics import mean_and_se, within

PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
MODALITIES = pytest.mark.parametrize("num_modalities", [1, 2, 3])
# closed forms in float64; sums of a few dozen terms of order ten
EXACT = {"rtol": 0.0, "atol": 1e-10}
# the grid reaches 12 prior standard deviations with steps far below any scale: its error is rounding
GRID = {"rtol": 0.0, "atol": 1e-9}


def grid(model: LinearGaussian, points: int) -> tuple[torch.Tensor, float]:
    """Nodes (P, L) around the prior and the volume of a cell."""
    loc, scale = model.prior
    ends = zip((loc - 12 * scale).tolist(), (loc + 12 * scale).tolist(), strict=True)
    lines = [torch.linspace(low, high, points, dtype=torch.float64) for low, high in ends]
    cell = torch.stack([line[1] - line[0] for line in lines]).prod()
    return torch.cartesian_prod(*lines).reshape(-1, len(lines)), float(cell)


def joint_on_grid(case: Case, row: int, nodes: torch.Tensor) -> torch.Tensor:
    """log p(x_O, z) of one row at every node, by torch.distributions and one feature at a time."""
    total = Normal(*case.model.prior).log_prob(nodes).sum(-1)
    for name, weight in case.model.weights.items():
        for d in range(weight.shape[0]):
            entry = case.obs_mask[name][row]
            if bool(entry if entry.ndim == 0 else entry[d]):
                mean = nodes @ weight[d] + case.model.bias[name][d]
                total = total + Normal(mean, case.model.noise[name][d]).log_prob(case.data[name][row, d])
    return total


@PER_FEATURE
@MODALITIES
@pytest.mark.parametrize(("latent_dim", "points"), [(1, 8001), (2, 401)])
def test_evidence_and_posterior_equal_grid_integration(
    num_modalities: int, latent_dim: int, points: int, per_feature: bool
) -> None:
    case = make_case(num_modalities, latent_dim, per_feature=per_feature)
    nodes, cell = grid(case.model, points)
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    for row in range(len(case.sets)):
        log_joint = joint_on_grid(case, row, nodes) + math.log(cell)
        torch.testing.assert_close(evidence[row], torch.logsumexp(log_joint, 0), **GRID)
        weight = torch.softmax(log_joint, 0)
        mean = weight @ nodes
        torch.testing.assert_close(loc[row], mean, **GRID)
        torch.testing.assert_close(cov[row], (nodes - mean).T @ ((nodes - mean) * weight[:, None]), **GRID)


@PER_FEATURE
@MODALITIES
def test_bayes_rule_holds_at_any_latent(num_modalities: int, per_feature: bool) -> None:
    case = make_case(num_modalities, 4, per_feature=per_feature)
    z = torch.randn(5, len(case.sets), 4, dtype=torch.float64)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    log_posterior = MultivariateNormal(loc, cov).log_prob(z)
    likelihoods = case.model.log_likelihoods(z, case.data, case.obs_mask)
    log_joint = sum(likelihoods.values()) + case.model.log_prior(z)
    expected = case.model.log_evidence(case.data, case.obs_mask).expand(5, -1)
    torch.testing.assert_close(log_joint - log_posterior, expected, **EXACT)


@PER_FEATURE
def test_conditional_evidence_equals_evidence_under_the_posterior_as_prior(per_feature: bool) -> None:
    case = make_case(3, 2, per_feature=per_feature)
    model, hidden = case.model, {m: torch.zeros_like(v) for m, v in case.obs_mask.items()}
    given = {**case.obs_mask, "c": hidden["c"]}
    target = {**hidden, "c": case.obs_mask["c"]}
    value = model.conditional_log_evidence(case.data, target, given)
    loc, cov = model.posterior(case.data, given)
    for row, names in enumerate(case.sets):
        w, b, s = model.weights["c"], model.bias["c"], model.noise["c"]
        noise = torch.diag(s**2)
        direct = normal_log_density(case.data["c"][row], w @ loc[row] + b, w @ cov[row] @ w.T + noise)
        expected = direct if "c" in names else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(value[row], expected, **EXACT)


def test_known_entries_are_not_scored_again() -> None:
    case = make_case(2)
    nothing = case.model.conditional_log_evidence(case.data, case.obs_mask, case.obs_mask)
    assert torch.equal(nothing, torch.zeros(4, dtype=torch.float64))


def test_nothing_observed_gives_the_prior_and_zero() -> None:
    case = make_case(3, 2)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    torch.testing.assert_close(loc[0], case.model.prior[0], **EXACT)
    torch.testing.assert_close(cov[0], torch.diag(case.model.prior[1] ** 2), **EXACT)
    assert case.model.log_evidence(case.data, case.obs_mask)[0] == 0


def test_no_mask_means_all_observed() -> None:
    case = make_case(2, 2)
    full = {m: torch.ones(x.shape, dtype=torch.bool) for m, x in case.complete.items()}
    expected = case.model.log_evidence(case.complete, full)
    assert torch.equal(case.model.log_evidence(case.complete), expected)


def test_gradient_of_the_evidence_stays_finite_beside_nan() -> None:
    case = make_case(2, 2, per_feature=True)
    data = {m: x.clone().requires_grad_() for m, x in case.data.items()}
    case.model.log_evidence(data, case.obs_mask).sum().backward()
    for name, x in data.items():
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert (x.grad[~case.obs_mask[name]] == 0).all()
        assert (x.grad[case.obs_mask[name]] != 0).all()


def test_draws_have_the_moments_of_the_model() -> None:
    model = random_model({"a": 2}, 2)
    z, data = model.sample(20000, torch.Generator().manual_seed(0))
    within(*mean_and_se(z), model.prior[0])
    within(*mean_and_se(data["a"]), model.weights["a"] @ model.prior[0] + model.bias["a"])
    square = (data["a"] - model.weights["a"] @ model.prior[0] - model.bias["a"]) ** 2
    variance = (model.weights["a"] ** 2) @ (model.prior[1] ** 2) + model.noise["a"] ** 2
    within(*mean_and_se(square), variance)


def test_experts_are_the_posteriors_of_one_modality_made_wrong() -> None:
    case = make_case(2)
    mask = {"a": torch.ones(4, dtype=torch.bool), "b": torch.zeros(4, dtype=torch.bool)}
    loc, cov = case.model.posterior(case.complete, mask)
    right, wrong = case.model.experts(case.complete)["a"], case.model.experts(case.complete, 0.5, 1.5)["a"]
    torch.testing.assert_close(right[0], loc, **EXACT)
    torch.testing.assert_close(right[1], cov[..., 0].sqrt(), **EXACT)
    torch.testing.assert_close(wrong[0], loc + 0.5, **EXACT)
    torch.testing.assert_close(wrong[1], 1.5 * cov[..., 0].sqrt(), **EXACT)


def test_masks_must_be_complete_and_fit() -> None:
    case = make_case(2)
    with pytest.raises(ValueError, match="'b'"):
        case.model.log_evidence(case.data, {"a": case.obs_mask["a"]})
    with pytest.raises(ValueError, match="'b'"):
        case.model.log_evidence(case.data, {**case.obs_mask, "b": torch.ones(4, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="bool"):
        case.model.log_evidence(case.data, {**case.obs_mask, "b": torch.ones(4)})


def test_parameters_must_fit() -> None:
    with pytest.raises(ValueError, match="'a'"):
        LinearGaussian({"a": torch.ones(2, 3)}, {"a": torch.zeros(2)}, {"a": 1.0}, torch.zeros(1), torch.ones(1))
