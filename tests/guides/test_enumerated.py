"""Discrete latents under enumeration: library guides leave them out, later latents see the marginal over their values.

Test layer: the reference is a hand-written model with the discrete latents summed out by logsumexp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from torch import Tensor, nn

import pyro_mmvae as mm

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]  # stock ELBOs register parameters

C, L, B = 4, 3, 6
ENUMERATE = {"enumerate": "parallel"}


class Clusters(nn.Module):
    """c -> z -> a, and y straight from c."""

    def __init__(self, *, marked: bool = True) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(C))
        self.centers = nn.Parameter(2 * torch.randn(C, L))
        self.weight = nn.Parameter(torch.randn(5, L))
        self.infer = ENUMERATE if marked else {}

    def forward(self) -> None:
        c = pyro.sample("c", dist.Categorical(logits=self.logits), infer=dict(self.infer))
        z = pyro.sample("z", dist.Normal(self.centers[c], 0.7).to_event(1))
        pyro.sample("a", dist.Normal(z @ self.weight.T, 0.7).to_event(1))
        pyro.sample("y", dist.Categorical(logits=2 * torch.eye(C)[c]))


class Expert(nn.Module):
    """A linear expert of fixed width."""

    def __init__(self, size: int, latent: int = L) -> None:
        super().__init__()
        self.linear = nn.Linear(size, latent)

    def forward(self, x: Tensor) -> Any:
        x = nn.functional.one_hot(x, C).double() if not x.is_floating_point() else x
        return dist.Normal(self.linear(x), 0.8).to_event(1)


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rows that observe both, one and none."""
    data = {"a": torch.randn(B, 5), "y": torch.randint(0, C, (B,))}
    obs_mask = {"a": torch.tensor([1, 1, 0, 0, 1, 0]).bool(), "y": torch.tensor([1, 0, 1, 0, 1, 0]).bool()}
    data["a"] = torch.where(obs_mask["a"].unsqueeze(-1), data["a"], torch.nan)
    data["y"] = torch.where(obs_mask["y"], data["y"], -1)
    return data, obs_mask


def pair() -> tuple[Any, Any]:
    model = mm.observe(Clusters(), ("a", "y"))
    return model, mm.guides.Product(model, {"a": Expert(5), "y": Expert(C)})


def latents(trace: poutine.Trace) -> list[str]:
    return [name for name, site in trace.nodes.items() if site["type"] == "sample" and name != "data"]


def marginal_prior(story: Clusters) -> Any:
    return dist.MixtureSameFamily(dist.Categorical(logits=story.logits), dist.Normal(story.centers, 0.7).to_event(1))


def reference_loss(model: Any, guide: Any, data: Any, obs_mask: Any, z: Tensor) -> Tensor:
    """-sum_n log sum_c p(c) p(z|c) p(y|c) + log p(a|z) - log q(z), q by moments of the prior; written out."""
    story = model.story.program
    seen_a, seen_y = obs_mask["a"], obs_mask["y"]
    a, y = torch.where(seen_a.unsqueeze(-1), data["a"], 0.0), data["y"].clamp(min=0)
    log_c = story.logits.log_softmax(-1)
    by_class = log_c + dist.Normal(story.centers, 0.7).to_event(1).log_prob(z.unsqueeze(-2))  # (..., B, C)
    label = (2 * torch.eye(C)).log_softmax(-1)[:, y].T  # (B, C)
    joint = (by_class + torch.where(seen_y.unsqueeze(-1), label, 0.0)).logsumexp(-1)
    likelihood = torch.where(seen_a, dist.Normal(z @ story.weight.T, 0.7).to_event(1).log_prob(a), 0.0)
    p = log_c.exp().unsqueeze(-1)
    mean = (p * story.centers).sum(0)
    variance = (p * (0.49 + story.centers**2)).sum(0) - mean**2
    encoders = guide.encoders["z"]
    tau, first = 1 / variance, mean / variance
    for m, x, seen in (("a", a, seen_a), ("y", y, seen_y)):
        expert = encoders[m](x)
        weight = seen.unsqueeze(-1) / 0.64
        tau, first = tau + weight, first + weight * expert.mean
    q = dist.Normal(first / tau, tau**-0.5).to_event(1).log_prob(z)
    q = torch.where(seen_a | seen_y, q, marginal_prior(story).log_prob(z))
    return -(joint + likelihood - q).sum(-1).mean()


@pytest.mark.parametrize("particles", [1, 5])
def test_trace_enum_equals_logsumexp(particles: int) -> None:
    model, guide = pair()
    data, obs_mask = batch()
    elbo = TraceEnum_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    found: dict[str, Tensor] = {}

    def recorded(*args: Any) -> None:
        with poutine.trace() as t:
            guide(*args)
        found["z"] = t.trace.nodes["z"]["value"]

    loss = elbo.differentiable_loss(model, recorded, data, obs_mask)
    expected = reference_loss(model, guide, data, obs_mask, found["z"])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-10)
    parameters = [*model.story.parameters(), *guide.parameters()]
    ours = torch.autograd.grad(loss, parameters, retain_graph=True)
    theirs = torch.autograd.grad(expected, parameters)
    for g, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-9)


def test_guide_hides_the_site_and_keeps_the_marginal_where_nothing_is_observed() -> None:
    model, guide = pair()
    data, obs_mask = batch()
    trace = poutine.trace(guide).get_trace(data, obs_mask)
    assert latents(trace) == ["z"]
    q = trace.nodes["z"]["fn"]
    z = torch.randn(B, L)
    nothing = ~(obs_mask["a"] | obs_mask["y"])
    assert nothing.sum() == 2
    prior = marginal_prior(model.story.program)
    torch.testing.assert_close(q.log_prob(z)[nothing], prior.log_prob(z)[nothing], rtol=1e-12, atol=1e-12)
    moments = (prior.mean, prior.variance)
    torch.testing.assert_close((q.mean[3], q.variance[3]), moments, rtol=1e-12, atol=1e-12)


def test_all_missing_rows_contribute_nothing() -> None:
    model, guide = pair()
    none = {m: torch.zeros(B, dtype=torch.bool) for m in ("a", "y")}
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, batch()[0], none)
    torch.testing.assert_close(loss, torch.zeros(()), rtol=0, atol=1e-10)


def test_stock_svi_trains_every_parameter() -> None:
    model, guide = pair()
    data, obs_mask = batch()
    before = [p.clone() for p in (*model.parameters(), *guide.parameters())]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(data, obs_mask) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert all(bool((p != b).any()) for p, b in zip((*model.parameters(), *guide.parameters()), before, strict=True))


def test_our_objectives_say_what_to_use() -> None:
    model, guide = pair()
    data, obs_mask = batch()
    for objective in (mm.ELBO(), mm.IWAE(num_particles=2)):
        with pytest.raises(NotImplementedError, match=r"'c' is enumerated.*TraceEnum_ELBO"):
            objective.per_sample(model, guide, data, obs_mask)


def test_unmarked_discrete_latents_are_refused_by_ours_and_sampled_for_trace_graph() -> None:
    model = mm.observe(Clusters(marked=False), ("a", "y"))
    guide = mm.guides.Product(model, {"z": {"a": Expert(5), "y": Expert(C)}})
    data, obs_mask = batch()
    with pytest.raises(NotImplementedError, match=r"'c'.*reparametrized(.|\n)*TraceGraph_ELBO"):
        mm.ELBO().per_sample(model, guide, data, obs_mask)
    assert latents(poutine.trace(guide).get_trace(data, obs_mask)) == ["c", "z"]
    elbo = TraceGraph_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    assert torch.isfinite(torch.tensor(elbo.loss(model, guide, data, obs_mask)))


TABLE = ((0.2, 0.5, 0.3), (0.6, 0.1, 0.3))


def two_discrete(ws: Tensor) -> Callable[[], None]:
    """c1 -> c2, z | c1, c2; then w | c2, z: a latent after one that told something about both."""

    def story() -> None:
        c1 = pyro.sample("c1", dist.Categorical(torch.tensor([0.3, 0.7])), infer=dict(ENUMERATE))
        c2 = pyro.sample("c2", dist.Categorical(torch.tensor(TABLE)[c1]), infer=dict(ENUMERATE))
        z = pyro.sample("z", dist.Normal((c1 - 2.0 * c2).unsqueeze(-1) * ws, 1.0).to_event(1))
        w = pyro.sample("w", dist.Normal(z.sum(-1) + 1.5 * c2, 0.5))
        pyro.sample("a", dist.Normal(w.unsqueeze(-1) + z, 1.0).to_event(1))

    return story


def test_two_enumerated_sites_and_a_latent_that_sees_an_earlier_one() -> None:
    ws = torch.tensor([1.0, -0.5])
    model = mm.observe(two_discrete(ws), ("a",))
    guide = mm.guides.Product(model, {"z": {"a": Expert(2, 2)}})
    none = {"a": torch.zeros(B, dtype=torch.bool)}
    with pyro.plate("particles", 7, dim=-2):
        trace = poutine.trace(guide).get_trace({"a": torch.zeros(B, 2)}, none)
    z, w = trace.nodes["z"]["value"], trace.nodes["w"]["value"]
    assert z.shape == (7, B, 2) and w.shape == (7, B)
    total = []
    for c1, p1 in enumerate((0.3, 0.7)):
        for c2, p2 in enumerate(TABLE[c1]):
            of_z = dist.Normal((c1 - 2.0 * c2) * ws, 1.0).to_event(1).log_prob(z)
            of_w = dist.Normal(z.sum(-1) + 1.5 * c2, 0.5).log_prob(w)
            total.append((torch.tensor(p1 * p2).log() + of_z, of_w))
    by_z = torch.stack([t[0] for t in total])
    both = torch.stack([t[0] + t[1] for t in total]).logsumexp(0)
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], by_z.logsumexp(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        trace.nodes["z"]["log_prob"] + trace.nodes["w"]["log_prob"], both, rtol=1e-12, atol=1e-12
    )
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, {"a": torch.zeros(B, 2)}, none)
    assert abs(loss) < 1e-10


def test_marks_by_config_enumerate_count() -> None:
    def story() -> None:
        c = pyro.sample("c", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(3 * c, 1.0))
        pyro.sample("a", dist.Normal(z, 1.0))

    model = mm.observe(config_enumerate(story), ("a",))
    guide = mm.guides.Product(model, {"a": Scalar()})
    trace = poutine.trace(guide).get_trace({"a": torch.zeros(3)}, {"a": torch.zeros(3, dtype=torch.bool)})
    assert latents(trace) == ["z"]
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(trace.nodes["z"]["fn"].log_prob(z), two_bumps(z, 0.3, 3.0))


def two_bumps(z: Tensor, rate: Any, distance: float) -> Tensor:
    """log((1 - rate) N(z; 0, 1) + rate N(z; distance, 1))."""
    near, far = (dist.Normal(loc, 1.0).log_prob(z).exp() for loc in (0.0, distance))
    return ((1 - rate) * near + rate * far).log()


class Scalar(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return dist.Normal(x.unsqueeze(-1), 1.0).to_event(1)


def test_plates_that_do_not_fit_are_refused() -> None:
    def story() -> None:
        with pyro.plate("parts", 3, dim=-2):
            c = pyro.sample("c", dist.Bernoulli(0.3), infer=dict(ENUMERATE))
        z = pyro.sample("z", dist.Normal(c.sum(-2, keepdim=True), 1.0))
        pyro.sample("a", dist.Normal(z, 1.0))

    model = mm.observe(story, ("a",))
    guide = mm.guides.Product(model, {"z": {"a": Scalar()}})
    with pytest.raises(NotImplementedError, match="'z' depends on enumerated latents inside the plates"):
        guide({"a": torch.zeros(4)})


def test_enumeration_inside_a_plate_of_the_story() -> None:
    rate = torch.tensor([0.2, 0.5, 0.9]).unsqueeze(-1)

    def story() -> None:
        with pyro.plate("parts", 3, dim=-2):
            c = pyro.sample("c", dist.Bernoulli(rate), infer=dict(ENUMERATE))
            z = pyro.sample("z", dist.Normal(4 * c, 1.0))
        pyro.sample("a", dist.Normal(z.sum(-2), 1.0))

    model = mm.observe(story, ("a",))
    guide = mm.guides.Product(model, {"z": {"a": Scalar()}})
    trace = poutine.trace(guide).get_trace({"a": torch.zeros(4)}, {"a": torch.zeros(4, dtype=torch.bool)})
    z = trace.nodes["z"]["value"]
    assert z.shape == (3, 4)
    torch.testing.assert_close(trace.nodes["z"]["fn"].log_prob(z), two_bumps(z, rate, 4.0))


def test_a_plain_trace_elbo_of_the_marginal_story_agrees() -> None:
    """The same numbers from a story with the mixture as its prior, trained with Trace_ELBO."""
    model, guide = pair()
    story = model.story.program
    data, _ = batch()
    only_a = {"a": torch.tensor([1, 1, 0, 1, 1, 0]).bool(), "y": torch.zeros(B, dtype=torch.bool)}
    data["a"] = torch.randn(B, 5)

    def summed() -> None:
        z = pyro.sample("z", marginal_prior(story))
        pyro.sample("a", dist.Normal(z @ story.weight.T, 0.7).to_event(1))

    other = mm.observe(summed, ("a",), modules={"story": story})
    torch.manual_seed(3)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, data, only_a)
    torch.manual_seed(3)
    expected = Trace_ELBO().loss(other, guide_of(guide, data, only_a), {"a": data["a"]}, {"a": only_a["a"]})
    assert abs(loss - expected) < 1e-9


def guide_of(guide: Any, data: Any, obs_mask: Any) -> Callable[..., None]:
    return lambda *args: guide(data, obs_mask)
