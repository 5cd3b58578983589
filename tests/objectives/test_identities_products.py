"""The product family: identities of the specification, values and gradients, against loops over rows and terms."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Normal, constraints

import pyro_mmvae as mm
from tests.conformance.cases import CASES, RESCALE, Case
from tests.conformance.evaluate import gradients, value
from tests.conformance.problems import make_problem
from tests.objectives.naive import EXACT, Networks, Row, kl, log_integral, pool

pytestmark = pytest.mark.usefixtures("float64")

PRIVATE = pytest.mark.parametrize("private", [False, True], ids=["shared", "private"])
FAMILY = ("MVAE several", "MVAE mean", "GPoE", "DMVAE", "CRMVAE", "MMJSD", "DVCCA")
SINGLE_POSTERIOR = [c for c in CASES if c.name.startswith(FAMILY) and not c.is_mixture]


def networks(num_modalities: int = 3, **options: Any) -> Networks:
    return Networks(make_problem(num_modalities, **options))


# The divergences to the prior and to the experts are one divergence to their geometric mean.


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_mvtcae_is_a_divergence_to_a_geometric_mean(alpha: float) -> None:
    nets = networks()

    def formula(row: Row) -> Tensor:
        size, q = len(row.names), row.product(row.names)
        factors = [(1 - alpha, row.prior), *((alpha / size, row.expert(m)) for m in row.names)]
        divergence = kl(q, pool(factors)) - log_integral(factors)
        return (size - alpha) / size * row.score(q, rescale=RESCALE) - 1.7 * divergence

    nets.agree(nets.vae(mm.MVTCAE, alpha=alpha, beta=1.7, rescale=RESCALE), formula)


def test_crmvae_is_a_divergence_to_a_geometric_mean() -> None:
    nets = networks()

    def formula(row: Row) -> Tensor:
        size, q = len(row.names) + 1, row.product(row.names)
        factors = [(1 / size, r) for r in (row.prior, *map(row.expert, row.names))]
        score = row.score(q, rescale=RESCALE) + sum(row.score(row.expert(m), (m,), RESCALE) for m in row.names)
        return score / (2 * size) - 1.7 * (kl(q, pool(factors)) - log_integral(factors))

    nets.agree(nets.vae(mm.CRMVAE, beta=1.7, rescale=RESCALE), formula)


# DMVAE: how often each divergence is counted.


def dmvae_rows(row: Row) -> list[Normal]:
    """q of the joint row, then of the unimodal ones."""
    several = [(1.0, row.prior)] if len(row.names) > 1 else []
    joint = pool([*several, *((1.0, row.expert(m)) for m in row.names)])
    return [joint, *map(row.expert, row.names)]


@PRIVATE
@pytest.mark.parametrize("counting", ["paper", "multivae"])
def test_dmvae_counts_divergences_as_its_formula(counting: str, private: bool) -> None:
    nets = networks(private=private)

    def formula(row: Row) -> Tensor | float:
        shared = len(row.names) if counting == "paper" else 1
        total: Tensor | float = 0.0
        for q in dmvae_rows(row):
            total = total + row.score(q, rescale=RESCALE) - 1.7 * (shared * kl(q, row.prior) + row.private_kl(0.6))
        return total

    options = {"beta_private": 0.6} if private else {}
    nets.agree(nets.vae(mm.DMVAE, counting=counting, beta=1.7, rescale=RESCALE, **options), formula)


def test_dmvae_of_multivae_is_a_sum_of_evidence_lower_bounds() -> None:
    """Each row alone is the bound of a guide that sees that row; the paper's form lies below by further divergences."""
    nets = networks(private=True)
    data, mask = nets.p.data, nets.p.obs_mask
    sums, paper = (nets.vae(mm.DMVAE, counting=c) for c in ("multivae", "paper"))
    found, below = (value(v, data, mask, nets.eps) for v in (sums, paper))
    rows = [mm.Term(), mm.Term(mm.objectives.Each(), mm.objectives.Observed())]
    single = value(sums, data, mask, nets.eps, objective=mm.ELBO(mm.Terms(rows)))
    torch.testing.assert_close(found, single, **EXACT)
    further = [(len(r.names) - 1) * sum(kl(q, r.prior) for q in dmvae_rows(r)) if r.names else 0.0 for r in nets.rows()]
    torch.testing.assert_close(found - below, torch.stack([torch.as_tensor(f) for f in further]), **EXACT)


@PRIVATE
def test_dmvae_without_its_joint_reconstruction(private: bool) -> None:
    nets = networks(private=private)

    def formula(row: Row) -> Tensor | float:
        joint, *alone = dmvae_rows(row)
        total = -len(row.names) * kl(joint, row.prior) - row.private_kl()
        for q in alone:
            total = total + row.score(q) - len(row.names) * kl(q, row.prior) - row.private_kl()
        return total / (len(row.names) + 1)

    nets.agree(nets.vae(mm.DMVAE, reconstruct_joint=False, normalize_rows=True), formula)


# mmJSD.


@PRIVATE
def test_mmjsd_is_its_formula(private: bool) -> None:
    nets, weights = networks(private=private), (0.4, 1.3, 0.6, 0.9)

    def formula(row: Row) -> Tensor:
        own = dict(zip(row.networks.p.modalities, weights[1:], strict=True))
        total = weights[0] + sum(own[m] for m in row.names)
        factors = [(weights[0] / total, row.prior), *((own[m] / total, row.expert(m)) for m in row.names)]
        divergence = sum(pi * kl(q, pool(factors)) for pi, q in factors)
        score = sum(row.score(row.expert(m), rescale=RESCALE) for m in row.names) / len(row.names)
        return score - 1.7 * (divergence + row.private_kl(0.6))

    options = {"beta_private": 0.6} if private else {}
    nets.agree(nets.vae(mm.MMJSD, weights=weights, beta=1.7, rescale=RESCALE, **options), formula)


class Tilt(dist.TorchDistribution):
    """The likelihood exp(x z - x^2 / 2): under p(z) = N(0, 1) the posterior is N(x, 1), and log p(x) = 0."""

    support = constraints.independent(constraints.real, 1)
    arg_constraints: dict[str, Any] = {}

    def __init__(self, z: Tensor) -> None:
        self.z = z
        super().__init__(z.shape[:-1], z.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Tilt:
        return Tilt(self.z.expand(*batch_shape, -1))

    def log_prob(self, x: Tensor) -> Tensor:
        return (x * self.z - x**2 / 2).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.zeros(*sample_shape, *self.z.shape)


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def test_mmjsd_exceeds_the_evidence() -> None:
    """One modality, the exact posterior N(d, 1), equal weights: JS = d^2 / 8 where KL = d^2 / 2; no bound."""
    unit = {"x": Lambda(lambda x: dist.Normal(x, 1.0).to_event(1))}
    d = torch.tensor([[-1.0], [0.0], [0.7], [2.0]])
    points = {"z": torch.tensor([1.0, -1.0])[:, None, None, None]}  # the objective is linear in z
    for method, gap in ((mm.GPoE, 0.0), (mm.MMJSD, 3 / 8)):
        vae = method(unit, {"x": Lambda(Tilt)}, latent_dim=1)
        vae.objective.num_particles = 2
        torch.testing.assert_close(value(vae, {"x": d}, None, points), gap * d.squeeze(-1) ** 2, **EXACT)


def test_mmjsd_weights_keep_the_precision_of_the_parameters() -> None:
    torch.set_default_dtype(torch.float32)
    nets = networks(2)
    for weights in (None, (0.1, 0.2, 0.7)):
        single = nets.vae(mm.MMJSD, weights=weights)
        found = value(single, nets.p.data, nets.p.obs_mask, nets.eps)
        torch.set_default_dtype(torch.float64)
        double = nets.vae(mm.MMJSD, weights=weights)
        wanted = value(double, nets.p.data, nets.p.obs_mask, nets.eps)
        torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, float("nan"), 1.0)])
def test_mmjsd_refuses_weights_that_leave_f_undefined(weights: tuple[float, ...]) -> None:
    """M + 1 numbers, none below zero, the prior's above: else some set of modalities has no weight at all."""
    with pytest.raises(ValueError, match="weights"):
        networks(2).vae(mm.MMJSD, weights=weights)


@pytest.mark.param_store
@pytest.mark.parametrize("posterior", ["geometric", "product"])
def test_stock_pyro_trains_mmjsd_s_posterior_of_subsets(posterior: str) -> None:
    nets = networks()
    vae = nets.vae(mm.MMJSD, subset_posterior=posterior)

    def formula(row: Row) -> Tensor:
        equal = 1 / (len(row.names) + 1)
        factors = [(equal, r) for r in (row.prior, *map(row.expert, row.names))]
        q = pool(factors) if posterior == "geometric" else row.product(row.names)
        z = q.loc + q.scale * nets.eps["z"][row.n]
        return row.score(q) + (row.prior.log_prob(z) - q.log_prob(z)).sum()

    with mm.handlers.noise(nets.eps):
        loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, nets.p.data, nets.p.obs_mask)
    wanted = sum(formula(row) for row in nets.rows() if row.names)
    torch.testing.assert_close(-loss, wanted, **EXACT)
    one, other = gradients(vae, -loss), gradients(vae, wanted)  # type: ignore[arg-type]
    for name, g in one.items():
        torch.testing.assert_close(g, other[name], rtol=1e-9, atol=1e-9)


# gPoE and its limits.


@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "free"])
def test_exponents_get_the_gradient_of_the_formula(normalize: bool) -> None:
    nets = networks()
    vae = nets.vae(mm.GPoE, normalize=normalize, beta=1.7)
    logits = vae.guide.fusion["z"].logits
    with torch.no_grad():
        logits.copy_(torch.tensor([[0.9, 0.3], [0.5, 0.8], [0.2, 0.6]]))

    def formula(row: Row) -> Tensor:
        table = dict(zip(nets.p.modalities, logits.exp() if normalize else logits, strict=True))
        total = sum(table[m] for m in row.names) if normalize else 1.0
        q = row.product(row.names, {m: table[m] / total for m in row.names})
        return row.score(q) - 1.7 * kl(q, row.prior)

    nets.agree(vae, formula)


def same(one: mm.MultimodalVAE, other: mm.MultimodalVAE, nets: Networks) -> None:
    """Equal values and gradients of the shared networks."""
    found, wanted = (value(v, nets.p.data, nets.p.obs_mask, nets.eps) for v in (one, other))
    torch.testing.assert_close(found, wanted, **EXACT)
    modules = nn.ModuleList([*nets.encoders.values(), *nets.decoders.values(), nets.prior])
    first, second = gradients(modules, found.sum()), gradients(modules, wanted.sum())
    assert all(bool((g != 0).any()) for g in first.values())
    for name, g in first.items():
        torch.testing.assert_close(g, second[name], rtol=1e-9, atol=1e-9)


def test_exponents_of_one_are_the_product_without_prior() -> None:
    nets = networks()
    free, plain = nets.vae(mm.GPoE, normalize=False), nets.vae(mm.MVAE, unimodal=False, prior_expert=False)
    with torch.no_grad():
        free.guide.fusion["z"].logits.fill_(1.0)
    same(free, plain, nets)


def test_mvtcae_without_total_correlation_is_the_product_without_prior() -> None:
    nets = networks()
    same(nets.vae(mm.MVTCAE, alpha=0.0, beta=1.0), nets.vae(mm.MVAE, unimodal=False, prior_expert=False), nets)


def test_copies_of_a_view_do_not_sharpen() -> None:
    """Equal experts, whatever their exponents, are that expert; the plain product is sharper by the root of M."""
    expert, x = nn.Linear(4, 2), torch.randn(5, 4)
    names = ("a", "b", "c", "d")
    encoders = {m: Lambda(lambda x: dist.Normal(expert(x), 0.3 + expert(x) ** 2).to_event(1)) for m in names}
    decoders = {m: mm.nn.MLPDecoder(2, 4, hidden=(3,)) for m in names}
    data = dict.fromkeys(names, x)
    vae = mm.GPoE(encoders, decoders, latent_dim=2)
    with torch.no_grad():
        vae.guide.fusion["z"].logits.normal_()
    product = mm.MVAE(encoders, decoders, latent_dim=2, prior_expert=False)
    q, own = vae.posterior(data), encoders["a"](x)
    torch.testing.assert_close(q.mean, own.mean, **EXACT)
    torch.testing.assert_close(q.stddev, own.stddev, **EXACT)
    torch.testing.assert_close(product.posterior(data).stddev, own.stddev / 2, **EXACT)


# One modality, and the posterior of every set.


@pytest.mark.parametrize("num_modalities", [1, 3])
@PRIVATE
def test_one_modality_makes_each_method_a_vae(private: bool, num_modalities: int) -> None:
    """At equal noise, up to the factor of the formula; the divergence of mmJSD is another one."""
    nets = networks(num_modalities, private=private)
    data, mask, eps = nets.p.data, nets.p.obs_mask, nets.eps
    row = Row(nets, nets.p.sets.index(("a",)), ("a",))
    score, divergence = row.score(row.expert("a")), kl(row.expert("a"), row.prior)
    elbo = score - divergence - row.private_kl()
    factors: list[tuple[Any, dict[str, Any], float]] = [
        (mm.GPoE, {}, 1.0),
        (mm.DVCCA, {"fallback": "drop"}, 1.0),
        (mm.DMVAE, {}, 2.0),
        (mm.DMVAE, {"counting": "multivae"}, 2.0),
        (mm.DMVAE, {"normalize_rows": True}, 1.0),
        (mm.DMVAE, {"fusion": "generalized"}, 2.0),
    ]
    if not private:
        factors += [
            (mm.CRMVAE, {"beta": 1.0}, 0.5),
            (mm.MVAE, {"prior_expert": "several"}, 2.0),
            (mm.MVAE, {"fusion": mm.fusion.MeanOfParameters(), "duplicates": "drop"}, 1.0),
        ]
    for method, options, factor in factors:
        found = value(nets.vae(method, **options), data, mask, eps)[row.n]
        torch.testing.assert_close(found, factor * elbo, msg=f"{method.__name__} {options}", **EXACT)
    half = pool([(0.5, row.prior), (0.5, row.expert("a"))])
    js = 0.5 * (kl(row.prior, half) + kl(row.expert("a"), half))
    found = value(nets.vae(mm.MMJSD), data, mask, eps)[row.n]
    torch.testing.assert_close(found, score - js - row.private_kl(), **EXACT)


@pytest.mark.parametrize("case", SINGLE_POSTERIOR, ids=lambda case: case.name)
def test_posterior_of_every_set(case: Case) -> None:
    p = case.make()
    vae = case.vae(p)
    size = p.latent_dim
    loc, scale = (t[:, :size] for t in case.posterior(p))  # type: ignore[union-attr]
    found = vae.posterior(p.data, p.obs_mask)
    torch.testing.assert_close(found.mean, loc, **EXACT)
    torch.testing.assert_close(found.stddev, scale, **EXACT)
    for names in p.sets:  # the same sets asked of complete rows
        row = p.sets.index(names)
        given = vae.posterior({m: x[row : row + 1] for m, x in p.complete.items()}, given=set(names))
        torch.testing.assert_close(given.mean[0], loc[row], **EXACT)


def test_dvcca_takes_the_first_modality_and_asks_for_it() -> None:
    nets = networks()
    vae = nets.vae(mm.DVCCA)
    mask = {**nets.p.obs_mask, "a": torch.ones(8, dtype=torch.bool)}
    mask["a"][0] = False  # nothing at all: no error
    data = {**nets.p.data, "a": nets.p.complete["a"]}
    found = value(vae, data, mask, nets.eps)
    dropped = value(nets.vae(mm.DVCCA, reference="a", fallback="drop"), data, mask, nets.eps)
    assert torch.equal(found, dropped)
    assert found[0] == 0
    with pytest.raises(ValueError, match=r"'a'.*missing in 3 of 8"):
        value(vae, nets.p.data, nets.p.obs_mask, nets.eps)


@pytest.mark.parametrize("method", [mm.GPoE, mm.DMVAE, mm.CRMVAE, mm.MMJSD, mm.DVCCA])
def test_training_knows_when_the_annealing_is_over(method: type[mm.MultimodalVAE]) -> None:
    vae = networks(2).vae(method, beta=1.7, warmup=7)
    assert vae.objective.annealing_steps == 7
