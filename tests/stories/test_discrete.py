"""Stories with a discrete latent under stock Pyro: enumerated, or sampled by a guide written by hand."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from torch import Tensor

import pyro_mmvae as mm
from tests.oracles.statistics import mean_and_se

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

B, L, C = 6, 2, 3
CENTERS = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64)


def body(c: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(CENTERS[c], 1.0).to_event(1))
    pyro.sample("a", dist.Normal(z, 0.5).to_event(1))
    pyro.sample("n", dist.Poisson(z.exp()).to_event(1))
    pyro.sample("y", dist.Categorical(logits=2 * torch.eye(C)[c]))


def sampled() -> None:
    body(pyro.sample("c", dist.Categorical(logits=LOGITS)))


def enumerated() -> None:
    body(pyro.sample("c", dist.Categorical(logits=LOGITS), infer={"enumerate": "parallel"}))


def summed() -> None:
    """The same story with c summed out; without y, which hangs on c."""
    prior = dist.MixtureSameFamily(dist.Categorical(logits=LOGITS), dist.Normal(CENTERS, 1.0).to_event(1))
    z = pyro.sample("z", prior)
    pyro.sample("a", dist.Normal(z, 0.5).to_event(1))
    pyro.sample("n", dist.Poisson(z.exp()).to_event(1))


def batch(*, labels: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rows and cells missing, NaN and -1 where they are."""
    obs_mask = {
        "a": torch.tensor([1, 1, 0, 0, 1, 0]).bool(),
        "n": torch.rand(B, L) < 0.6,
        "y": torch.tensor([1, 0, 1, 1, 0, 0]).bool() & labels,
    }
    complete = {"a": torch.randn(B, L), "n": torch.randint(0, 4, (B, L)).double(), "y": torch.randint(0, C, (B,))}
    data = {
        "a": torch.where(obs_mask["a"].unsqueeze(-1), complete["a"], torch.nan),
        "n": torch.where(obs_mask["n"], complete["n"], torch.nan),
        "y": torch.where(obs_mask["y"], complete["y"], -1),
    }
    return data, obs_mask


def gaussian_guide(loc: Tensor) -> Any:
    def guide(data: Any = None, obs_mask: Any = None) -> None:
        with pyro.plate("data", B):
            pyro.sample("z", dist.Normal(loc, 0.8).to_event(1))

    return guide


@pytest.mark.parametrize("particles", [1, 5])
def test_enumeration_equals_the_summed_story(particles: int) -> None:
    data, obs_mask = batch(labels=False)
    loc = torch.randn(B, L, requires_grad=True)
    options = {"num_particles": particles, "vectorize_particles": particles > 1, "max_plate_nesting": 1}
    found = []
    for elbo, story, names in ((TraceEnum_ELBO, enumerated, ("a", "n", "y")), (Trace_ELBO, summed, ("a", "n"))):
        torch.manual_seed(2)
        loss = elbo(**options).differentiable_loss(
            mm.observe(story, names), gaussian_guide(loc), *({m: d[m] for m in names} for d in (data, obs_mask))
        )
        found.append((loss.detach(), torch.autograd.grad(loss, loc)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-11)


def test_enumeration_with_labels_equals_logsumexp() -> None:
    data, obs_mask = batch()
    loc = torch.randn(B, L)
    torch.manual_seed(2)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    loss = elbo.loss(mm.observe(enumerated, ("a", "n", "y")), gaussian_guide(loc), data, obs_mask)
    torch.manual_seed(2)
    z = dist.Normal(loc, 0.8).to_event(1).rsample()
    by_class = LOGITS.log_softmax(-1) + dist.Normal(CENTERS, 1.0).to_event(1).log_prob(z.unsqueeze(-2))
    label = (2 * torch.eye(C)).log_softmax(-1)[:, data["y"].clamp(min=0)].T
    value = (by_class + torch.where(obs_mask["y"].unsqueeze(-1), label, 0.0)).logsumexp(-1)
    a = torch.where(obs_mask["a"].unsqueeze(-1), data["a"], 0.0)
    value = value + torch.where(obs_mask["a"], dist.Normal(z, 0.5).log_prob(a).sum(-1), 0.0)
    n = torch.where(obs_mask["n"], data["n"], 0.0)
    value = value + torch.where(obs_mask["n"], dist.Poisson(z.exp()).log_prob(n), 0.0).sum(-1)
    value = value - dist.Normal(loc, 0.8).log_prob(z).sum(-1)
    assert abs(-loss - value.sum()) < 1e-10


def test_enumeration_under_a_plate_of_terms_equals_the_loop() -> None:
    data, obs_mask = batch()
    model, z = mm.observe(enumerated, ("a", "n", "y")), torch.randn(2, 3, B, L)
    targets = {m: torch.rand(3, B) < 0.6 for m in ("a", "n", "y")}
    elbo = TraceEnum_ELBO(max_plate_nesting=3)

    def fixed(value: Tensor) -> Any:
        def guide() -> None:
            with pyro.plate("data", B, dim=-1):
                pyro.sample("z", dist.Delta(value, event_dim=1))

        return guide

    def wide(program: Any) -> Any:
        return pyro.plate("particles", 2, dim=-3)(pyro.plate("terms", 3, dim=-2)(program))

    def scored(target: Any) -> Any:
        def program() -> None:
            with mm.handlers.score(target):
                model(data, obs_mask)

        return program

    together = elbo.loss(wide(scored(targets)), wide(fixed(z)))
    single = TraceEnum_ELBO(max_plate_nesting=1)
    one_by_one = sum(
        single.loss(scored({m: t[j] for m, t in targets.items()}), fixed(z[k, j])) for k in range(2) for j in range(3)
    )
    assert abs(together - one_by_one) < 1e-9


def both(logits: Tensor, loc: Tensor) -> Any:
    """A guide that samples c as well."""

    def guide(data: Any, obs_mask: Any) -> None:
        with pyro.plate("data", B):
            pyro.sample("c", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))

    return guide


def test_trace_graph_gradients_agree_with_enumeration() -> None:
    """TraceGraph_ELBO samples c from the guide; TraceEnum_ELBO sums over it: one gradient of q(c) in expectation."""
    data, obs_mask = batch()
    logits, loc = torch.zeros(B, C, requires_grad=True), torch.randn(B, L)
    model = mm.observe(sampled, ("a", "n", "y"))

    def registered(*args: Any) -> None:
        pyro.param("unused", torch.zeros(()))
        model(*args)

    def draw(elbo: Any, repeats: int) -> tuple[Tensor, Tensor]:
        found = []
        for _ in range(repeats):
            logits.grad = None
            guide = both(logits, loc)
            guide = config_enumerate(guide) if elbo is TraceEnum_ELBO else guide
            stock = elbo(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
            stock.loss_and_grads(registered, guide, data, obs_mask)
            found.append(logits.grad.clone())
        return mean_and_se(torch.stack(found))

    (graph, se), (summed_out, own) = draw(TraceGraph_ELBO, 60), draw(TraceEnum_ELBO, 20)
    z = (graph - summed_out) / (se**2 + own**2).sqrt()
    assert z.abs().max() < 4.5
    assert (summed_out.abs() / own).max() > 20


def test_stock_predictive_runs() -> None:
    """Its labels are draws from the prior of c, which is why imputation of enumerated stories needs our own verbs."""
    data, obs_mask = batch()
    model = mm.observe(enumerated, ("a", "n", "y"))
    draws = Predictive(model, guide=gaussian_guide(torch.randn(B, L)), num_samples=4)(data, obs_mask)
    seen = obs_mask["y"]
    assert (draws["y"].reshape(4, B)[:, seen] == data["y"][seen]).all()
    assert (draws["n"].reshape(4, B, L)[:, obs_mask["n"]] == data["n"][obs_mask["n"]]).all()
