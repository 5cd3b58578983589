"""Global sites with AutoGuides: counted once, outside scales, logarithms, terms and particles."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.objectives import Each
from tests.native.problem import MODELS, SCALES, SEEN, B, Rows, batch, evidence, observed_model, whole

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

NORMALS = {"normal": AutoNormal, "diagonal": AutoDiagonalNormal, "multivariate": AutoMultivariateNormal}
POINTS = {"delta": AutoDelta, "laplace": AutoLaplaceApproximation}


def auto(kind: str, model: Any, data: Any, obs_mask: Any, loc: float | Tensor, scale: float | Tensor = 1.0) -> Any:
    """An AutoGuide over mu at the values given."""
    made = {**NORMALS, **POINTS}[kind](poutine.block(model, expose=["mu"]))
    made(data, obs_mask)
    with torch.no_grad():
        if kind == "normal":
            made.locs.mu.copy_(torch.as_tensor(loc))
            made.scales.mu_unconstrained.copy_(torch.as_tensor(scale).expm1().log())
        elif kind == "delta":
            made.mu_unconstrained.copy_(torch.as_tensor(loc)) if hasattr(made, "mu_unconstrained") else made.mu.copy_(
                torch.as_tensor(loc)
            )
        else:
            made.loc.copy_(torch.as_tensor(loc).reshape(1))
        if kind in ("diagonal", "multivariate"):
            made.scale_unconstrained.copy_(torch.as_tensor(scale).expm1().log().reshape(1))
    return made


def kl_of_mu(loc: Tensor, scale: Tensor, at: Tensor) -> Tensor:
    """log p(mu) - log q(mu) at a draw."""
    return dist.Normal(0.0, 1.0).log_prob(at) - dist.Normal(loc, scale).log_prob(at)


@pytest.mark.parametrize("objective", [mm.ELBO(kl="sampled"), mm.ELBO(num_particles=3, kl="sampled"), mm.IWAE()])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", NORMALS)
def test_the_exact_guide_gives_the_evidence_of_the_data_set(kind: str, model: str, objective: Any) -> None:
    data, obs_mask = batch()
    loc, scale, log_p = whole(data, obs_mask)
    program = MODELS[model]()
    guide = Rows(auto(kind, program, data, obs_mask, loc, scale))
    for _ in range(3):  # whatever is drawn
        loss = objective.differentiable_loss(program, guide, data, obs_mask)
        torch.testing.assert_close(-loss, log_p, rtol=1e-10, atol=1e-10)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("kind", POINTS)
def test_a_point_has_no_entropy(kind: str) -> None:
    data, obs_mask = batch()
    model = observed_model()
    guide = Rows(auto(kind, model, data, obs_mask, 0.4))
    loss = mm.ELBO(kl="sampled").differentiable_loss(model, guide, data, obs_mask)
    exact = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.4)) + evidence(data, obs_mask, 0.4).sum()
    torch.testing.assert_close(-loss, exact, rtol=1e-10, atol=1e-10)


def test_the_global_factor_is_outside_the_logarithms() -> None:
    """q(z) is moved, so that the weights differ; at one draw of mu: its factor, plus one logarithm per row."""
    data, obs_mask = batch()
    model, K, size = observed_model(10 * B), 4, 10 * B
    guide = Rows(auto("normal", model, data, obs_mask, 0.3, 0.2), shift=0.5, size=size)
    eps, at = torch.randn(K, 1, B), torch.tensor(0.3 + 0.2 * 1.1)
    with mm.handlers.noise({"mu_unconstrained": torch.tensor(1.1), "z": eps}):
        loss = mm.IWAE(num_particles=K).differentiable_loss(model, guide, data, obs_mask)
    tau = 1 + sum(obs_mask[m].double() / s**2 for m, s in SCALES.items())
    loc = (at + sum(torch.where(obs_mask[m], data[m], 0.0) / s**2 for m, s in SCALES.items())) / tau + 0.5
    z = loc + tau**-0.5 * eps.squeeze(1)
    w = dist.Normal(at, 1.0).log_prob(z) - dist.Normal(loc, tau**-0.5).log_prob(z)
    for m, s in SCALES.items():
        w = w + torch.where(obs_mask[m], dist.Normal(z, s).log_prob(torch.where(obs_mask[m], data[m], 0.0)), 0.0)
    rows = torch.where(obs_mask["x"] | obs_mask["y"], w.logsumexp(0) - math.log(K), 0.0)
    exact = kl_of_mu(torch.tensor(0.3), torch.tensor(0.2), at) + 10 * rows.sum()
    torch.testing.assert_close(-loss, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("iwae", [False, True])
def test_minibatches_are_unbiased_and_count_the_global_site_once(iwae: bool) -> None:
    """The mean over all minibatches of 2 rows, at equal noise of each row, is the value of all rows."""
    data, obs_mask = batch()
    objective = mm.IWAE(num_particles=3) if iwae else mm.ELBO(num_particles=3)
    model, eps, at = observed_model(B), torch.randn(3, 1, B), torch.tensor(0.7)
    made = auto("multivariate", model, data, obs_mask, 0.3, 0.6)

    def value(rows: Tensor) -> Tensor:
        guide = Rows(made, shift=0.3, size=B)
        cut = [{m: x[rows] for m, x in part.items()} for part in (data, obs_mask)]
        latent = next(name for name in poutine.trace(made).get_trace(*cut).nodes if name.endswith("_latent"))
        with poutine.condition(data={latent: at.reshape(1)}), mm.handlers.noise({"z": eps[..., rows]}):
            return -objective.differentiable_loss(model, guide, *cut)

    parts = torch.stack([value(torch.tensor(rows)) for rows in itertools.combinations(range(B), 2)])
    torch.testing.assert_close(parts.mean(), value(torch.arange(B)), rtol=1e-10, atol=1e-10)


def test_tables_of_terms_score_it_once() -> None:
    data, obs_mask = batch()
    data = {m: torch.where(SEEN[m], x, 0.0) for m, x in data.items()}
    loc, scale, at = torch.tensor(0.3), torch.tensor(0.6), torch.tensor(0.3 + 0.6 * 0.9)
    for name, make in MODELS.items():
        model = make()
        guide = Rows(auto("normal", model, data, obs_mask, loc, scale))
        table = mm.Terms([mm.Term(Each(), weight=0.5), mm.Term(Each(), Each(), weight=2.0)])
        with mm.handlers.noise({"mu_unconstrained": torch.tensor(0.9), "z": torch.zeros(B)}):
            loss = mm.ELBO(table, num_particles=2, kl="sampled").differentiable_loss(model, guide, data, obs_mask)
        rest = 0.0
        for m in SCALES:
            alone = {k: seen & (k == m) for k, seen in obs_mask.items()}
            q = torch.where(alone[m], 1.0, 0.0)
            tau = 1 + q / SCALES[m] ** 2
            z = (at + q * data[m] / SCALES[m] ** 2) / tau
            prior = dist.Normal(at, 1.0).log_prob(z) - dist.Normal(z, tau**-0.5).log_prob(z)
            lik = {k: torch.where(obs_mask[k], dist.Normal(z, s).log_prob(data[k]), 0.0) for k, s in SCALES.items()}
            rest = rest + torch.where(alone[m], 0.5 * (prior + sum(lik.values())) + 2 * (prior + lik[m]), 0.0).sum()
        exact = kl_of_mu(loc, scale, at) + rest
        torch.testing.assert_close(-loss, exact, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_masks_of_none_are_masks_of_true(model: str) -> None:
    data, _ = batch()
    data = {m: torch.where(SEEN[m], x, 0.3) for m, x in data.items()}
    everything = {m: torch.ones(B).bool() for m in SCALES}
    program = MODELS[model]()
    guide = Rows(auto("normal", program, data, everything, 0.3, 0.6))
    table = mm.Terms([mm.Term(Each(), Each(), weight=2.0)])
    values = []
    for masks in (None, everything):
        with mm.handlers.noise({"mu_unconstrained": torch.tensor(0.9), "z": torch.zeros(B)}):
            values.append(mm.ELBO(table, kl="sampled").differentiable_loss(program, guide, data, masks))
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NORMALS)
@pytest.mark.parametrize("model", MODELS)
def test_stock_elbo_has_the_same_value_and_trains_the_same_parameters(model: str, kind: str) -> None:
    data, obs_mask = batch()
    data = {m: torch.where(SEEN[m], x, 0.0) for m, x in data.items()}
    program = MODELS[model](20)
    guide = Rows(auto(kind, program, data, obs_mask, 0.3, 0.6), shift=0.2, size=20)
    name = "mu_unconstrained" if kind == "normal" else f"_{type(guide.of_data_set).__name__}_latent"
    losses, gradients = [], []
    for objective in (Trace_ELBO(), mm.ELBO(kl="sampled")):
        at = torch.tensor(0.9)
        with mm.handlers.noise({name: at, "z": torch.linspace(-1, 1, B)}) if kind != "multivariate" else fixed(name):
            loss = objective.differentiable_loss(program, guide, data, obs_mask)
        parameters = list(guide.parameters())
        gradients.append(torch.autograd.grad(loss, parameters))
        losses.append(loss.detach())
    # an empty row contributes E[log p(z) - log q(z)] to the stock bound and 0 to ours
    empty = ~(obs_mask["x"] | obs_mask["y"])
    assert int(empty.sum()) == 1
    rows = 20 / B * empty_row(kind)
    torch.testing.assert_close(losses[0] + rows, losses[1], rtol=1e-10, atol=1e-10)


def empty_row(kind: str) -> Tensor:
    """log p(z | mu) - log q(z | mu) of the fourth row: q is the prior, moved by 0.2."""
    eps = torch.tensor(0.0) if kind == "multivariate" else torch.linspace(-1, 1, B)[3]
    return dist.Normal(0.0, 1.0).log_prob(0.2 + eps) - dist.Normal(0.2, 1.0).log_prob(0.2 + eps)


class fixed:
    """One draw of a latent of another family, and the means of z."""

    def __init__(self, name: str) -> None:
        self.parts = (poutine.condition(data={name: torch.tensor([0.9])}), mm.handlers.noise({"z": torch.zeros(B)}))

    def __enter__(self) -> None:
        for part in self.parts:
            part.__enter__()

    def __exit__(self, *error: Any) -> None:
        for part in reversed(self.parts):
            part.__exit__(*error)


def test_svi_finds_the_posterior_of_the_global_site() -> None:
    data, obs_mask = batch()
    loc, scale, _ = whole(data, obs_mask)
    model = observed_model()
    guide = Rows(auto("normal", model, data, obs_mask, 0.0, 1.0))
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), mm.ELBO(kl="sampled"))
    for _ in range(400):
        svi.step(data, obs_mask)
    # Adam's steps, at the end 0.05 * 0.99^400 < 0.001 each, still carry the noise of the last hundred gradients
    assert abs(guide.of_data_set.locs.mu - loc) < 0.06
    assert abs(guide.of_data_set.scales.mu - scale) < 0.06


@pytest.mark.parametrize("model", MODELS)
def test_log_likelihood_averages_over_the_global_posterior(model: str) -> None:
    """log E_q(mu) p(x_n | mu) of every row, a Gaussian."""
    data, obs_mask = batch()
    program = MODELS[model]()
    guide = Rows(auto("normal", program, data, obs_mask, 0.3, 0.6))
    found = mm.inference.log_likelihood(program, guide, data, obs_mask, num_particles=20_000, diagnostics=True)
    for n in range(B):
        seen = [m for m in SCALES if obs_mask[m][n]]
        if not seen:
            assert found.value[n] == 0
            continue
        cov = torch.full((len(seen),) * 2, 1 + 0.36) + torch.tensor([SCALES[m] ** 2 for m in seen]).diag()
        x = torch.stack([data[m][n] for m in seen])
        exact = dist.MultivariateNormal(torch.full((len(seen),), 0.3), cov).log_prob(x)
        assert abs(found.value[n] - exact) <= 4 * found.standard_error[n], n


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["normal", "multivariate", "delta"])
def test_verbs_show_global_sites_without_rows(kind: str, model: str) -> None:
    data, obs_mask = batch()
    program, S = MODELS[model](), 4000
    guide = Rows(auto(kind, program, data, obs_mask, 0.3, 0.6))
    draws = mm.inference.predict(program, guide, data, obs_mask, num_samples=S, return_latents=True)
    assert {n: tuple(x.shape) for n, x in draws.items()} == {"x": (S, B), "y": (S, B), "mu": (S,), "z": (S, B)}
    sd = 0.0 if kind == "delta" else 0.6
    assert abs(draws["mu"].mean() - 0.3) <= 4 * sd / S**0.5 + 1e-12
    assert abs(draws["mu"].std() - sd) <= 4 * sd / (2 * S) ** 0.5 + 1e-12
    q = mm.inference.posterior(program, guide, data, obs_mask, latents="all", num_samples=S)
    assert q["mu"].mean.shape == q["mu"].sample().shape == () and tuple(q["z"].mean.shape) == (B,)
    assert abs(q["mu"].mean - 0.3) <= 4 * sd / S**0.5 + 1e-12
    # every prediction, of observed entries too, is a fresh draw around z: variance of z given mu, of mu, and noise
    tau = 1 + sum(obs_mask[m].double() / s**2 for m, s in SCALES.items())
    var = 1 / tau + (sd / tau) ** 2
    for m, s in SCALES.items():
        exact = var + s**2
        assert ((draws[m].var(0) - exact).abs() <= 5 * exact * (2 / S) ** 0.5).all(), m
    means = mm.inference.predict(program, guide, data, obs_mask, num_samples=3, noise=False, return_latents=True)
    assert torch.equal(means["x"], means["z"]) and torch.equal(means["y"], means["z"])
    full = mm.inference.impute(program, guide, data, obs_mask, num_samples=3)
    assert all(torch.equal(full[m][:, obs_mask[m]], data[m][obs_mask[m]].expand(3, -1)) for m in SCALES)
    assert all((full[m][0, ~obs_mask[m]] != full[m][1, ~obs_mask[m]]).all() for m in SCALES)


@pytest.mark.parametrize("model", MODELS)
def test_inference_data(model: str) -> None:
    data, obs_mask = batch()
    program = MODELS[model]()
    guide = Rows(auto("normal", program, data, obs_mask, 0.3, 0.6))
    idata = mm.inference.to_inference_data(program, guide, data, obs_mask, num_samples=20)
    for group in ("posterior", "prior"):
        assert idata[group]["mu"].dims == ("chain", "draw")
        assert idata[group]["z"].dims == ("chain", "draw", "sample")
    weight = torch.as_tensor(idata["sample_stats"]["log_weight"].values)[0]
    mu = torch.as_tensor(idata["posterior"]["mu"].values)[0]
    exact = torch.stack([evidence(data, obs_mask, m) for m in mu])
    torch.testing.assert_close(weight, exact, rtol=1e-10, atol=1e-10)
    z = torch.as_tensor(idata["posterior"]["z"].values)[0]
    scores = torch.as_tensor(idata["log_likelihood"]["x"].values)[0]
    expected = torch.where(obs_mask["x"], dist.Normal(z, SCALES["x"]).log_prob(data["x"].nan_to_num()), torch.nan)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


# --- a library guide for the rows --------------------------------------------------------------------------------


def story() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    for m, s in SCALES.items():
        pyro.sample(m, dist.Normal(z, s))


class Expert(torch.nn.Module):
    """The Gaussian expert of one modality."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.raw = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Any:
        return dist.Normal(x.unsqueeze(-1), self.raw).to_event(1)


class Program(torch.nn.Module):
    """A function as a module, which gates and estimators that stop gradients need."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program

    def forward(self, data: Any, obs_mask: Any = None) -> None:
        self.program(data, obs_mask)


@pytest.mark.parametrize(
    "objective",
    [mm.ELBO(), mm.IWAE(num_particles=3), mm.IWAE(num_particles=3, gradient="dreg"), mm.ELBO(gradient="stl")],
    ids=["elbo", "iwae", "dreg", "stl"],
)
def test_a_library_guide_beside_an_autoguide(objective: Any) -> None:
    """q(z | x) is the posterior under z ~ N(0, 1); without a global draw in it the value is written out by hand."""
    data, obs_mask = batch()
    model = observed_model()
    made = auto("normal", model, data, obs_mask, 0.3, 0.6)
    of_rows = mm.guides.Product(mm.observe(story, tuple(SCALES)), {m: Expert(s) for m, s in SCALES.items()})
    guide = mm.guides.WithGlobals(made, of_rows)
    at, eps = torch.tensor(0.3 + 0.6 * 0.9), torch.randn(B)
    with mm.handlers.noise({"mu_unconstrained": torch.tensor(0.9), "z": eps}):
        loss = mm.ELBO(kl="sampled").differentiable_loss(model, guide, data, obs_mask)
    tau = 1 + sum(obs_mask[m].double() / s**2 for m, s in SCALES.items())
    loc = sum(torch.where(obs_mask[m], data[m], 0.0) / s**2 for m, s in SCALES.items()) / tau
    z = loc + tau**-0.5 * eps
    rows = dist.Normal(at, 1.0).log_prob(z) - dist.Normal(loc, tau**-0.5).log_prob(z)
    for m, s in SCALES.items():
        rows = rows + torch.where(obs_mask[m], dist.Normal(z, s).log_prob(data[m].nan_to_num()), 0.0)
    rows = torch.where(obs_mask["x"] | obs_mask["y"], rows, 0.0)
    exact = kl_of_mu(torch.tensor(0.3), torch.tensor(0.6), at) + rows.sum()
    torch.testing.assert_close(-loss, exact, rtol=1e-10, atol=1e-10)
    table = mm.Terms([mm.Term(Each(), weight=0.5), mm.Term()])
    assert torch.isfinite(mm.ELBO(table).differentiable_loss(model, guide, data, obs_mask))
    objective.differentiable_loss(Program(model), guide, data, obs_mask).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_fit_trains_an_autoguide_that_was_never_run() -> None:
    data, obs_mask = batch()
    model = observed_model()
    ds = mm.MultimodalDataset(data, obs_mask)
    of_rows = mm.guides.Product(mm.observe(story, tuple(SCALES)), {m: Expert(s) for m, s in SCALES.items()})
    made = AutoNormal(poutine.block(model, expose=["mu"]))
    vae = mm.MultimodalVAE(model, mm.guides.WithGlobals(made, of_rows))
    mm.fit(vae, ds, epochs=1, batch_size=B, progress=False, lr=0.1)
    before = made.locs.mu.detach().clone()
    assert before != 0 or made.scales.mu != 0.1
    mm.fit(vae, ds, epochs=1, batch_size=B, progress=False, lr=0.1)
    assert made.locs.mu != before
