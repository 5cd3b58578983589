"""Gradient estimators against quadrature and against coefficients written out.

Unbiased ones lie within 4 standard errors of the exact gradient, which are under 1 % of its norm; biased ones do not.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.objectives.gradients import Alias
from tests.objectives.gradient_problem import (
    X,
    by_log_scale,
    log_joint,
    mixture_terms,
    parameters,
    programs,
    row_gradients,
    single_term,
)
from tests.oracles.gradients import estimator_draws, exact_gradient, expert_log_densities, plain_draws
from tests.oracles.statistics import mean_and_se, within, z_scores

pytestmark = pytest.mark.usefixtures("float64")

DRAWS = 100_000
ONE, BOTH = ("a",), ("a", "b")


def exact(names: tuple[str, ...], particles: int) -> Tensor:  # shape: (M, 2)
    """The gradient of the looser bound by quadrature."""
    loc, scale, weights = parameters(names)
    _, by_loc, by_scale = exact_gradient(log_joint, loc, scale, weights, particles)
    return by_log_scale(by_loc, by_scale, scale)


def iwae(gradient: str, names: tuple[str, ...], particles: int, **options: Any) -> mm.IWAE:
    terms = single_term() if names == ONE else mixture_terms()
    density = "component" if names == ONE and gradient != "dreg_mixture" else "mixture"
    return mm.IWAE(terms, num_particles=particles, gradient=gradient, density=density, **options)


UNBIASED = [
    ("path", ONE, 3),
    ("path", BOTH, 2),
    ("stl", ONE, 1),
    ("stl", BOTH, 1),
    ("dreg", ONE, 3),
    ("dreg", BOTH, 1),
    ("dreg_mixture", ONE, 3),
    ("dreg_mixture", BOTH, 1),
    ("dreg_mixture", BOTH, 2),
]


@pytest.mark.parametrize(("gradient", "names", "particles"), UNBIASED)
def test_unbiased(gradient: str, names: tuple[str, ...], particles: int) -> None:
    draws = row_gradients(iwae(gradient, names, particles), DRAWS, names)
    within(*mean_and_se(draws), exact(names, particles), resolution=0.01)


@pytest.mark.parametrize(("gradient", "names"), [("stl", ONE), ("stl", BOTH), ("dreg", BOTH)])
def test_biased_as_published(gradient: str, names: tuple[str, ...]) -> None:
    draws = row_gradients(iwae(gradient, names, 3 if names == ONE else 2), DRAWS, names)
    reference = exact(names, 3 if names == ONE else 2)
    assert z_scores(*mean_and_se(draws), reference).abs().max() > 8


@pytest.mark.parametrize("gradient", ["path", "stl"])
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_elbo(gradient: str, kl: str) -> None:
    objective = mm.ELBO(single_term(), num_particles=2, kl=kl, gradient=gradient)
    within(*mean_and_se(row_gradients(objective, DRAWS // 2, ONE)), exact(ONE, 1)[:1], resolution=0.01)


def test_sticking_the_landing_has_no_noise_where_the_posterior_is_exact() -> None:
    """A Gaussian story in place of the crooked one: the guide is its posterior, so every single draw gives 0."""

    def story() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("a", dist.Normal(z, 1.0).to_event(1))

    class Exact(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.full((8, 1), X["a"] / 2))

        def forward(self, x: Tensor) -> Any:
            return dist.Normal(self.loc, 0.5**0.5).to_event(1)

    model = mm.observe(story, ("a",))
    guide = mm.guides.Product(model, {"a": Exact()}, prior_expert="never")
    data = {"a": torch.full((8, 1), X["a"])}
    for objective, size in ((mm.ELBO(gradient="stl"), 0.0), (mm.ELBO(gradient="path"), 0.1)):
        value = objective.per_sample(model, guide, data).sum()
        (gradient,) = torch.autograd.grad(value, list(guide.parameters()))
        assert (gradient.abs() < 1e-12).all() if size == 0.0 else gradient.abs().mean() > size


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("names", [ONE, BOTH])
def test_path_draws_equal_the_definition_at_equal_noise(names: tuple[str, ...], tight: bool) -> None:
    bound = "tight" if tight else "looser"
    ours, eps = at_equal_noise(iwae("path", names, 3, bound=bound), names, 3)
    loc, scale, weights = parameters(names)
    theirs = by_log_scale(*plain_draws(log_joint, loc, scale, weights, eps, bound), scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("gradient", "estimator", "names"),
    [
        ("stl", "stl", ONE),
        ("stl", "stl", BOTH),
        ("dreg", "dreg", ONE),
        ("dreg", "dreg", BOTH),
        ("dreg_mixture", "mixture_dreg", ONE),
        ("dreg_mixture", "mixture_dreg", BOTH),
    ],
)
@pytest.mark.parametrize("particles", [1, 4])
def test_coefficients(gradient: str, estimator: Any, names: tuple[str, ...], particles: int) -> None:
    ours, eps = at_equal_noise(iwae(gradient, names, particles), names, particles)
    loc, scale, weights = parameters(names)
    theirs = by_log_scale(*estimator_draws(log_joint, loc, scale, weights, eps, estimator), scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def at_equal_noise(objective: Any, names: tuple[str, ...], particles: int, rows: int = 50) -> tuple[Tensor, Tensor]:
    """Gradients of every row at known noise, and the noise ``(N, M, K, 1)`` as the references take it."""
    eps = torch.randn(rows, len(names), particles, 1)
    layout = eps.permute(2, 1, 0, 3)  # (K, U, B, 1)
    while layout.shape[0] == 1:
        layout = layout.squeeze(0)
    with mm.handlers.noise({"z": layout}):
        return row_gradients(objective, rows, names), eps


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_the_model_gets_the_same_gradient_from_every_estimator(gradient: str) -> None:
    found = []
    model, guide, data = programs(20)
    eps = torch.randn(4, 2, 20, 1)
    for kind in ("path", gradient):
        with mm.handlers.noise({"z": eps}):
            value = iwae(kind, BOTH, 4).per_sample(model, guide, data).sum()
        found.append((value.detach(), *torch.autograd.grad(value, list(model.parameters()))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def unstopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every stop-gradient on the densities of q."""
    for module in ("run", "log_weights"):
        name = f"pyro_mmvae.objectives.{module}.with_parameters_detached"
        monkeypatch.setattr(name, lambda programs, thunk: thunk())
    monkeypatch.setattr("pyro_mmvae.fusion.Experts.detach", lambda self: self)


@pytest.mark.parametrize(("gradient", "names"), [("dreg", ONE), ("dreg_mixture", BOTH)])
def test_without_the_stop_gradient_it_is_biased(
    monkeypatch: pytest.MonkeyPatch, gradient: str, names: tuple[str, ...]
) -> None:
    unstopped(monkeypatch)
    particles = 3 if names == ONE else 2
    draws = row_gradients(iwae(gradient, names, particles), DRAWS, names)
    assert z_scores(*mean_and_se(draws), exact(names, particles)).abs().max() > 8


@pytest.mark.parametrize("names", [ONE, BOTH])
def test_without_the_stop_gradient_stl_is_another_estimator(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    unstopped(monkeypatch)
    ours, eps = at_equal_noise(iwae("stl", names, 1), names, 1)
    loc, scale, weights = parameters(names)
    theirs = by_log_scale(*estimator_draws(log_joint, loc, scale, weights, eps, "stl"), scale)
    assert (ours - theirs).abs().max() > 0.1


@pytest.mark.parametrize("beta", [0.4, 1.7])
def test_dreg_with_beta(monkeypatch: pytest.MonkeyPatch, beta: float) -> None:
    """Weights p(x|z) (p(z) / q(z))^beta: the factor at the draws is 1 - beta (1 - w), not w."""
    terms = mm.Terms([mm.Term(mm.objectives.Only(("a",)), beta=beta)])
    objective = mm.IWAE(terms, num_particles=2, gradient="dreg")
    reference = exact_with_beta(beta)
    within(*mean_and_se(row_gradients(objective, DRAWS, ONE)), reference, resolution=0.01)
    scale = Alias.scale_gradients

    def published(self: Alias, share: Tensor, beta: Any, done: Any, nesting: int) -> None:
        scale(self, share, {site: torch.ones_like(b) for site, b in beta.items()}, done, nesting)

    monkeypatch.setattr(Alias, "scale_gradients", published)
    assert z_scores(*mean_and_se(row_gradients(objective, DRAWS, ONE)), reference).abs().max() > 8


def exact_with_beta(beta: float) -> Tensor:  # shape: (1, 2)
    """Two particles by quadrature on fixed nodes; the parameters act through the densities at the nodes alone."""
    loc, scale, _ = (p.requires_grad_() for p in parameters(ONE))
    low, high = (loc - 9 * scale).item(), (loc + 9 * scale).item()
    node = torch.linspace(low, high, 1201)
    log_q = expert_log_densities(node.unsqueeze(-1), loc, scale).squeeze(-1)
    log_w = log_joint(node.unsqueeze(-1), prior=beta) - beta * log_q
    mass = (log_q.unsqueeze(0) + log_q.unsqueeze(1)).exp() * (node[1] - node[0]) ** 2
    value = (mass * (torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - math.log(2))).sum()
    by_loc, by_scale = torch.autograd.grad(value, (loc, scale))
    return by_log_scale(by_loc, by_scale, scale.detach())
