"""Law 1: with a wrong guide, and weights that are neither 0 nor 1, every objective has its closed-form value.

Test layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from pyro_mmvae import IWAE, MMVAE
from tests.conformance.cases import Case
from tests.conformance.evaluate import by_draws, by_quadrature, by_sigma_points, value
from tests.conformance.exact import FAMILIES
from tests.conformance.problems import Problem
from tests.oracles.monte_carlo import mixture_iwae
from tests.oracles.statistics import mean_and_se, within

pytestmark = pytest.mark.law("closed form")

PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
EXACT = {"rtol": 1e-10, "atol": 1e-9}  # closed forms in float64, sums of dozens of terms of order ten
QUADRATURE = {"rtol": 0.0, "atol": 1e-7}  # 801 nodes over 18 standard deviations; scales within a factor 4


def is_one_of(found: torch.Tensor, outcomes: torch.Tensor, atol: float) -> None:
    """Every row is one of the values it may have."""
    distance = (found - outcomes).abs().amin(0)
    assert (distance <= atol).all(), f"off by {distance.tolist()}: {found.tolist()} against {outcomes.tolist()}"


@PER_FEATURE
@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_value(case: Case, num_modalities: int, per_feature: bool) -> None:
    if num_modalities < case.minimum:
        return
    mixture = isinstance(case.vae(case.make(1) if case.minimum == 1 else case.make()).objective, IWAE)
    p = case.make(num_modalities, 1 if mixture else 2, per_feature=per_feature)
    vae = case.vae(p)
    if case.closed_form is None:
        eps = p.noise(vae.objective.num_particles)
        torch.testing.assert_close(value(vae, p.data, p.obs_mask, eps), case.at_noise(p, eps), **EXACT)
    elif mixture:
        torch.testing.assert_close(by_quadrature(vae, p), case.outcomes(p)[0], **QUADRATURE)
    else:
        is_one_of(by_sigma_points(vae, p).detach(), case.outcomes(p), atol=1e-9)


def test_mean_over_the_library_s_own_draws(case: Case) -> None:
    p = case.make(per_feature=True)
    vae = case.vae(p, lazy=True)
    draws = by_draws(vae, p, copies=1000)
    if case.closed_form is not None:
        outcomes = case.outcomes(p)
        if case.random == "sample":  # the mean over all subsets of what a sample observes
            contained = (outcomes != 0).sum(0).clamp(min=1)
            outcomes = outcomes.sum(0, keepdim=True) / contained
        nearest = (draws.mean(0) - outcomes).abs().sum(-1).argmin()
        within(*mean_and_se(draws), outcomes[nearest], label=case.name)
        return
    if p.family == "laplace" or case.method is not MMVAE:
        law, lead = FAMILIES[p.family](0.0, 1.0), (vae.objective.num_particles, 1, 800)
        naive = at_many(case, p, {site: law.sample((*lead, e.shape[-1])) for site, e in p.noise().items()})
    else:
        generator = torch.Generator().manual_seed(0)
        bound = case.options.get("bound", "looser")
        weights = {"beta": case.options["beta"], "rescale": case.options["rescale"]}
        mean, se = mixture_iwae(
            p.stacked,
            p.experts,
            p.data,
            p.obs_mask,
            num_particles=vae.objective.num_particles,
            repeats=4000,
            generator=generator,
            bound=bound,
            **weights,
        )
        naive = mean, se
    mean, se = mean_and_se(draws)
    within(mean, (se**2 + naive[1] ** 2).sqrt(), naive[0], label=case.name)


def at_many(case: Case, p: Problem, eps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard error of the estimate by definition over blocks of noise, shape (K, 1, N, L)."""
    blocks = zip(*(e.split(len(p.sets), 2) for e in eps.values()), strict=True)
    return mean_and_se(torch.stack([case.at_noise(p, dict(zip(eps, block, strict=True))) for block in blocks]))
