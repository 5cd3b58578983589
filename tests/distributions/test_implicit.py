"""Gradients of mixture draws: velocities against inverted distribution functions, expectations against closed forms.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mmvae.distributions import Mixture
from pyro_mmvae.distributions.implicit import follow_weights, has_weight_velocity, weight_velocity
from tests.oracles.statistics import mean_and_se, within

pytestmark = pytest.mark.usefixtures("float64")

E = 3
FAMILIES = [dist.Normal, dist.Laplace]
SIZES = [1, 2, 5]


def parameters(size: int, rows: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Overlapping components: loc and scale (E, *rows, D), logits (E, *rows)."""
    return torch.randn(E, *rows, size), 0.5 + torch.rand(E, *rows, size), torch.randn(E, *rows)


def as_leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.clone().requires_grad_() for t in tensors)


# -- velocities: how the draw of fixed noise moves


def conditional(family: Any, loc: Tensor, scale: Tensor, log_weights: Tensor, z: Tensor, d: int) -> Tensor:
    """F_d(z_d | z_<d), by definition: rows of z (N, D), parameters (E, D)."""
    total = torch.zeros(len(z))
    norm = torch.zeros(len(z))
    for c in range(len(loc)):
        weight = log_weights[c].exp() * family(loc[c, :d], scale[c, :d]).log_prob(z[:, :d]).exp().prod(-1)
        total, norm = total + weight * family(loc[c, d], scale[c, d]).cdf(z[:, d]), norm + weight
    return total / norm


def inverted(family: Any, loc: Tensor, scale: Tensor, log_weights: Tensor, noise: Tensor) -> Tensor:
    """The z with F(z) = noise (N, D), feature by feature, by bisection."""
    z = torch.zeros_like(noise)
    for d in range(noise.shape[1]):
        low, high = torch.full((len(z),), -40.0), torch.full((len(z),), 40.0)
        for _ in range(60):
            z = z.index_copy(1, torch.tensor([d]), ((low + high) / 2).unsqueeze(1))
            below = conditional(family, loc, scale, log_weights, z, d) < noise[:, d]
            low, high = torch.where(below, z[:, d], low), torch.where(below, high, z[:, d])
    return z


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_velocities_are_those_of_draws_at_fixed_noise(family: Any, size: int) -> None:
    loc, scale, logits = parameters(size)
    noise = 0.05 + 0.9 * torch.rand(20, size)
    z = inverted(family, loc, scale, logits.log_softmax(0), noise)
    found = weight_velocity(family(loc, scale).to_event(1), logits.log_softmax(0), z)
    step = 1e-4
    for c in range(E):
        up, down = (
            inverted(family, loc, scale, (logits + h * torch.eye(E)[c]).log_softmax(0), noise) for h in (step, -step)
        )
        # central differences: error of the order step^2 times third derivatives, and 1e-16 * 40 / step of the bisection
        torch.testing.assert_close(found[c], (up - down) / (2 * step), rtol=1e-5, atol=1e-5)


def test_one_component_does_not_move() -> None:
    velocity = weight_velocity(dist.Normal(torch.randn(1, 4), 1.0).to_event(1), torch.zeros(1), torch.randn(6, 4))
    assert (velocity == 0).all()


def test_equal_components_do_not_move() -> None:
    components = dist.Normal(torch.zeros(E, 4), 1.0).to_event(1)
    velocity = weight_velocity(components, torch.randn(E).log_softmax(0), torch.randn(6, 4))
    torch.testing.assert_close(velocity, torch.zeros(E, 6, 4), rtol=0, atol=1e-14)


@pytest.mark.parametrize("family", FAMILIES)
def test_velocities_sum_to_zero(family: Any) -> None:
    """The weights are normalized: a common factor moves nothing."""
    loc, scale, logits = parameters(5, (4,))
    components, log_weights = family(loc, scale).to_event(1), logits.log_softmax(0)
    velocity = weight_velocity(components, log_weights, Mixture(components, log_weights).sample((7,)))
    assert velocity.shape == (E, 7, 4, 5)
    # relative to the fastest feature of the draw: what the solve subtracts
    relative = velocity.sum(0).abs().amax(-1) / velocity.abs().amax((0, -1))
    torch.testing.assert_close(relative, torch.zeros(7, 4), rtol=0, atol=1e-12)


def test_samples_and_batches_equal_a_loop() -> None:
    loc, scale, logits = parameters(3, (2, 4))
    log_weights = logits.log_softmax(0)
    z = torch.randn(5, 6, 2, 4, 3)
    together = weight_velocity(dist.Normal(loc, scale).to_event(1), log_weights, z)
    assert together.shape == (E, 5, 6, 2, 4, 3)
    for i in range(2):
        for j in range(4):
            one = dist.Normal(loc[:, i, j], scale[:, i, j]).to_event(1)
            alone = weight_velocity(one, log_weights[:, i, j], z[:, :, i, j])
            torch.testing.assert_close(together[:, :, :, i, j], alone)


def test_shapes_of_events() -> None:
    loc, scale, logits = parameters(6, (4,))
    log_weights, z = logits.log_softmax(0), torch.randn(7, 4, 6)
    flat = weight_velocity(dist.Normal(loc, scale).to_event(1), log_weights, z)
    square = dist.Normal(loc.reshape(E, 4, 2, 3), scale.reshape(E, 4, 2, 3)).to_event(2)
    assert torch.equal(weight_velocity(square, log_weights, z.reshape(7, 4, 2, 3)), flat.reshape(E, 7, 4, 2, 3))
    single = weight_velocity(dist.Normal(loc[..., :1], scale[..., :1]).to_event(1), log_weights, z[..., :1])
    scalar = weight_velocity(dist.Normal(loc[..., 0], scale[..., 0]), log_weights, z[..., 0])
    assert torch.equal(scalar, single.squeeze(-1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [1e-40, 1e30])
def test_absent_components_move_nothing_and_change_nothing(width: float, family: Any) -> None:
    """Whatever a masked expert holds: in single precision these squares, slopes and densities overflow."""
    loc, scale, logits = (p.float() for p in parameters(3))
    z = torch.cat([torch.randn(50, 3), torch.full((1, 3), 40.0)]).float()
    loc[2], scale[2] = 1e30, width
    log_weights = torch.cat([logits[:2].log_softmax(0), logits.new_tensor([-torch.inf])])
    found = weight_velocity(family(loc, scale).to_event(1), log_weights, z)
    two = weight_velocity(family(loc[:2], scale[:2]).to_event(1), log_weights[:2], z)
    assert found.isfinite().all() and (found[2] == 0).all() and torch.equal(found[:2], two)


@pytest.mark.parametrize("family", FAMILIES)
def test_between_separate_components_velocities_are_bounded(family: Any) -> None:
    """In the middle a_c is -1/4 and 1/4, and the density, which underflows, is taken as eps^2 / scale."""
    components = family(torch.tensor([[-300.0], [300.0]], dtype=torch.float32), 2.0).to_event(1)
    weights = torch.zeros(2, dtype=torch.float32).log_softmax(0)
    velocity = weight_velocity(components, weights, torch.zeros(1, dtype=torch.float32))
    bound = 0.25 * 2.0 / torch.finfo(torch.float32).eps ** 2
    torch.testing.assert_close(velocity.squeeze(-1), torch.tensor([-bound, bound], dtype=torch.float32))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_single_precision_is_accurate_in_both_tails(family: Any, sign: float) -> None:
    """Five scales out 1 - F is 3e-7: with F itself float32 would leave one digit."""
    loc, log_weights = sign * torch.tensor([[0.0], [0.3]]), torch.tensor([0.4, 0.6]).log()
    z = sign * torch.tensor([[5.0], [6.0]])
    exact = weight_velocity(family(loc, 1.0).to_event(1), log_weights, z)
    found = weight_velocity(family(loc.float(), 1.0).to_event(1), log_weights.float(), z.float())
    # roundings of 6e-8: tens of them, times the square of z in the exponent
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)


def test_other_families_are_refused() -> None:
    gamma = dist.Gamma(torch.ones(2, 3), 1.0).to_event(1)
    joint = dist.MultivariateNormal(torch.zeros(2, 3), torch.eye(3))
    assert not has_weight_velocity(gamma) and not has_weight_velocity(joint)
    for components in (gamma, joint):
        with pytest.raises(NotImplementedError, match="stratify"):
            follow_weights(components, torch.zeros(2).log_softmax(0), torch.ones(3))


# -- expectations: gradients of E f(z) against closed forms

SQUARE = {dist.Normal: 1.0, dist.Laplace: 2.0}  # E z^2 - loc^2, in squared scales
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: (z * torch.arange(1.0, 1.0 + z.shape[-1])).sum(-1),
    "square": lambda z: z.square().sum(-1),
    "sin": lambda z: z.sin().sum(-1),
    "product": lambda z: z[..., 0] * z[..., -1],
    "sin of half the sum": lambda z: (0.5 * z.sum(-1)).sin(),
}


def damping(family: Any, scale: Tensor) -> Tensor:
    """|characteristic function| at 1."""
    return (-0.5 * scale**2).exp() if family is dist.Normal else 1 / (1 + scale**2)


def expectation(name: str, family: Any, loc: Tensor, scale: Tensor) -> Tensor:
    """E f(z) under each component, in closed form: (E, D) -> (E,)."""
    second = loc**2 + SQUARE[family] * scale**2
    if name == "linear":
        return FUNCTIONS[name](loc)
    if name == "square":
        return second.sum(-1)
    if name == "sin":
        return (damping(family, scale) * loc.sin()).sum(-1)
    if name == "product":
        return second[..., 0] if loc.shape[-1] == 1 else loc[..., 0] * loc[..., -1]
    return damping(family, 0.5 * scale).prod(-1) * (0.5 * loc.sum(-1)).sin()


def draws_of(family: Any, raw: tuple[Tensor, ...], count: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Draws (count, D), each with parameters of its own, and those: (E, count, D), (E, count, D), (E, count)."""
    loc, scale, logits = leaves = as_leaves(*(p.unsqueeze(1).expand(E, count, *p.shape[1:]) for p in raw))
    return Mixture(family(loc, scale).to_event(1), logits.log_softmax(0)).rsample(), leaves


def exact_gradients(name: str, family: Any, raw: tuple[Tensor, ...]) -> list[Tensor]:
    loc, scale, logits = as_leaves(*raw)
    value = (logits.softmax(0) * expectation(name, family, loc, scale)).sum()
    return list(torch.autograd.grad(value, [loc, scale, logits], allow_unused=True, materialize_grads=True))


def moderate(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Components one to two scales apart, so that 2e5 draws resolve the gradient (farther apart it is noisier)."""
    loc = torch.linspace(-0.5, 0.5, E * size).reshape(size, E).T.roll(1, 0) + torch.tensor([[0.8], [1.8], [0.2]])
    scale = torch.linspace(0.7, 1.1, E * size).reshape(E, size)
    return loc, scale, torch.tensor([0.1, -0.4, 0.3])


def compare(rows: Tensor, exact: Tensor, label: str) -> None:
    """Gradients of single draws (E, N, *) against the exact one (E, *): four standard errors, each below 2 %."""
    resolution = 0.08 if exact.norm() > 0 else None
    within(*mean_and_se(rows.movedim(1, 0)), exact, resolution=resolution, label=label)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_expectations(size: int, family: Any) -> None:
    raw = moderate(size)
    z, leaves = draws_of(family, raw, 200_000)
    for name, f in FUNCTIONS.items():
        found = torch.autograd.grad(f(z).sum(), leaves, retain_graph=True)
        exact = exact_gradients(name, family, raw)
        for kind, rows, value in zip(("loc", "scale", "logits"), found, exact, strict=True):
            compare(rows, value, f"{name}, {kind}")


def test_gradients_with_an_absent_component() -> None:
    loc, scale, logits = moderate(2)
    raw = loc, scale, torch.stack([logits[0], torch.tensor(-torch.inf), logits[2]])
    z, leaves = draws_of(dist.Normal, raw, 100_000)
    for name in ("linear", "square"):
        found = torch.autograd.grad(FUNCTIONS[name](z).sum(), leaves, retain_graph=True)
        for rows, exact in zip(found, exact_gradients(name, dist.Normal, raw), strict=True):
            compare(rows, exact, name)
            assert (rows[1] == 0).all()


def test_draws_within_components_alone_miss_the_weights() -> None:
    """The comparison can fail: reparametrizing within the component gives the weights no gradient."""
    raw = moderate(2)
    loc, scale, logits = (p.unsqueeze(1).expand(E, 1000, *p.shape[1:]) for p in raw)
    logits = logits.clone().requires_grad_()
    draws = Mixture(dist.Normal(loc, scale).to_event(1), logits.log_softmax(0).detach()).rsample() + 0 * logits.sum()
    (rows,) = torch.autograd.grad(FUNCTIONS["linear"](draws).sum(), logits)
    with pytest.raises(AssertionError, match="beyond 4 standard errors"):
        compare(rows, exact_gradients("linear", dist.Normal, raw)[2], "logits")


def test_gradients_of_a_divergence_equal_quadrature() -> None:
    """KL(q || N(-1, 0.5^2)): the integrand depends on the weights, too, through the density of the mixture."""
    raw = moderate(1)
    target = dist.Normal(-torch.ones(1), 0.5).to_event(1)

    def divergence(q: Mixture, z: Tensor) -> Tensor:
        return q.log_prob(z) - target.log_prob(z)

    leaves = as_leaves(*raw)
    q = Mixture(dist.Normal(leaves[0], leaves[1]).to_event(1), leaves[2].log_softmax(0))
    grid = torch.linspace(-12.0, 12.0, 4001).unsqueeze(-1)  # spectral accuracy: smooth, and nothing at the ends
    exact = torch.autograd.grad((q.log_prob(grid).exp() * divergence(q, grid)).sum() * 24 / 4000, leaves)
    leaves = as_leaves(*(p.unsqueeze(1).expand(E, 100_000, *p.shape[1:]) for p in raw))
    q = Mixture(dist.Normal(leaves[0], leaves[1]).to_event(1), leaves[2].log_softmax(0))
    for rows, value in zip(torch.autograd.grad(divergence(q, q.rsample()).sum(), leaves), exact, strict=True):
        compare(rows, value, "divergence")


# -- mixtures


@pytest.mark.parametrize("sample_shape", [(), (5,), (2, 3)])
def test_draws_and_gradients_of_components_are_those_of_fixed_weights(sample_shape: tuple[int, ...]) -> None:
    raw = parameters(2, (4,))
    found = []
    for learned in (False, True):
        loc, scale, logits = as_leaves(*raw)
        weights = logits.log_softmax(0) if learned else logits.detach().log_softmax(0)
        torch.manual_seed(1)
        z = Mixture(dist.Normal(loc, scale).to_event(1), weights).rsample(sample_shape)
        found.append((z.detach(), *torch.autograd.grad(z.sin().sum(), [loc, scale])))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_expanded_and_mapped_mixtures_follow_their_weights() -> None:
    loc, scale, logits = parameters(2, (4,))
    logits.requires_grad_()
    q = Mixture(dist.Normal(loc, scale).to_event(1), logits.log_softmax(0))
    rows = q.map_params(lambda p, constraint, event_dim: p[:, 1:3], 0)
    for z in (q.expand((5, 3, 4)).rsample((2,)), rows.rsample((7,))):
        (slope,) = torch.autograd.grad(z.sum(), logits, retain_graph=True)
        assert slope.isfinite().all() and (slope[:, 1:3] != 0).all()
    assert (slope[:, 0] == 0).all()  # not among the rows


def test_draws_without_gradients() -> None:
    loc, scale, logits = parameters(2, (4,))
    q = Mixture(dist.Normal(loc, scale).to_event(1), logits.requires_grad_().log_softmax(0))
    assert q.rsample().requires_grad and not q.sample().requires_grad
    with torch.no_grad():
        assert not q.rsample().requires_grad
    assert not Mixture(dist.Normal(loc, scale).to_event(1), logits.detach().log_softmax(0)).rsample().requires_grad


def test_other_components_keep_their_own_gradient() -> None:
    rate = (torch.rand(E, 4) + 0.5).requires_grad_()
    logits = torch.randn(E, 4).requires_grad_()
    z = Mixture(dist.Gamma(2.0, rate), logits.log_softmax(0)).rsample((50,))
    by_rate, by_logits = torch.autograd.grad(z.sum(), [rate, logits], allow_unused=True)
    assert (by_rate != 0).any() and by_logits is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("width", [0.01, 1.0])
def test_single_precision_in_fifty_dimensions_stays_finite(spread: float, width: float, family: Any) -> None:
    """Densities of whole rows underflow, and at spread 10 the conditional ones of the other components."""
    loc = (spread * torch.randn(E, 8, 50)).float().requires_grad_()
    scale = torch.full((E, 8, 50), width, dtype=torch.float32).requires_grad_()
    logits = torch.randn(E, 8).float().index_fill(1, torch.tensor([0]), -30.0).requires_grad_()
    log_weights = logits.masked_fill(torch.arange(E).unsqueeze(-1) == torch.arange(8) % 5, -torch.inf).log_softmax(0)
    z = Mixture(family(loc, scale).to_event(1), log_weights).rsample((200,))
    found = torch.autograd.grad(z.sum(), [loc, scale, logits])
    assert z.dtype == torch.float32 and z.isfinite().all() and all(g.isfinite().all() for g in found)
