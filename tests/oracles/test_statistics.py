"""The comparison helpers must fail when they should."""

from __future__ import annotations

import pytest
import torch

from .statistics import mean_and_se, repeat, within, z_scores


def test_scores_of_correct_draws_are_standard_normal() -> None:
    draws = torch.randn(400, 2000, dtype=torch.float64)
    z = z_scores(*mean_and_se(draws), torch.zeros(2000))
    assert 0.95 < z.std() < 1.05  # sd of 2000 scores: standard error 0.016
    assert abs(z.mean()) < 0.1


@pytest.mark.parametrize(
    ("mean", "se", "exact"),
    [(1.0, 0.1, 1.5), (1.0, 0.0, 1.001), (float("nan"), 0.1, 1.0), (1.0, float("nan"), 1.0), (1.0, 0.1, float("inf"))],
)
def test_wrong_values_fail(mean: float, se: float, exact: float) -> None:
    good = torch.zeros(3)
    bad = [good.clone().index_fill_(0, torch.tensor(1), v) for v in (mean, se, exact)]
    bad[1] = torch.where(torch.arange(3) == 1, bad[1], 1.0)
    with pytest.raises(AssertionError, match=r"objective: 1 of 3 .* worst at \(1,\)"):
        within(*bad, label="objective")


def test_values_within_reach_pass() -> None:
    within(torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.0]), torch.tensor([1.39, 2.0]))
    with pytest.raises(AssertionError):
        within(torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.0]), torch.tensor([1.39, 2.0]), sigmas=3)


def test_a_comparison_that_could_not_fail_fails() -> None:
    with pytest.raises(AssertionError, match="draw more"):
        within(torch.tensor(1.0), torch.tensor(0.1), torch.tensor(1.0), resolution=0.01)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        within(torch.zeros(3), torch.ones(3), torch.tensor(0.0))
    with pytest.raises(ValueError, match="at least 2"):
        mean_and_se(torch.ones(1, 3))


def test_repeat_stacks_fresh_results() -> None:
    counter = iter(range(3))
    assert repeat(lambda: torch.tensor(next(counter)), 3).tolist() == [0, 1, 2]
