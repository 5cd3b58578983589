"""Guides with global sites under stock SVI: each parameter is found once, trained, and its guide's own."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import pyro_mmvae as mm
from tests.native.problem import SCALES, B, batch, observed_model

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

OBJECTIVES = {
    "elbo": lambda: mm.ELBO(),
    "each": lambda: mm.ELBO(mm.Terms([mm.Term(mm.objectives.Each())])),
    "trace": lambda: Trace_ELBO(),
    "trace_2": lambda: Trace_ELBO(num_particles=2),
}
KINDS = {"normal": AutoNormal, "diagonal": AutoDiagonalNormal, "multivariate": AutoMultivariateNormal}


def story() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    for m, s in SCALES.items():
        pyro.sample(m, dist.Normal(z, s))


def auto(model: Any, kind: Any) -> tuple[nn.Module, nn.Module]:
    """The guide, and its part outside the plate."""
    data, obs_mask = batch()
    guide: Any = mm.guides.auto(model, data=data, obs_mask=obs_mask, hidden=(4,), flow=0, global_guide=kind)
    return guide, guide.outer


def joined(model: Any, kind: Any) -> tuple[nn.Module, nn.Module]:
    """The same, put together by hand."""
    of_data_set = kind(poutine.block(model, expose=["mu"]))
    of_data_set(*batch())
    encoders = {m: mm.nn.MLPEncoder((), 1, hidden=(4,)) for m in SCALES}
    of_samples = mm.guides.Product(mm.observe(story, tuple(SCALES), size=20), encoders)
    return mm.guides.WithGlobals(of_data_set, of_samples), of_data_set


MAKERS = {"auto": auto, "with_globals": joined}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maker", MAKERS)
def test_steps_train_every_parameter(maker: str, kind: str, objective: str) -> None:
    data, obs_mask = batch()
    data = {m: torch.where(obs_mask[m], x, 0.0) for m, x in data.items()}
    model = observed_model(20)
    guide, outer = MAKERS[maker](model, KINDS[kind])
    pyro.clear_param_store()
    lr = 0.1
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), OBJECTIVES[objective]())
    before = {name: p.detach().clone() for name, p in outer.named_parameters()}
    before.pop("scale_tril_unconstrained", None)  # of a single latent: a constant
    assert before
    assert svi.step(data, obs_mask) < float("inf")
    for name, p in outer.named_parameters():
        if name in before:  # Adam's first step has the length lr, up to its eps = 1e-8 over the gradient
            torch.testing.assert_close((p - before[name]).abs(), torch.full_like(p, lr), rtol=1e-4, atol=0, msg=name)


def test_each_guide_has_its_own_parameters() -> None:
    """Two guides of one class in one store, where Pyro would hand the first one's values to the second."""
    data, obs_mask = batch()
    model = observed_model()
    guides = [auto(model, AutoNormal)[0] for _ in range(2)]
    for i, guide in enumerate(guides):
        with torch.no_grad():
            guide.outer.locs.mu_unconstrained.fill_(10.0 * i)  # type: ignore[union-attr,operator]
        SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), mm.ELBO()).step(data, obs_mask)
    for i, guide in enumerate(guides):
        assert abs(guide.outer.locs.mu - 10.0 * i) < 0.011  # type: ignore[union-attr,operator]
    assert not [name for name in pyro.get_param_store() if name.startswith("AutoNormal")]


class Regression(PyroModule):
    """y_n ~ N(w age_n, s), the weights drawn once for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.w = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        self.scale = PyroParam(torch.tensor(0.4), constraint=dist.constraints.positive)

    def forward(self, data: Any, obs_mask: Any = None) -> None:
        w, scale = self.w, self.scale
        with pyro.plate("data", len(data["age"])), mm.handlers.observe(data, obs_mask, ["y"]):
            pyro.sample("y", dist.Normal(w * data["age"].unsqueeze(-1), scale).to_event(1))


def test_a_pyro_module_with_a_global_pyro_sample() -> None:
    """Conjugate: with the exact posterior of the weights every draw gives the evidence."""
    age, s = torch.randn(7), 0.4
    data, obs_mask = {"age": age, "y": torch.randn(7, 2)}, {"y": torch.rand(7, 2) < 0.6}
    model = Regression()
    guide: Any = mm.guides.auto(model, data=data, obs_mask=obs_mask)
    assert not pyro.get_param_store().keys(), "a look leaves nothing in the store"
    seen = obs_mask["y"].double()
    precision = 1 + (seen * age.unsqueeze(-1) ** 2).sum(0) / s**2
    loc = (seen * age.unsqueeze(-1) * data["y"]).sum(0) / s**2 / precision
    with torch.no_grad():
        guide.outer.locs.w_unconstrained.copy_(loc)
        raw = torch.distributions.transform_to(guide.outer.scale_constraint).inv(precision**-0.5)
        guide.outer.scales.w_unconstrained.copy_(raw)
    evidence = 0.0
    for d in range(2):
        x, y = age[obs_mask["y"][:, d]], data["y"][:, d][obs_mask["y"][:, d]]
        cov = x.outer(x) + s**2 * torch.eye(len(x))
        evidence = evidence + dist.MultivariateNormal(torch.zeros(len(x)), cov).log_prob(y)
    for objective in (mm.ELBO(), Trace_ELBO()):
        loss = objective.differentiable_loss(model, guide, data, obs_mask)
        torch.testing.assert_close(-loss, evidence, rtol=1e-9, atol=1e-9)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=2))
    before = float(model.scale.detach()), guide.outer.locs.w.detach().clone()
    svi.step(data, obs_mask)
    assert float(model.scale.detach()) != before[0]
    assert (guide.outer.locs.w != before[1]).all()
    draws = mm.inference.predict(model, guide, data, obs_mask, num_samples=3, return_latents=True)
    assert draws["w"].shape == (3, 2) and draws["y"].shape == (3, 7, 2)


class ByMask(nn.Module):
    """q(mu | S) depends on which modalities are observed; q(z | mu) is the prior. It answers one set at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))
        self.calls: list[tuple[float, torch.Tensor]] = []

    def forward(self, data: Any, obs_mask: Any) -> None:
        share = obs_mask["x"].double().mean()
        mu = pyro.sample("mu", dist.Normal(self.loc + share, 0.5))
        self.calls.append((float(share), mu.detach()))
        with pyro.plate("data", len(data["x"])):
            pyro.sample("z", dist.Normal(mu, 1.0))


@pytest.mark.parametrize("objective", [mm.ELBO, mm.IWAE])
def test_global_sites_are_drawn_once_per_step(objective: Any) -> None:
    """A guide by hand is called for every source: the first call draws, and its density is the one that counts."""
    data, obs_mask = batch()
    data = {m: torch.where(obs_mask[m], x, 0.0) for m, x in data.items()}
    guide, table = ByMask(), mm.Terms([mm.Term(mm.objectives.Each(), mm.objectives.Each())])
    eps = torch.randn(B)
    steps = []
    for _ in range(2):
        guide.calls.clear()
        with mm.handlers.noise({"z": eps}):
            loss = objective(table, num_particles=1).differentiable_loss(observed_model(), guide, data, obs_mask)
        shares, values = zip(*guide.calls, strict=True)
        assert len(set(shares)) > 1, "the guide was asked for several sets"
        at = values[0]
        assert all(torch.equal(at, mu) for mu in values)
        exact = dist.Normal(0.0, 1.0).log_prob(at) - dist.Normal(guide.loc + shares[0], 0.5).log_prob(at)
        for m, s in SCALES.items():
            exact = exact + torch.where(obs_mask[m], dist.Normal(at + eps, s).log_prob(data[m]), 0.0).sum()
        torch.testing.assert_close(-loss, exact, rtol=1e-10, atol=1e-10)
        (gradient,) = torch.autograd.grad(loss, guide.loc)
        assert gradient.isfinite() and gradient != 0
        steps.append(at)
    assert steps[0] != steps[1]
