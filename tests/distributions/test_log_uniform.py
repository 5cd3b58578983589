"""The improper prior 1/|z|: its divergence against quadrature, no draws, its place in choices and products."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mmvae.distributions import LogUniform, SharedScaleNormal, Where, map_params, stand_ins
from pyro_mmvae.fusion import Experts, Mixture, Product
from pyro_mmvae.objectives.kl import known_kl

pytestmark = pytest.mark.usefixtures("float64")

ROWS = torch.tensor([True, False, True])
OFFSET = 0.5 * (math.log(4 * math.pi) + 1 + np.euler_gamma)  # nats per dimension


def prior(dim: int = 2) -> dist.TorchDistribution:
    return LogUniform(torch.zeros(dim)).to_event(1)


def expected_log_abs(loc: float, scale: float) -> float:
    """E log|z| of a Gaussian: the singularity at 0 is a limit of both pieces, and integrable there."""
    edge = torch.logspace(-14, math.log10(abs(loc) + 12 * scale), 200_001)
    z = torch.cat([-edge.flip(0), edge])
    return float(torch.trapezoid(z.abs().log() * dist.Normal(loc, scale).log_prob(z).exp(), z))


@pytest.mark.parametrize("log_alpha", [-6.0, -3.5, -1.0, 0.0, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("loc", [2.0, -0.01])
def test_divergence_is_the_integral_to_the_accuracy_of_the_approximation(log_alpha: float, loc: float) -> None:
    q = dist.Normal(loc, abs(loc) * math.exp(log_alpha / 2))
    integral = float(-q.entropy()) + expected_log_abs(loc, float(q.scale))
    # the approximation was fitted: it is off by 0.0094 nats at most, at log alpha about -3.5
    assert abs(float(kl_divergence(q, LogUniform(torch.tensor(0.0)))) - (integral + OFFSET)) < 0.01


def test_divergence_is_the_published_approximation() -> None:
    log_alpha = torch.linspace(-7.5, 7.5, 31)
    sigmoid = 1 / (1 + np.exp(-(1.8732 + 1.48695 * log_alpha.numpy())))
    negative = 0.63576 * sigmoid - 0.5 * np.log1p(np.exp(-log_alpha.numpy())) - 0.63576
    found = kl_divergence(dist.Normal(-3.0, 3 * (log_alpha / 2).exp()), LogUniform(torch.zeros(31)))
    np.testing.assert_allclose(
        found.numpy(), -negative, atol=1e-7
    )  # the floor 1e-8 under |loc| moves log alpha by 7e-9


def test_divergence_depends_on_the_ratio_alone_and_falls() -> None:
    p, alpha = LogUniform(torch.zeros(41)), torch.linspace(-7.5, 7.5, 41).exp()
    values = [kl_divergence(dist.Normal(loc, abs(loc) * alpha.sqrt()), p) for loc in (1.0, -3.0, 0.02)]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2], rtol=0, atol=1e-5)  # the floor 1e-8 under |loc|, relative 5e-7
    assert (values[0].diff() < 0).all() and 0 < values[0][-1] < 1e-3


def test_divergence_is_clamped() -> None:
    log_alpha = torch.tensor([-20.0, -8.5, -7.5, 7.5, 8.5, 20.0], requires_grad=True)
    value = kl_divergence(dist.Normal(1.0, (log_alpha / 2).exp()), LogUniform(torch.zeros(6)))
    (slope,) = torch.autograd.grad(value.sum(), log_alpha)
    assert value[0] == value[1] and value[4] == value[5]
    assert (slope == 0).tolist() == [True, True, False, False, True, True]


@pytest.mark.parametrize("family", [dist.Normal, SharedScaleNormal, torch.distributions.Normal])
def test_divergence_is_known_for_every_gaussian(family: type) -> None:
    inner = family(torch.randn(5, 2), torch.full((2,), 0.5))
    known = known_kl(torch.distributions.Independent(inner, 1), prior())
    assert known is not None and known.shape == (5,)
    torch.testing.assert_close(known, kl_divergence(inner, LogUniform(torch.zeros(2))).sum(-1))


def test_divergence_broadcasts_and_vanishes_from_itself() -> None:
    wide = LogUniform(torch.zeros(5, 1, 2))
    assert kl_divergence(dist.Normal(torch.ones(3, 2), 1.0), wide).shape == (5, 3, 2)
    zero = kl_divergence(prior().expand((3,)), prior())
    assert torch.equal(zero, torch.zeros(3))


def test_density_up_to_a_constant() -> None:
    z = torch.tensor([[0.5, -2.0], [1.0, 4.0]])
    torch.testing.assert_close(prior().log_prob(z), -(z.abs().log().sum(-1)))
    assert prior().expand((4, 2)).log_prob(z).shape == (4, 2)
    at_zero = LogUniform(torch.zeros(1)).log_prob(torch.zeros(1))
    assert float(at_zero) == -math.log(torch.finfo(torch.float64).tiny)
    with pytest.raises(ValueError, match="within the support"):
        LogUniform(torch.zeros(1)).log_prob(torch.tensor([torch.nan]))


@pytest.mark.parametrize("draw", ["sample", "rsample", "__call__"])
def test_there_are_no_draws(draw: str) -> None:
    with pytest.raises(
        NotImplementedError, match=r"improper.*\n1\. encode some modality.*\n2\. generate\(n, prior=.*\n3\. "
    ):
        getattr(prior(), draw)()


def test_zeros_stand_in_for_draws_inside_the_context_only() -> None:
    with pytest.raises(KeyError), stand_ins():
        assert torch.equal(pyro.sample("z", prior().expand((3,))), torch.zeros(3, 2))
        assert prior().sample((4,)).shape == (4, 2)
        raise KeyError
    with pytest.raises(NotImplementedError):
        prior().sample()


def test_shape_type_and_parameters_follow_the_tensor() -> None:
    p = LogUniform(torch.full((3, 2), 7.0, dtype=torch.float32)).to_event(1)
    assert p.batch_shape == (3,) and p.event_shape == (2,) and p.support.event_dim == 1
    assert torch.equal(p.mean, torch.zeros(3, 2, dtype=torch.float32)) and p.mean.dtype == torch.float32
    picked = map_params(p, lambda tensor, constraint, k: tensor[:1])
    assert picked.batch_shape == (1,)


def choice(loc: Tensor) -> Where:
    return Where(ROWS, dist.Normal(loc, 0.5).to_event(1), prior())


def test_rows_without_a_source_are_switched_off() -> None:
    loc = torch.ones(3, 2, requires_grad=True)
    q = choice(loc)
    for z in (q.rsample((5,)), q.sample((5,))):
        assert (z[:, 1] == 0).all() and (z[:, [0, 2]] != 0).all()
    kl = kl_divergence(q, prior())
    assert kl[1] == 0 and (kl[[0, 2]] > 0).all()
    z = q.rsample()
    difference = q.log_prob(z) - prior().log_prob(z)
    assert difference[1] == 0
    (slope,) = torch.autograd.grad((difference + kl).sum(), loc)
    assert slope.isfinite().all() and (slope[1] == 0).all()


def test_a_choice_whose_first_branch_is_improper_cannot_be_drawn() -> None:
    q = Where(ROWS, prior(), dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for draw in (q.sample, q.rsample):
        with pytest.raises(NotImplementedError):
            draw()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", [Product(), Product(prior_expert="never"), Mixture()], ids=["always", "never", "moe"])
def test_fusion_beside_it_leaves_the_experts_alone(rule: torch.nn.Module, dtype: torch.dtype) -> None:
    loc = torch.tensor([[1.0, -2.0]] * 3, dtype=dtype, requires_grad=True)
    scale = torch.tensor([0.5, 2.0], dtype=dtype)
    experts = Experts(("a", "b"), tuple(dist.Normal(loc, scale).to_event(1) for _ in range(2)))
    mask = torch.stack([ROWS, torch.tensor([False, False, True])])
    p = LogUniform(torch.zeros(2, dtype=dtype)).to_event(1)
    q = rule(p, experts, mask)
    torch.testing.assert_close(q.mean[0], loc[0].detach())  # one expert is itself
    torch.testing.assert_close(q.variance[0], scale.square())
    assert (q.mean[1] == 0).all() and (q.rsample()[1] == 0).all()
    value = q.log_prob(q.rsample()) if isinstance(rule, Mixture) else kl_divergence(q, p)
    (slope,) = torch.autograd.grad(value[ROWS].sum() + 0 * value.sum(), loc)
    assert slope.isfinite().all()
