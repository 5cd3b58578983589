"""Plates inside a sample, PyroModules, PyroSample weights, factors and deterministic sites: a closed form each."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor

import pyro_mmvae as mm

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

B, V = 4, 5
MASK = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()


# --- a plate inside a sample, masked per element ---------------------------------------------------------------------


def visits_by_handler(data: Any, obs_mask: Any = None) -> None:
    with pyro.plate("data", len(data["v"]), dim=-1), mm.handlers.observe(data, obs_mask, ["v"]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("visits", V, dim=-2):
            pyro.sample("v", dist.Normal(z, 0.5))


@mm.handlers.marginalize_missing
def visits_by_mask(data: Any, obs_mask: Any = None) -> None:
    mask = None if obs_mask is None else obs_mask["v"].mT
    with pyro.plate("data", len(data["v"]), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("visits", V, dim=-2):
            pyro.sample("v", dist.Normal(z, 0.5), obs=data["v"].mT, obs_mask=mask)


VISITS = {"handler": visits_by_handler, "obs_mask": visits_by_mask}


def exact_z(data: Any, obs_mask: Any = None) -> dist.Normal:
    seen = torch.ones(len(data["v"]), V).bool() if obs_mask is None else obs_mask["v"]
    tau = 1 + 4 * seen.sum(-1).double()
    return dist.Normal(4 * torch.where(seen, data["v"], 0.0).sum(-1) / tau, tau**-0.5)


def of_visits(data: Any, obs_mask: Any = None) -> None:
    with pyro.plate("data", len(data["v"]), dim=-1):
        pyro.sample("z", exact_z(data, obs_mask))


def evidence(v: Tensor, mask: Tensor) -> Tensor:
    """log p of the observed elements of every row, from their joint covariance."""
    out = []
    for x, seen in zip(v, mask, strict=True):
        k = int(seen.sum())
        cov = 1 + 0.25 * torch.eye(k)
        out.append(dist.MultivariateNormal(torch.zeros(k), cov).log_prob(x[seen]) if k else torch.zeros(()))
    return torch.stack(out)


@pytest.mark.parametrize("model", VISITS)
@pytest.mark.parametrize("objective", [mm.ELBO(kl="sampled"), mm.IWAE(num_particles=3)], ids=["elbo", "iwae"])
def test_elements_of_a_plate_are_masked_one_by_one(model: str, objective: Any) -> None:
    v = torch.where(MASK, torch.randn(B, V), torch.nan)
    found = objective.per_sample(VISITS[model], of_visits, {"v": v}, {"v": MASK})
    torch.testing.assert_close(found, evidence(v, MASK), rtol=1e-10, atol=1e-10)
    for content in (0.0, 1e30, torch.inf):
        again = objective.per_sample(VISITS[model], of_visits, {"v": torch.where(MASK, v, content)}, {"v": MASK})
        torch.testing.assert_close(again, found, rtol=1e-12, atol=1e-12)
    full = torch.randn(B, V)
    everything = objective.per_sample(VISITS[model], of_visits, {"v": full})
    torch.testing.assert_close(everything, evidence(full, torch.ones_like(MASK)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", VISITS)
def test_verbs_on_a_plate_inside_a_sample(model: str) -> None:
    v, S = torch.where(MASK, torch.randn(B, V), torch.nan), 4000
    data, obs_mask = {"v": v}, {"v": MASK}
    found = mm.inference.log_likelihood(VISITS[model], of_visits, data, obs_mask, num_particles=3)
    torch.testing.assert_close(found, evidence(v, MASK), rtol=1e-10, atol=1e-10)
    q = exact_z(data, obs_mask)
    full = mm.inference.impute(VISITS[model], of_visits, data, obs_mask, num_samples=S)["v"]
    assert tuple(full.shape) == (S, B, V) and torch.equal(full[0][MASK], v[MASK])
    sd = (q.scale**2 + 0.25).sqrt().unsqueeze(-1).expand(B, V)
    off = (full.mean(0) - q.loc.unsqueeze(-1)).abs() / sd
    assert (off[~MASK] <= 4.5 / S**0.5).all()
    assert ((full.std(0) / sd)[~MASK] - 1).abs().max() <= 4.5 / (2 * S) ** 0.5
    means = mm.inference.predict(
        VISITS[model], of_visits, data, obs_mask, num_samples=2, noise=False, return_latents=True
    )
    assert torch.equal(means["v"], means["z"].unsqueeze(-1).expand(2, B, V))
    idata = mm.inference.to_inference_data(VISITS[model], of_visits, data, obs_mask, num_samples=4)
    assert idata["posterior_predictive"]["v"].shape == (1, 4, B, V)


def test_a_whole_mask_serves_all_elements() -> None:
    rows = MASK.any(-1)
    v, full = torch.randn(B, V), rows.unsqueeze(-1).expand(B, V)
    found = mm.ELBO(kl="sampled").per_sample(visits_by_handler, of_visits, {"v": v}, {"v": full})
    whole = mm.IWAE(num_particles=2).per_sample(
        visits_by_handler, lambda d, m: of_visits(d, {"v": m["v"].reshape(B, -1).expand(B, V)}), {"v": v}, {"v": rows}
    )
    torch.testing.assert_close(whole, found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("shape", "have"), [((B,), r"\('B',\)"), ((B, 3), r"\('B', 3\)")])
def test_data_that_do_not_fit_the_plates(shape: Any, have: str) -> None:
    with pytest.raises(ValueError, match=rf"data\['v'\]: expected shape \('B', 5\), got {have}: its site has event"):
        mm.ELBO().loss(visits_by_handler, of_visits, {"v": torch.zeros(shape)})


# --- PyroModule, PyroParam, PyroSample -------------------------------------------------------------------------------


class Scaled(PyroModule):
    """x ~ N(z, s) with a PyroParam s."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.tensor(0.7), constraint=dist.constraints.positive)

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, self.scale))


def wide(data: Any, obs_mask: Any = None, n: Any = None) -> None:
    with pyro.plate("data", len(data["x"])):
        pyro.sample("z", dist.Normal(0.2, 1.3))


@pytest.mark.parametrize("stock", [False, True])
def test_a_pyro_param_of_a_story(stock: bool) -> None:
    story, x = Scaled(), torch.randn(B)
    model = mm.observe(story, ("x",))
    objective = Trace_ELBO() if stock else mm.ELBO(kl="sampled")
    with mm.handlers.noise({"z": torch.linspace(-1, 1, B)}):
        loss = objective.differentiable_loss(model, wide, {"x": x}, {"x": torch.ones(B).bool()})
    z, s = 0.2 + 1.3 * torch.linspace(-1, 1, B), torch.tensor(0.7, requires_grad=True)
    exact = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.2, 1.3).log_prob(z) + dist.Normal(z, s).log_prob(x)
    torch.testing.assert_close(-loss, exact.sum(), rtol=1e-10, atol=1e-10)
    (own,) = torch.autograd.grad(loss, story.scale_unconstrained)  # s = exp(unconstrained)
    torch.testing.assert_close(-own, 0.7 * torch.autograd.grad(exact.sum(), s)[0], rtol=1e-10, atol=1e-10)


class Regression(PyroModule):
    """y_n ~ N(w x_n + b, s) in two responses, the weights latent and global."""

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.w = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        self.b = PyroSample(dist.Normal(torch.zeros(2), 2.0).to_event(1))

    def forward(self, data: Any, obs_mask: Any = None) -> None:
        w, b = self.w, self.b  # outside the plate: once per data set
        with mm.stories.data_plate(len(data["x"]), self.size), mm.handlers.observe(data, obs_mask, ["y"]):
            x = data["x"].unsqueeze(-1)
            pyro.sample("y", dist.Normal(w * x + b, 0.4).to_event(1))


def test_pyro_sample_weights_are_bayesian_linear_regression_with_missing_responses() -> None:
    n = 7
    x, mask = torch.randn(n), torch.rand(n, 2) < 0.7
    y = torch.where(mask, torch.stack([1.5 * x, -x + 0.5], -1) + 0.4 * torch.randn(n, 2), torch.nan)
    data, obs_mask = {"x": x, "y": y}, {"y": mask}
    model = Regression()
    means, covs, total = [], [], torch.zeros(())
    design = torch.stack([x, torch.ones(n)], -1)
    prior = torch.tensor([1.0, 4.0]).diag()
    for k in range(2):
        a, t = design[mask[:, k]], y[mask[:, k], k]
        cov = a @ prior @ a.T + 0.16 * torch.eye(len(t))
        total = total + dist.MultivariateNormal(torch.zeros(len(t)), cov).log_prob(t)
        gain = prior @ a.T @ torch.linalg.inv(cov)
        means.append(gain @ t)
        covs.append(prior - gain @ a @ prior)
    order = [0, 2, 1, 3]  # w_1, w_2, b_1, b_2 from (w_1, b_1), (w_2, b_2)
    mean, cov = torch.cat(means)[order], torch.block_diag(*covs)[order][:, order]
    guide = AutoMultivariateNormal(poutine.block(model, expose=["w", "b"]))
    guide(data, obs_mask)
    with torch.no_grad():
        tril = torch.linalg.cholesky(cov)
        guide.loc.copy_(mean)
        guide.scale = PyroParam(tril.diagonal().clone(), constraint=dist.constraints.positive)
        unit = dist.constraints.unit_lower_cholesky
        guide.scale_tril = PyroParam(tril / tril.diagonal().unsqueeze(-1), constraint=unit)
    for objective in (mm.ELBO(), mm.IWAE(num_particles=3)):
        loss = objective.differentiable_loss(model, guide, data, obs_mask)
        torch.testing.assert_close(-loss, total, rtol=1e-8, atol=1e-8)
    S = 4000
    draws = mm.inference.predict(model, guide, data, obs_mask, num_samples=S, noise=False, return_latents=True)
    assert {m: tuple(d.shape) for m, d in draws.items()} == {"y": (S, n, 2), "w": (S, 2), "b": (S, 2)}
    both = torch.cat([draws["w"], draws["b"]], -1)
    assert ((both.mean(0) - mean).abs() <= 4.5 * cov.diagonal().sqrt() / S**0.5).all()
    found = mm.inference.log_likelihood(model, guide, data, obs_mask, num_particles=S, diagnostics=True)
    one = mask.sum(-1) == 1
    for i in one.nonzero().squeeze(-1):
        k = int(mask[i].long().argmax())
        m = design[i] @ means[k]
        v = design[i] @ covs[k] @ design[i] + 0.16
        assert abs(found.value[i] - dist.Normal(m, v.sqrt()).log_prob(y[i, k])) <= 4.5 * found.standard_error[i] + 1e-4


def test_a_pyro_sample_of_a_story_is_per_sample() -> None:
    """In a story everything is per sample: two rows have weights of their own."""

    class Local(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.w = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self) -> None:
            pyro.sample("x", dist.Normal(self.w, 0.5))

    x = torch.randn(B)
    model = mm.observe(Local(), ("x",))

    def guide(data: Any, obs_mask: Any) -> None:
        with pyro.plate("data", B):
            pyro.sample("w", dist.Normal(data["x"] / 1.25, 0.2**0.5))

    found = mm.ELBO(kl="sampled").per_sample(model, guide, {"x": x})
    torch.testing.assert_close(found, dist.Normal(0.0, 1.25**0.5).log_prob(x), rtol=1e-10, atol=1e-10)


# --- factor and deterministic ----------------------------------------------------------------------------------------


def penalized() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.deterministic("double", 2 * z)
    pyro.factor("penalty", -0.5 * z**2)
    pyro.sample("x", dist.Normal(z, 0.5))


def of_penalized(data: Any, obs_mask: Any = None, n: Any = None) -> None:
    """The exact posterior under the factor: precision 1 + 1 + 4."""
    with pyro.plate("data", len(data["x"])):
        pyro.sample("z", dist.Normal(4 * data["x"] / 6, 6**-0.5))


def penalized_evidence(x: Tensor) -> Tensor:
    """Prior times factor is the density of N(0, 1/2) over sqrt(2)."""
    return dist.Normal(0.0, 0.75**0.5).log_prob(x) - 0.5 * math.log(2.0)


def test_a_factor_counts_once_per_row_wherever_something_is_scored() -> None:
    x = torch.randn(B)
    data, exact, model = {"x": x}, penalized_evidence(x), mm.observe(penalized, ("x",))
    for objective in (mm.ELBO(kl="sampled"), mm.ELBO(num_particles=3, kl="sampled"), mm.IWAE(num_particles=3)):
        found = objective.per_sample(model, of_penalized, data)
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    loss = Trace_ELBO().differentiable_loss(model, of_penalized, data)
    torch.testing.assert_close(-loss, exact.sum(), rtol=1e-10, atol=1e-10)
    found = mm.inference.log_likelihood(model, of_penalized, data, num_particles=3)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    idata = mm.inference.to_inference_data(model, of_penalized, data, num_samples=3)
    weight = torch.as_tensor(idata["sample_stats"]["log_weight"].values)[0]
    torch.testing.assert_close(weight, exact.expand(3, B), rtol=1e-10, atol=1e-10)


def test_deterministic_sites_are_shown_and_have_no_density() -> None:
    model, data = mm.observe(penalized, ("x",)), {"x": torch.randn(B)}
    draws = mm.inference.predict(
        model, of_penalized, data, num_samples=3, return_latents=True, batch_size=2
    )
    assert list(draws) == ["x", "z", "double"] and tuple(draws["double"].shape) == (3, B)
    assert torch.equal(draws["double"], 2 * draws["z"])
    idata = mm.inference.to_inference_data(model, of_penalized, data, num_samples=3, batch_size=2)
    both = idata["posterior"]
    assert both["double"].dims == ("chain", "draw", "sample")
    assert (both["double"].values == 2 * both["z"].values).all()
