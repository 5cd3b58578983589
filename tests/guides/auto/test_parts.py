"""Channels, Gaussian factors, coordinates and distributions of the guides made from stories.

Test layer: dense algebra, quadrature and stock distributions.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import ComposeTransform, SigmoidTransform, constraints

from pyro_mmvae.columns import Column
from pyro_mmvae.distributions import ColumnSupport, Mixture, map_params
from pyro_mmvae.guides.auto.coordinates import coordinates
from pyro_mmvae.guides.auto.factors import GaussianFactors, conditionals, lower_root
from pyro_mmvae.guides.auto.features import Channels, kinds_of
from pyro_mmvae.guides.auto.parts import OuterSite
from pyro_mmvae.guides.auto.shaped import Bend, Mapped, ShapedNormal

pytestmark = pytest.mark.usefixtures("float64")


class TestChannels:
    @pytest.mark.parametrize(
        ("fn", "kind"),
        [
            (dist.Normal(0.0, 1.0), "real"),
            (dist.LogNormal(0.0, 1.0), "log"),
            (dist.Poisson(1.0), "log1p"),
            (dist.Binomial(10, 0.5), "log1p"),
            (dist.Bernoulli(0.5), "sign"),
            (dist.Beta(1.0, 1.0), "logit"),
            (dist.Categorical(torch.ones(5) / 5), "classes"),
            (dist.OrderedLogistic(torch.tensor(0.0), torch.tensor([-1.0, 1.0])), "classes"),
        ],
        ids=str,
    )
    def test_kinds_follow_the_support(self, fn: Any, kind: str) -> None:
        found = kinds_of(fn.support, fn.event_shape, type(fn).__name__)
        assert [k for k, _ in found] == [kind]

    def test_joint_events(self) -> None:
        assert kinds_of(constraints.simplex, (3,)) == [("log", 0)] * 3
        assert kinds_of(constraints.one_hot, (2,)) == [("sign", 0)] * 2

    def test_columns_of_a_table(self) -> None:
        columns = [Column("a", "normal"), Column("b", "bernoulli"), Column("c", "ordinal", ("x", "y", "z"))]
        assert kinds_of(ColumnSupport(columns), (3,)) == [("real", 0), ("sign", 0), ("classes", 3)]

    def test_scale_comes_from_observed_entries(self) -> None:
        channels = Channels([("real", 0), ("sign", 0)])
        x = torch.tensor([[1.0, 1.0], [5.0, 0.0], [1e9, 1.0]])
        channels.fit(x, torch.tensor([True, True, False]))
        torch.testing.assert_close(channels(x[:2]), torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))

    def test_scales_about_right_can_be_kept(self) -> None:
        channels = Channels([("real", 0), ("real", 0)])
        x = torch.randn(100, 2) * torch.tensor([1.2, 100.0])
        channels.fit(x, torch.ones(100, dtype=torch.bool), only_far=True)
        assert channels.scale[0] == 1.0
        assert 60 < channels.scale[1] < 140

    def test_masks_of_entries_become_those_of_channels(self) -> None:
        channels = Channels([("classes", 2), ("real", 0)])
        mask = channels.spread(torch.tensor([[True, False]]))
        assert mask.tolist() == [[True, True, False]]
        assert channels.spread(torch.tensor([[True]])).tolist() == [[True, True, True]]


def precision(size: int) -> Tensor:
    a = torch.randn(7, size)
    return torch.eye(size) + a.T @ a


class TestFactors:
    def test_lower_root(self) -> None:
        p = precision(4)
        root = lower_root(p)
        torch.testing.assert_close(root @ root.T, p.inverse())
        assert torch.equal(root, root.tril())

    def test_the_chain_is_the_joint(self) -> None:
        p, natural = precision(5), torch.randn(5)
        joint = dist.MultivariateNormal(torch.linalg.solve(p, natural), precision_matrix=p)
        y = torch.randn(5)
        parts, score, before = y.split([2, 1, 2]), torch.zeros(()), []
        for own, q in zip(parts, conditionals(p, natural, [2, 1, 2]), strict=True):
            score = score + dist.MultivariateNormal(q.loc(before), scale_tril=q.root).log_prob(own)
            before.append(own)
        torch.testing.assert_close(score, joint.log_prob(y))

    def test_the_diagonal_chain(self) -> None:
        found = conditionals(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 2.0]), [1, 1], diagonal=True)
        assert [float(q.loc([])) for q in found] == [1.0, 0.5]
        assert float(found[1].root) == 0.5

    def test_regression_finds_the_posterior_of_a_linear_story(self) -> None:
        weight, scale = torch.randn(6, 2), 0.5
        context = torch.randn(4000, 1)
        y = torch.randn(4000, 2)
        f = y @ weight.T + 3 * context + 1.0 + scale * torch.randn(4000, 6)
        factors = GaussianFactors(torch.ones(6, 2, dtype=torch.bool), 1)
        factors.regress(y, f, context)
        mask = torch.tensor([True, True, False, True, False, True])
        own = torch.where(mask, f[:1], 0.0)
        p, natural = factors(own, mask.unsqueeze(0), context[:1])
        w = weight[mask]
        exact = torch.eye(2) + w.T @ w / scale**2
        mean = torch.linalg.solve(exact, w.T @ (f[0, mask] - 3 * context[0] - 1.0) / scale**2)
        # 4,000 draws: relative errors of about 1 / sqrt(4000) in weights, 1 / sqrt(8000) in noise
        torch.testing.assert_close(p[0], exact, rtol=0.1, atol=0.3)
        torch.testing.assert_close(torch.linalg.solve(p[0], natural[0]), mean, rtol=0, atol=0.06)

    def test_channels_do_not_speak_of_foreign_latents(self) -> None:
        loads = torch.tensor([[True, False], [False, True]])
        factors = GaussianFactors(loads, 0)
        f = torch.randn(3, 2)
        p, natural = factors(f, torch.tensor([True, False]), None)
        assert (p[:, 0, 1] == 0).all()
        assert (natural[:, 1] == 0).all()
        assert (p[:, 1, 1] == 1).all()


def priors() -> list[Any]:
    return [
        dist.Normal(2.0, 3.0),
        dist.LogNormal(1.0, 0.5),
        dist.Gamma(3.0, 2.0),
        dist.Exponential(2.0),
        dist.InverseGamma(3.0, 2.0),
        dist.Beta(2.0, 5.0),
        dist.Dirichlet(torch.tensor([2.0, 1.0, 4.0])),
        dist.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
        dist.Gamma(torch.tensor([1.0, 4.0]), 1.0).to_event(1),
    ]


@pytest.mark.parametrize("i", range(9))
def test_coordinates_standardize_the_prior(i: int) -> None:
    prior = priors()[i]
    size = 1 if not prior.event_shape else prior.event_shape[0] - (type(prior) is dist.Dirichlet)
    wrong = torch.full((size,), 50.0), torch.full((size,), 9.0)  # not taken where moments are known
    y = coordinates(prior, wrong).inverse(prior.sample((40_000,)))
    assert y.shape == (40_000, size)
    assert y.mean(0).abs().max() < 5 / 40_000**0.5
    torch.testing.assert_close(y.var(0), torch.ones(size), rtol=0.1, atol=0)  # up to 13 / sqrt(n) for skew Betas


def test_unknown_priors_take_their_draws() -> None:
    c = coordinates(dist.HalfCauchy(1.0), (torch.tensor([0.5]), torch.tensor([2.0])))
    torch.testing.assert_close(c.inverse(torch.tensor(2.5).exp()), torch.tensor([1.0]))


def shaped(bends: int, *, batch: tuple[int, ...] = (3,), base: Any = None) -> ShapedNormal:
    lower = 0.3 * torch.randn(*batch, 2, 2).tril(-1) + (0.5 + torch.rand(*batch, 2)).diag_embed()
    made = [Bend(0.4 * torch.randn(*batch, 2), (0.3 * torch.randn(*batch, 2)).exp()) for _ in range(bends)]
    inner = [lower.clone() for _ in range(bends - 1)]
    return ShapedNormal(torch.randn(*batch, 2), lower, bends=made, inner=inner, base=base)


class TestShapedNormal:
    def test_without_bends_it_is_normal(self) -> None:
        q = shaped(0)
        other = dist.MultivariateNormal(q.loc, scale_tril=q.root)
        u = torch.randn(5, 3, 2)
        torch.testing.assert_close(q.log_prob(u), other.log_prob(u))
        torch.testing.assert_close(q.variance, other.variance)

    @pytest.mark.parametrize("bends", [0, 1, 2])
    def test_the_density_is_that_of_the_draws(self, bends: int) -> None:
        q = shaped(bends)
        u = q.rsample()
        torch.testing.assert_close(q.log_prob(u), q.log_prob(u.clone()))

    @pytest.mark.parametrize("bends", [1, 2])
    def test_volumes_are_those_of_the_map(self, bends: int) -> None:
        q = shaped(bends, batch=())
        e = torch.randn(2)
        matrix = jacobian(lambda x: q._forward(x)[0], e)
        torch.testing.assert_close(q._forward(e)[1], torch.linalg.slogdet(matrix)[1])

    def test_moments_by_quadrature(self) -> None:
        q = shaped(1)
        u = q.sample((200_000,))
        error = (u.var(0) / 200_000).sqrt()
        assert ((q.mean - u.mean(0)).abs() < 5 * error).all()
        torch.testing.assert_close(q.variance, u.var(0), rtol=0.05, atol=0)  # tails: errors of a few per cent

    def test_moments_of_mixtures(self) -> None:
        components = dist.Normal(torch.randn(4, 3, 2), torch.rand(4, 3, 2) + 0.1).to_event(1)
        q = shaped(0, base=Mixture(components, torch.randn(4, 3).log_softmax(0)))
        u = q.sample((200_000,))
        torch.testing.assert_close(q.mean, u.mean(0), rtol=0, atol=0.02)  # 5 standard errors of about 2 / sqrt(n)
        torch.testing.assert_close(q.variance, u.var(0), rtol=0.03, atol=0)

    @pytest.mark.parametrize("bends", [0, 2])
    def test_moments_on_a_support(self, bends: int) -> None:
        q = Mapped(shaped(bends), ComposeTransform([SigmoidTransform()]))
        z = q.sample((100_000,))
        torch.testing.assert_close(q.mean, z.mean(0), rtol=0, atol=0.005)  # 1 / sqrt(n), and 1,024 points
        torch.testing.assert_close(q.variance, z.var(0), rtol=0.05, atol=0.001)
        torch.testing.assert_close(q.expand((4, 3)).mean[2], q.mean)
        part = map_params(q, lambda p, constraint, k: p[1:])
        torch.testing.assert_close(part.mean, q.mean[1:])

    def test_expanded_and_mapped(self) -> None:
        q = shaped(1)
        u = torch.randn(4, 3, 2)
        torch.testing.assert_close(q.expand((4, 3)).log_prob(u), q.log_prob(u))
        part = map_params(q, lambda p, constraint, k: p[1:])
        torch.testing.assert_close(part.log_prob(u[:, 1:]), q.log_prob(u)[:, 1:])

    def test_scalars_and_matrices(self) -> None:
        one = ShapedNormal(torch.zeros(3, 1), torch.ones(3, 1, 1), shape=torch.Size())
        assert one.rsample().shape == (3,)
        six = ShapedNormal(torch.zeros(3, 6), torch.ones(3, 6), shape=torch.Size([2, 3]), diagonal=True)
        assert six.log_prob(six.rsample((5,))).shape == (5, 3)
        assert six.mean.shape == (3, 2, 3)

    def test_moments_of_long_flows_are_refused(self) -> None:
        with pytest.raises(NotImplementedError, match="sample"):
            _ = shaped(2).mean


class TestOuterSites:
    def test_plates_become_part_of_the_event(self) -> None:
        site = OuterSite(1, (-1,), constraints.real_vector)
        value = torch.arange(12.0).reshape(4, 3)  # plate of 4, event of 3
        assert site.flat(value).shape == (1, 12)
        lead = value.expand(7, 1, 4, 3)
        torch.testing.assert_close(site.flat(lead)[2, 0, 0], site.flat(value)[0])

    def test_scalars_have_a_place_for_rows(self) -> None:
        site = OuterSite(0, (), constraints.positive)
        torch.testing.assert_close(site.flat(torch.tensor(1.0)), torch.zeros(1, 1))
        assert site.flat(torch.ones(7, 1, 1)).shape == (7, 1, 1, 1)
