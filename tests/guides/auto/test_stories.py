"""Guides made from stories: conjugate posteriors, the dependency graph, kinds of latents, covariates.

Test layer: references are conjugate posteriors and closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

import pyro_mmvae as mm
from tests.guides.auto.problem import Chain, Data, exact, gap, trained

pytestmark = pytest.mark.usefixtures("float64")


def conjugate(name: str) -> tuple[Callable[[], None], Callable[[Data], Any], Callable[[int], Data]]:
    """A story, its exact posterior, and draws of its data."""
    if name == "beta":

        def story() -> None:
            p = pyro.sample("p", dist.Beta(2.0, 3.0))
            pyro.sample("x", dist.Bernoulli(p.unsqueeze(-1)).expand((*p.shape, 8)).to_event(1))

        def posterior(data: Data) -> Any:
            count = data["x"].sum(-1)
            return dist.Beta(2 + count, 3 + 8 - count)

        def draw(n: int) -> Data:
            return {"x": dist.Bernoulli(dist.Beta(2.0, 3.0).sample((n, 1)).expand(n, 8)).sample()}
    else:

        def story() -> None:
            rate = pyro.sample("p", dist.Gamma(2.0, 0.5))
            pyro.sample("x", dist.Poisson(rate.unsqueeze(-1)).expand((*rate.shape, 3)).to_event(1))

        def posterior(data: Data) -> Any:
            return dist.Gamma(2 + data["x"].sum(-1), 0.5 + 3)

        def draw(n: int) -> Data:
            return {"x": dist.Poisson(dist.Gamma(2.0, 0.5).sample((n, 1)).expand(n, 3)).sample()}

    return story, posterior, draw


@pytest.mark.parametrize("name", ["beta", "gamma"])
def test_conjugate_posteriors(name: str) -> None:
    story, posterior, draw = conjugate(name)
    model = mm.observe(story, ("x",))
    guide = mm.guides.auto(model)
    trained(model, guide, lambda: (draw(128), {}), 120)
    data = draw(200)
    q, p = mm.inference.posterior(model, guide, data), posterior(data)
    with torch.no_grad():
        z = q.sample((500,))
        divergence = (q.log_prob(z) - p.log_prob(z)).mean()
    assert -0.01 < divergence < 0.03  # a Normal in unconstrained space is off by 0.08 / concentration nats


class TestStructure:
    def test_heads_see_what_the_graph_says(self) -> None:
        guide = mm.guides.auto(mm.observe(Chain(), ("x", "y"), private={"w": "y"}))
        views = guide.parts.measure.views
        assert guide.parts.measure.inspected
        assert views["z1"].modalities == ("x", "y")
        assert views["z2"].modalities == ("x",)
        assert views["z2"].upstream == ("z1",)
        assert views["w"].modalities == ("y",)
        assert views["w"].upstream == ("z1",)

    def test_latents_without_observed_descendants_keep_their_prior(self) -> None:
        model = mm.observe(Chain(), ("x", "y"), private={"w": "y"})
        guide = mm.guides.auto(model)
        for head in guide.parts.heads.values():
            nn.init.normal_(head.net[-1].weight)
        data = {"x": torch.randn(3, 2), "y": torch.randn(3, 2)}
        only = {"x": torch.zeros(3, dtype=torch.bool), "y": torch.ones(3, dtype=torch.bool)}
        trace = poutine.trace(guide).get_trace(data, only)
        one, two = trace.nodes["z1"]["value"], trace.nodes["z2"]["value"]
        prior = dist.Normal(one.sin(), 0.5).to_event(1)
        assert torch.equal(trace.nodes["z2"]["fn"].log_prob(two), prior.log_prob(two))
        pyro.clear_param_store()

    def test_private_latents_ignore_foreign_modalities(self) -> None:
        model = mm.observe(Chain(), ("x", "y"), private={"w": "y"})
        guide = mm.guides.auto(model)
        for head in guide.parts.heads.values():
            nn.init.normal_(head.net[-1].weight)
        nn.init.normal_(guide.parts.factors.precision)
        y, z, w = torch.randn(3, 2), torch.randn(3, 2), torch.randn(3, 1)
        found = []
        for x in (torch.zeros(3, 2), torch.full((3, 2), 9.0)):
            with poutine.trace() as tracer, mm.handlers.replay({"z1": z, "z2": z}):
                guide({"x": x, "y": y})
            found.append(tracer.trace.nodes["w"]["fn"].log_prob(w))
        assert torch.equal(*found)
        pyro.clear_param_store()

    def test_falls_back_where_values_leave_torch(self) -> None:
        def story() -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            w = pyro.sample("w", dist.Normal(torch.as_tensor(z.detach().numpy()), 1.0))
            pyro.sample("x", dist.Normal(w, 1.0))

        guide = mm.guides.auto(story, ("x",))
        view = guide.parts.measure.views["w"]
        assert view.upstream == ("z",)
        assert view.modalities == ("x",)

    def test_a_chain_has_the_exact_posterior(self) -> None:
        def story() -> None:
            one = pyro.sample("z1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            two = pyro.sample("z2", dist.Normal(0.8 * one, 0.5).to_event(1))
            pyro.sample("x", dist.Normal(two, 0.4).to_event(1))

        model = mm.observe(story, ("x",))
        guide = mm.guides.auto(model)
        x = torch.randn(100, 2) * 1.05**0.5
        log_p = dist.Normal(0.0, (0.64 + 0.25 + 0.16) ** 0.5).expand([2]).to_event(1).log_prob(x)
        assert gap(model, guide, {"x": x}, {}, log_p).mean() < 0.02


class TestKinds:
    def test_simplex(self) -> None:
        def story() -> None:
            p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0])))
            pyro.sample("x", dist.Multinomial(10, p))
            pyro.sample("y", dist.Categorical(p))

        model = mm.observe(story, ("x", "y"))
        guide = mm.guides.auto(model)
        data = {"x": torch.tensor([[5.0, 1.0, 4.0], [0.0, 0.0, 10.0]]), "y": torch.tensor([0, 2])}
        z = mm.inference.posterior(model, guide, data).sample((7,))
        assert z.shape == (7, 2, 3)
        torch.testing.assert_close(z.sum(-1), torch.ones(7, 2))
        exact = dist.Dirichlet(torch.tensor([[8.0, 2.0, 7.0], [2.0, 1.0, 14.0]]))
        many = mm.inference.posterior(model, guide, data).mean
        assert (many - exact.mean).abs().max() < 0.15  # before training: the right direction

    def test_unmarked_discrete_latents_are_refused_with_the_way_out(self) -> None:
        def story() -> None:
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(c, 1.0))

        with pytest.raises(NotImplementedError, match="enumerate"):
            mm.guides.auto(story, ("x",))

    def test_latents_in_further_plates_are_refused_with_the_way_out(self) -> None:
        def story() -> None:
            with pyro.plate("visits", 3, dim=-2):
                v = pyro.sample("v", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(v.sum(-2) if v.dim() > 1 else v, 1.0))

        with pytest.raises(NotImplementedError, match="visits"):
            mm.guides.auto(story, ("x",))

    def test_covariates_are_seen(self) -> None:
        weight = torch.randn(3, 2)

        def story(site: Tensor, dose: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            shift = torch.tensor([0.0, 2.0, -3.0])[site] + dose
            pyro.sample("x", dist.Normal(z @ weight.T + shift.unsqueeze(-1), 0.5).to_event(1))

        site, dose = torch.randint(3, (200,)), torch.randn(200)
        shift = torch.tensor([0.0, 2.0, -3.0])[site] + dose
        x = dist.Normal(torch.randn(200, 2) @ weight.T + shift.unsqueeze(-1), 0.5).sample()
        data = {"x": x, "site": site, "dose": dose}
        model = mm.observe(story, ("x",))
        with pytest.raises(ValueError, match="covariates"):
            mm.guides.auto(model)
        guide = mm.guides.auto(model, data=data)
        centered = x - shift.unsqueeze(-1)
        log_p = exact(weight, centered, torch.ones_like(x, dtype=torch.bool), 0.5)
        assert gap(model, guide, data, {}, log_p).mean() < 0.03

    def test_a_mixture_through_trace_enum(self) -> None:
        centers = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]])

        def story() -> None:
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(centers[c], 0.6).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1))

        model = mm.observe(story, ("x",))
        guide = mm.guides.auto(model)
        assert guide.parts.measure.components == {"z": 3}
        mix = dist.Categorical(torch.tensor([0.5, 0.3, 0.2]))
        marginal = dist.MixtureSameFamily(mix, dist.Normal(centers, (0.36 + 1.0) ** 0.5).to_event(1))
        x = marginal.sample((100,))
        loss = sum(TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, {"x": x}) for _ in range(50)) / 50
        before = float(marginal.log_prob(x).mean() + loss / 100)
        assert -0.02 < before < 0.05  # the factors are exact; each component is multiplied by them
        assert gap_of_nothing(model, guide) == 0.0
        trained(model, guide, lambda: ({"x": marginal.sample((64,))}, {}), 5, TraceEnum_ELBO(max_plate_nesting=1))
        pyro.clear_param_store()


def gap_of_nothing(model: Any, guide: Any) -> float:
    """The loss of rows that observe nothing."""
    nothing = {"x": torch.zeros(4, dtype=torch.bool)}
    return abs(round(TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, {"x": torch.zeros(4, 2)}, nothing), 9))
