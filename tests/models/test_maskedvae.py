"""MaskedVAE beyond the laws of all methods: every subset of every mask, exact guides, gradients, mixture heads."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.objectives import Bernoulli
from pyro_mmvae.objectives.subsets import Context
from tests.conformance.evaluate import by_draws, by_sigma_points, gradients, select, select_noise, value
from tests.conformance.pools import by_product, products
from tests.conformance.problems import Problem, make_problem
from tests.oracles.linear_gaussian import Gaussian, LinearGaussian
from tests.oracles.masked_bound import masked_bound, subsets
from tests.oracles.statistics import mean_and_se, within

pytestmark = pytest.mark.usefixtures("float64")

PER_FEATURE = pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
MODALITIES = pytest.mark.parametrize("num_modalities", [1, 2, 3])
GRADIENT = pytest.mark.parametrize("gradient", ["path", "stl"])
EXACT = {"rtol": 1e-10, "atol": 1e-9}  # closed forms in float64, sums of dozens of terms of order ten
WEIGHTS = {"beta": 1.7, "rescale": {"a": 0.7, "b": 1.4, "c": 2.2}}


def always(monkeypatch: pytest.MonkeyPatch, subset: tuple[str, ...]) -> None:
    """The random subset becomes a given one."""

    def rows(self: Bernoulli, context: Context) -> Tensor:  # shape: (1, B, M)
        chosen = torch.tensor([m in subset for m in context.names])
        return chosen.expand(1, *context.observed.shape)

    monkeypatch.setattr(Bernoulli, "__call__", rows)


def known_weights(p: Problem) -> dict[str, object]:
    """Options that are not 0 or 1, for the problem's modalities."""
    return {"beta": 1.7, "rescale": {m: WEIGHTS["rescale"][m] for m in p.modalities}}


def by_hand(p: Problem, **options: object) -> mm.MaskedVAE:
    """The product of the problem's wrong experts and the prior."""
    return by_product(p.encoders(), p.decoders(), latent_dim=p.latent_dim, prior=p.prior(), **options).double()


@GRADIENT
@PER_FEATURE
@MODALITIES
def test_value_for_every_subset_of_every_mask(
    num_modalities: int, per_feature: bool, gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = make_problem(num_modalities, per_feature=per_feature)
    vae = by_hand(p, gradient=gradient, **known_weights(p))
    for s in subsets(p.modalities):
        always(monkeypatch, s)
        wanted = masked_bound(p.model, products(p), p.data, p.obs_mask, s, **known_weights(p))
        torch.testing.assert_close(by_sigma_points(vae, p).detach(), wanted, **EXACT)


class ExactPool(nn.Module):
    """p(z | x_S) of a linear-Gaussian model with one latent dimension, features missing or not."""

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.model, self.modalities = model, model.modalities

    def features(self, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> Tensor:  # shape: (B, M, 2)
        out = []
        for m, weight in self.model.weights.items():
            seen = obs_mask[m].reshape(len(data[m]), -1)
            slope, noise = weight[:, 0], self.model.noise[m]
            parts = (data[m] - self.model.bias[m]) * slope / noise**2, (slope / noise) ** 2
            out.append(torch.stack([torch.where(seen, part, 0.0).sum(-1) for part in parts], -1))
        return torch.stack(out, -2)

    def head(self, features: Tensor, mask: Tensor) -> dist.TorchDistribution:  # shapes: (B, M, 2), (*lead, B, M)
        weighted, precision = torch.where(mask.unsqueeze(-1), features, 0.0).sum(-2).chunk(2, -1)
        loc, scale = self.model.prior
        precision = precision + scale**-2
        return dist.Normal((weighted + loc / scale**2) / precision, precision.rsqrt()).to_event(1)


@GRADIENT
@PER_FEATURE
@MODALITIES
def test_the_exact_guide_makes_it_the_evidence_for_every_draw(
    num_modalities: int, per_feature: bool, gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = make_problem(num_modalities, 1, per_feature=per_feature)
    options = {"latent_dim": 1, "prior": p.prior(), "gradient": gradient}
    vae = mm.MaskedVAE(None, p.decoders(), pooling=ExactPool(p.model), **options).double()
    evidence = p.model.log_evidence(p.data, p.obs_mask)
    for s in subsets(p.modalities):
        always(monkeypatch, s)
        torch.testing.assert_close(by_sigma_points(vae, p).detach(), evidence, **EXACT)
    monkeypatch.undo()
    torch.testing.assert_close(by_sigma_points(vae, p).detach(), evidence, **EXACT)  # whatever S is drawn


@PER_FEATURE
def test_detached_densities_leave_the_gradient_as_it_is(per_feature: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The integrand of both gradients is quadratic in the noise: sigma points give their expectations exactly."""
    p = make_problem(3, per_feature=per_feature)
    vae = by_hand(p, **known_weights(p))
    for s in subsets(p.modalities):
        always(monkeypatch, s)
        found = []
        for gradient in ("path", "stl"):
            objective = mm.ELBO(vae.objective.terms, gradient=gradient)
            found.append(gradients(vae, by_sigma_points(vae, p, objective).sum()))
        path, stl = found
        for name, g in path.items():
            torch.testing.assert_close(stl[name], g, rtol=1e-9, atol=1e-8)
        assert all(bool((g != 0).any()) for g in path.values())


def test_both_terms_share_the_subset_and_every_modality_is_scored_once() -> None:
    p = make_problem(3)
    vae = by_hand(p)
    rows = {m: torch.ones(500, dtype=torch.bool) for m in p.modalities} | {"b": torch.arange(500) % 2 == 0}
    programs = vae.objective.programs(
        vae.model, vae.guide, {m: torch.zeros(500, len(p.model.bias[m])) for m in rows}, rows
    )
    table = vae.objective.table(programs)
    observed = torch.stack([rows[m] for m in p.modalities], -1)
    source, whole = table.source
    assert torch.equal(whole, observed)
    assert torch.equal(table.target[0], source)
    assert torch.equal(table.target[1], observed & ~source)
    assert torch.equal(table.prior[0], source)
    assert len(source.unique(dim=0)) == 8  # drawn for each row
    again = vae.objective.table(programs)
    assert not torch.equal(again.source, table.source)


@pytest.mark.parametrize("observed", [1, 2, 3])
def test_the_size_of_the_subset_is_uniform_and_its_members_are_exchangeable(observed: int) -> None:
    rows = torch.zeros(24000, 3, dtype=torch.bool)
    rows[:, :observed] = True
    drawn = Bernoulli()(Context(rows, ("a", "b", "c")))[0] & rows
    for s in range(2**observed):
        members = torch.tensor([bool(s >> i & 1) for i in range(3)])
        share = 1 / ((observed + 1) * torch.tensor([1, 3, 3, 1] if observed == 3 else [1, observed, 1])[members.sum()])
        hits = (drawn == members).all(-1).double()
        within(*mean_and_se(hits), share.double(), label=str(members.tolist()))


@GRADIENT
def test_a_batch_is_its_rows_and_order_is_free_for_a_part_of_it(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = make_problem(3)
    always(monkeypatch, ("a", "c"))
    vae, eps = by_hand(p, gradient=gradient), p.noise()
    whole = value(vae, p.data, p.obs_mask, eps)
    for n in range(len(p.sets)):
        at = slice(n, n + 1)
        alone = value(vae, select(p.data, at), select(p.obs_mask, at), select_noise(eps, at))
        torch.testing.assert_close(alone, whole[at], **EXACT)
    turned = by_product(
        dict(reversed(p.encoders().items())),
        dict(reversed(p.decoders().items())),
        latent_dim=2,
        prior=p.prior(),
        gradient=gradient,
    ).double()
    torch.testing.assert_close(value(turned, p.data, p.obs_mask, eps), whole, **EXACT)


@PER_FEATURE
@pytest.mark.parametrize("work", [0, 10**12], ids=["gathered", "all rows"])
def test_lazy_likelihoods_are_dense_ones(work: int, per_feature: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    p = make_problem(3, per_feature=per_feature)
    monkeypatch.setattr(importlib.import_module("pyro_mmvae.handlers.observe"), "GATHER_WORK", work)
    found = []
    for lazy in (False, True):
        prior, decoders = p.prior(), p.decoders(lazy=lazy, cost=10)
        vae = by_product(p.encoders(), decoders, latent_dim=2, prior=prior).double()
        each = value(vae, p.data, p.obs_mask, p.noise())  # the same random subsets
        found.append((each.detach(), gradients(vae, each.sum())))
    (dense, first), (gathered, second) = found
    torch.testing.assert_close(gathered, dense, **EXACT)
    for name, g in first.items():
        torch.testing.assert_close(second[name], g, rtol=1e-9, atol=1e-9)


def mixture_vae(p: Problem, gradient: str) -> mm.MaskedVAE:
    """Two Gaussians with weights of their own, a small network."""
    shapes = {m: len(b) for m, b in p.model.bias.items()}
    pooling = mm.nn.SumPoolingEncoder(shapes, 1, features=(4,), hidden=(4,), num_components=2)
    return mm.MaskedVAE(
        None, p.decoders(), latent_dim=1, pooling=pooling, prior=p.prior(), gradient=gradient, beta=1.3
    ).double()


def by_grid(vae: mm.MaskedVAE, p: Problem, names: tuple[str, ...], s: tuple[str, ...], n: int) -> Tensor:
    """The masked bound of one row by sums over a grid, which are exact to rounding for such smooth densities."""
    encoder = vae.guide.fusion["z"].encoder
    z = torch.linspace(-12, 12, 4801).unsqueeze(-1)
    step = z[1, 0] - z[0, 0]
    data = {m: x[n : n + 1] for m, x in p.filled.items()}

    def log_q(members: tuple[str, ...]) -> Tensor:
        if not members:
            return vae.model.story.program.prior().log_prob(z)
        q = encoder.head(encoder.features(data), torch.tensor([[m in members for m in encoder.modalities]]))
        parts = q.components.base_dist
        scored = dist.Normal(parts.loc[:, 0, 0], parts.scale[:, 0, 0]).log_prob(z)  # (grid, 2)
        return (scored + q.log_weights[:, 0]).logsumexp(-1)

    decoders = vae.model.story.program.decoders
    scored = {m: decoders[m](z).log_prob(data[m]) for m in names}
    inside = tuple(m for m in names if m in s)
    total = torch.zeros(())
    for target, own, r in ((inside, inside, ()), ([m for m in names if m not in s], names, inside)):
        own_density, prior = log_q(tuple(own)), log_q(tuple(r))
        integrand = sum([scored[m] for m in target], 1.3 * (prior - own_density))
        total = total + (own_density.exp() * integrand).sum() * step
    return total


@GRADIENT
def test_mixture_heads_equal_sums_over_a_grid_in_value_and_gradient(
    gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = make_problem(2, 1)
    vae = mixture_vae(p, gradient)
    row, copies, s = 3, 4000, ("a",)
    always(monkeypatch, s)
    at = slice(row, row + 1)
    data, mask = select(p.data, at), select(p.obs_mask, at)
    draws = torch.cat([by_many(vae, data, mask, copies, seed) for seed in range(3)])
    wanted = by_grid(vae, p, p.sets[row], s, row)
    within(*mean_and_se(draws.detach()), wanted.detach(), resolution=0.2)
    exact = gradients(vae, wanted)
    parts = [gradients(vae, by_many(vae, data, mask, 300, seed).mean()) for seed in range(40)]
    for name, g in exact.items():
        estimates = torch.stack([part[name] for part in parts])
        spread = estimates.std(0) / len(parts) ** 0.5
        assert ((estimates.mean(0) - g).abs() <= 5 * spread + 1e-9).all(), name


def by_many(
    vae: mm.MaskedVAE, data: Mapping[str, Tensor], mask: Mapping[str, Tensor], copies: int, seed: int
) -> Tensor:
    """Independent estimates for one row."""
    many = {m: x.repeat(copies, 1) for m, x in data.items()}
    return value(vae, many, {m: a.repeat(copies) for m, a in mask.items()}, seed=seed)


@pytest.mark.parametrize("pooling", ["sum", "attention"])
@pytest.mark.parametrize("own", [False, True], ids=["default features", "encoders"])
def test_the_library_s_pooling_trains_every_parameter(pooling: str, own: bool) -> None:
    p = make_problem(2)
    vae = mm.MaskedVAE(p.encoders() if own else None, p.decoders(), latent_dim=2, pooling=pooling, num_components=2)
    loss = vae.double().objective.differentiable_loss(vae.model, vae.guide, p.data, p.obs_mask)
    found = gradients(vae, loss)
    assert loss.isfinite()
    assert all(g.isfinite().all() and bool((g != 0).any()) for g in found.values())
    q: Gaussian = vae.posterior(p.data, p.obs_mask)
    assert torch.equal(q.mean[0], p.model.prior[0] * 0)  # nothing observed: the story's prior, N(0, 1)
    assert by_draws(vae, p, 2).shape == (2, len(p.sets))
