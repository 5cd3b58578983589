"""Lazy likelihoods: equal to the dense ones in value and gradient, whatever rows are asked for."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_mmvae as mm
from pyro_mmvae.distributions import Lazy, Scored

pytestmark = pytest.mark.usefixtures("float64")

VECTOR = constraints.independent(constraints.real, 1)
B, L, D = 6, 2, 3


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(L, 5), nn.Tanh(), nn.Linear(5, D))
        self.rows: list[int] = []

    def dense(self, *inputs: Tensor) -> Any:
        h = sum(inputs)
        self.rows.append(h.numel() // L)
        return dist.Normal(self.net(h), 0.7).to_event(1)

    def forward(self, *inputs: Tensor) -> Lazy:
        return Lazy(self.dense, *inputs, event_shape=(D,), support=VECTOR, has_rsample=True)


LEADS = [(), (4,), (2, 1), (2, 4)]
ROWS = {
    "some": [1, 0, 1, 1, 0, 0],
    "all": [1] * B,
    "one": [0, 0, 0, 1, 0, 0],
    "none": [0] * B,
}


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("lead", LEADS, ids=str)
def test_score_equals_dense(lead: tuple[int, ...], rows: str, features: bool) -> None:
    dec, x = Decoder(), torch.randn(B, D)
    mask = torch.tensor(ROWS[rows]).bool()
    seen = torch.rand(B, D) < 0.6 if features else torch.ones(B, D).bool()
    found = []
    for lazy in (True, False):
        z = torch.linspace(-1, 1, B * L * max(1, torch.Size(lead).numel())).reshape(*lead, B, L).requires_grad_()
        if lazy:
            scores = dec(z).score(x, mask, features=seen if features else None)
        else:
            full = torch.where(seen, dist.Normal(dec.net(z), 0.7).log_prob(x), 0.0).sum(-1)
            scores = torch.where(mask, full, 0.0)
        gradients = torch.autograd.grad(scores.square().sum() + 0 * z.sum(), [z, *dec.parameters()], allow_unused=True)
        found.append((scores, [g if g is not None else torch.zeros(()) for g in gradients]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-13, atol=1e-13)
    for ours, theirs in zip(*(f[1] for f in found), strict=True):
        torch.testing.assert_close(ours.expand_as(theirs), theirs, rtol=1e-11, atol=1e-12)
    total = torch.Size(lead).numel() * int(mask.sum())
    assert dec.rows == ([total] if total else [])


@pytest.mark.parametrize("terms", [1, 3])
def test_masks_with_terms(terms: int) -> None:
    """The block of rows may have terms on the left; the latent may have them, or particles, or neither."""
    dec, x, mask = Decoder(), torch.randn(B, D), torch.rand(terms, B) < 0.5
    for lead in ((), (1,), (terms,), (2, terms), (2, 1)):
        z = torch.randn(*lead, B, L)
        scores = dec(z).score(x, mask)
        expected = torch.where(mask, dist.Normal(dec.net(z), 0.7).log_prob(x).sum(-1), 0.0)
        torch.testing.assert_close(scores, expected.expand(scores.shape), rtol=1e-13, atol=1e-13)
        assert scores.shape == torch.broadcast_shapes((*lead, B), mask.shape)


def test_a_given_index_saves_the_search() -> None:
    dec, x, z = Decoder(), torch.randn(B, D), torch.randn(B, L)
    mask = torch.tensor(ROWS["some"]).bool()
    index = mask.nonzero().squeeze(-1)
    torch.testing.assert_close(dec(z).score(x, mask, index=index), dec(z).score(x, mask), rtol=0, atol=0)


def test_several_inputs_of_different_rank() -> None:
    dec, x = Decoder(), torch.randn(B, D)
    z, shift = torch.randn(4, B, L), torch.randn(B, L)
    mask = torch.tensor(ROWS["some"]).bool()
    lazy = dec(z, shift)
    assert lazy.batch_shape == (4, B)
    expected = torch.where(mask, dist.Normal(dec.net(z + shift), 0.7).log_prob(x).sum(-1), 0.0)
    torch.testing.assert_close(lazy.score(x, mask), expected, rtol=1e-13, atol=1e-13)
    with pytest.raises(ValueError, match="at least one input"):
        Lazy(dec.dense, event_shape=(D,), support=VECTOR)


def test_as_a_distribution() -> None:
    dec, z, x = Decoder(), torch.randn(B, L), torch.randn(B, D)
    lazy, dense = dec(z), dist.Normal(dec.net(z), 0.7).to_event(1)
    assert dec.rows == [] and lazy.batch_shape == (B,) and lazy.event_shape == (D,) and lazy.has_rsample
    torch.testing.assert_close(lazy.log_prob(x), dense.log_prob(x))
    torch.testing.assert_close(lazy.mean, dense.mean)
    torch.testing.assert_close(lazy.variance, dense.variance)
    for name in ("sample", "rsample", "__call__"):
        torch.manual_seed(0)
        ours = getattr(lazy, name)((2,))
        torch.manual_seed(0)
        torch.testing.assert_close(ours, dense((2,)))
    wide = lazy.expand((4, B))
    assert wide.batch_shape == (4, B) and wide().shape == (4, B, D)
    assert dec.rows == [B]  # the network ran once, for all of the above and the expanded copy


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(L, D), nn.BatchNorm1d(D))

    def forward(self, z: Tensor) -> Lazy:
        return Lazy(lambda z: dist.Normal(self.net(z), 1.0).to_event(1), z, event_shape=(D,), support=VECTOR)


def test_a_single_row_in_a_batch_norm_network() -> None:
    dec, z, x = Normalized(), torch.randn(B, L), torch.randn(B, D)
    with pytest.raises(ValueError, match=r"'?image'?: the network normalizes over the batch(.|\n)*nn.LayerNorm"):
        dec(z).score(x, torch.tensor(ROWS["one"]).bool(), name="image")
    before = dec.net[1].running_mean.clone()
    assert dec(z).score(x, torch.tensor(ROWS["none"]).bool()).tolist() == [0.0] * B
    assert torch.equal(before, dec.net[1].running_mean)  # no rows: the network is not called
    dec.eval()
    assert (dec(z).score(x, torch.tensor(ROWS["one"]).bool(), name="image") != 0).sum() == 1


def test_other_errors_of_the_network_pass() -> None:
    def broken(z: Tensor) -> Any:
        raise ValueError("no such thing")

    lazy = Lazy(broken, torch.randn(B, L), event_shape=(D,), support=VECTOR)
    with pytest.raises(ValueError, match="no such thing"):
        lazy.score(torch.zeros(B, D), torch.ones(B).bool())


def test_joint_likelihoods_refuse_features() -> None:
    lazy = Lazy(lambda z: dist.MultivariateNormal(z, torch.eye(L)), torch.randn(B, L), event_shape=(L,), support=VECTOR)
    with pytest.raises(ValueError, match=r"^image: a per-feature obs_mask"):
        lazy.score(torch.zeros(B, L), torch.ones(B).bool(), features=torch.rand(B, L) < 0.5, name="image")


@pytest.mark.parametrize("particles", [1, 4])
def test_under_enumeration(particles: int) -> None:
    dec, x = Decoder(), {"x": torch.randn(B, D)}
    seen = {"x": torch.tensor(ROWS["some"]).bool()}
    loc = torch.randn(B, L, requires_grad=True)

    def story(*, lazy: bool) -> Any:
        def program() -> None:
            c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
            h = z + c.unsqueeze(-1)
            pyro.sample("x", dec(h) if lazy else dist.Normal(dec.net(h), 0.7).to_event(1))

        return mm.observe(program, ("x",), modules={"dec": dec})

    def guide(*args: Any) -> None:
        with pyro.plate("data", B):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    found = []
    for lazy in (True, False):
        torch.manual_seed(1)
        elbo = TraceEnum_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
        with mm.handlers.unregistered():
            loss = elbo.differentiable_loss(story(lazy=lazy), guide, x, seen)
        found.append((loss.detach(), *torch.autograd.grad(loss, [loc, *dec.parameters()])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-11)
    assert dec.rows == [2 * particles * 3]


class Bayesian(PyroModule):
    """Random weights, one draw for all rows, and a lazy likelihood that uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([D, L]).to_event(2))

    def dense(self, z: Tensor) -> Any:
        return dist.Normal(z @ self.weight.T, 0.7).to_event(1)

    def forward(self, x: Tensor, seen: Tensor) -> None:
        self.weight  # noqa: B018, sampled here, outside the plate
        with pyro.plate("data", B), mm.handlers.observe({"x": x}, {"x": seen}, ("x",)):
            z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
            pyro.sample("x", Lazy(self.dense, z, event_shape=(D,), support=VECTOR))


@pytest.mark.parametrize("rows", ["some", "all"])
def test_random_weights_hold_for_lazy_networks(rows: str) -> None:
    """The network runs within the model: the weights it meets are those of the trace, not a fresh draw."""
    x, seen = torch.randn(B, D), torch.tensor(ROWS[rows]).bool()
    trace = poutine.trace(Bayesian()).get_trace(x, seen)
    trace.compute_log_prob()
    z, weight = trace.nodes["z"]["value"], trace.nodes["weight"]["value"]
    assert weight.shape == (D, L)
    expected = torch.where(seen, dist.Normal(z @ weight.T, 0.7).log_prob(x).sum(-1), 0.0)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected, rtol=1e-13, atol=1e-13)


def test_scored() -> None:
    value, scores = torch.randn(B, D), torch.randn(B)
    base = dist.Normal(torch.zeros(B, D), 1.0).to_event(1)
    scored = Scored(base, value, scores)
    assert scored.log_prob(value) is scores
    other = value.clone()
    torch.testing.assert_close(scored.log_prob(other), base.log_prob(other))
    assert scored.expand((4, B)).log_prob(value).shape == (4, B)
    assert scored.support.event_dim == 1 and scored.event_shape == (D,) and torch.equal(scored.mean, base.mean)
    assert scored.sample().shape == (B, D) and scored.expand((4, B)).sample().shape == (4, B, D)


def test_an_outer_handler_may_replace_a_scored_value() -> None:
    dec = Decoder()

    def story() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
        pyro.sample("x", dec(z))

    model = mm.observe(story, ("x",), modules={"dec": dec})
    other = torch.randn(B, D)
    with mm.handlers.unregistered():
        trace = poutine.trace(poutine.condition(model, {"x": other})).get_trace({"x": torch.zeros(B, D)})
    trace.compute_log_prob()
    expected = dist.Normal(dec.net(trace.nodes["z"]["value"]), 0.7).to_event(1).log_prob(other)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected)


MANY = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), MANY], ids=["one", "many"])
def test_training_with_stock_elbos(elbo: Any) -> None:
    dec, x = Decoder(), {"x": torch.randn(B, D)}
    loc, found = torch.randn(B, L, requires_grad=True), []

    def guide(*args: Any) -> None:
        with pyro.plate("data", B):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    for lazy in (True, False):

        def story(lazy: bool = lazy) -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
            pyro.sample("x", dec(z) if lazy else dist.Normal(dec.net(z), 0.7).to_event(1))

        model = mm.handlers.observe(x, {"x": torch.tensor(ROWS["some"]).bool()}, ("x",))

        def program(*args: Any, story: Any = story, model: Any = model) -> None:
            with pyro.plate("data", B), model:
                story()

        torch.manual_seed(1)
        loss = elbo.differentiable_loss(program, guide)
        found.append((loss.detach(), *torch.autograd.grad(loss, [loc, *dec.parameters()])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
