"""The Monte Carlo references against exact values, and their standard errors against their spread."""

from __future__ import annotations

import torch

from . import monte_carlo
from .cases import make_case, off_posterior
from .methods import exact_mmvae
from .monte_carlo import iwae, mixture_iwae
from .statistics import within, z_scores
from .terms import term_value


def generator(seed: int = 0) -> torch.Generator:
    """A stream of its own."""
    return torch.Generator().manual_seed(seed)


def test_one_particle_is_the_elbo() -> None:
    case = make_case(3, 2, per_feature=True)
    options = {"rescale": {"a": 0.7}, "beta": 1.7}
    q = off_posterior(case)
    sampling = {"num_particles": 1, "repeats": 20000, "generator": generator()}
    estimate = iwae(case.model, q, case.data, case.obs_mask, **sampling, **options)
    within(*estimate, term_value(case.model, q, case.data, case.obs_mask, **options), resolution=0.05)


def test_more_particles_climb_to_the_evidence() -> None:
    case = make_case(2, 2)
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    bounds = []
    for particles, repeats in ((1, 4000), (10, 4000), (5000, 20)):
        bounds.append(
            iwae(
                case.model,
                off_posterior(case),
                case.data,
                case.obs_mask,
                num_particles=particles,
                repeats=repeats,
                generator=generator(),
            )
        )
    assert (bounds[0][0] < bounds[1][0] - 4 * bounds[0][1]).all()
    assert (bounds[1][0] < evidence - 4 * bounds[1][1]).all()
    within(*bounds[2], evidence)


def test_exact_posterior_has_no_variance() -> None:
    case = make_case(3)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    mean, se = iwae(
        case.model,
        (loc, cov[..., 0].sqrt()),
        case.data,
        case.obs_mask,
        num_particles=3,
        repeats=5,
        generator=generator(),
    )
    # log w is constant up to rounding
    torch.testing.assert_close(mean, case.model.log_evidence(case.data, case.obs_mask), rtol=0.0, atol=1e-10)
    assert (se < 1e-10).all()


def test_mixture_bounds_are_ordered() -> None:
    case = make_case(3)
    args = (case.model, case.experts, case.data, case.obs_mask)
    elbo = exact_mmvae(*args)
    evidence = case.model.log_evidence(case.data, case.obs_mask)
    looser, tight = (
        mixture_iwae(*args, num_particles=5, repeats=10000, generator=generator(), bound=b) for b in ("looser", "tight")
    )
    assert looser[0][0] == tight[0][0] == 0
    several = torch.tensor([len(s) > 1 for s in case.sets])
    assert (elbo < looser[0] - 4 * looser[1])[1:].all()
    assert (looser[0] < tight[0] - 4 * (looser[1] + tight[1]))[several].all()
    assert (tight[0] < evidence + 4 * tight[1])[1:].all()


def test_standard_errors_are_right() -> None:
    case = make_case(2)
    exact = term_value(case.model, off_posterior(case), case.data, case.obs_mask)
    scores = []
    for seed in range(100):
        mean, se = iwae(
            case.model,
            off_posterior(case),
            case.data,
            case.obs_mask,
            num_particles=1,
            repeats=200,
            generator=generator(seed),
        )
        scores.append(z_scores(mean, se, exact))
    # 100 z-scores: their sd has a standard error of 0.07, so 0.8 to 1.2 is almost three of them on both sides
    spread = torch.stack(scores).std(0)
    assert ((spread > 0.8) & (spread < 1.2)).all()


def test_chunks_cover_the_repeats() -> None:
    assert monte_carlo._chunks(10, monte_carlo.CHUNK // 4) == [4, 4, 2]
    assert monte_carlo._chunks(2, 2 * monte_carlo.CHUNK) == [1, 1]
