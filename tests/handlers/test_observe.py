"""The handler form of ``observe``: values, scores, prediction, features, covariates, global sites."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

import pyro_mmvae as mm
from pyro_mmvae.distributions import Lazy
from pyro_mmvae.handlers import observe

pytestmark = pytest.mark.usefixtures("float64")

B = 4
SEEN = torch.tensor([True, False, True, False])


def story() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 0.5))
    pyro.sample("v", dist.Normal(z.unsqueeze(-1) * torch.ones(3), 0.5).to_event(1))


def run(data: Any, obs_mask: Any, names: tuple[str, ...] = ("x", "v"), program: Any = story, **options: Any) -> Any:
    with poutine.trace() as t, pyro.plate("data", B), observe(data, obs_mask, names, **options):
        program()
    t.trace.compute_log_prob()
    return t.trace.nodes


def test_values_and_scores() -> None:
    x = torch.where(SEEN, torch.randn(B), torch.nan)
    nodes = run({"x": x}, {"x": SEEN})
    z = nodes["z"]["value"]
    assert nodes["x"]["is_observed"]
    assert torch.equal(nodes["x"]["value"], torch.where(SEEN, x, 0.0))
    expected = torch.where(SEEN, dist.Normal(z, 0.5).log_prob(torch.where(SEEN, x, 0.0)), 0.0)
    torch.testing.assert_close(nodes["x"]["log_prob"], expected, rtol=0, atol=0)
    assert nodes["x"]["infer"]["modality"] == "x"


def test_an_absent_modality_is_observed_and_unscored() -> None:
    nodes = run({"x": torch.zeros(B), "v": None}, None)
    assert nodes["v"]["is_observed"] and (nodes["v"]["log_prob"] == 0).all()
    assert nodes["v"]["log_prob"].shape == (B,) and (nodes["v"]["value"] == 0).all()


def test_features() -> None:
    seen = torch.rand(B, 3) < 0.5
    v = torch.where(seen, torch.randn(B, 3), torch.inf)
    nodes = run({"v": v}, {"v": seen})
    z = nodes["z"]["value"].unsqueeze(-1)
    expected = torch.where(seen, dist.Normal(z, 0.5).log_prob(torch.where(seen, v, 0.0)), 0.0).sum(-1)
    torch.testing.assert_close(nodes["v"]["log_prob"], expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("content", [torch.nan, torch.inf, 1e30, 7.0])
def test_gradients_do_not_see_masked_content(content: float) -> None:
    found = []
    for value in (0.0, content):
        scale = torch.tensor(0.5, requires_grad=True)

        def program(scale: Tensor = scale) -> None:
            z = pyro.sample("z", dist.Normal(torch.ones(()), 0.1))
            pyro.sample("x", dist.StudentT(3.0, z, scale))
            pyro.sample("v", dist.Poisson((scale * z).unsqueeze(-1) * torch.ones(3)).to_event(1))

        seen = torch.tensor([[True, False, True]]).expand(B, 3)
        data = {"x": torch.where(SEEN, 1.0, value), "v": torch.where(seen, 2.0, value)}
        torch.manual_seed(0)
        nodes = run(data, {"x": SEEN, "v": seen}, program=program)
        total = nodes["x"]["log_prob"].sum() + nodes["v"]["log_prob"].sum()
        found.append((total.detach(), *torch.autograd.grad(total, scale)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1].isfinite() and found[0][1] != 0


def test_prediction_draws_and_keeps() -> None:
    seen = torch.rand(B, 3) < 0.5
    data = {"x": torch.where(SEEN, 3.0, torch.nan), "v": torch.where(seen, 5.0, torch.nan)}
    with poutine.mask(mask=False):
        nodes = run(data, {"x": SEEN, "v": seen})
    assert (nodes["x"]["value"][SEEN] == 3).all() and (nodes["v"]["value"][seen] == 5).all()
    hidden = torch.cat([nodes["x"]["value"][~SEEN], nodes["v"]["value"][~seen]])
    assert hidden.isfinite().all() and len(hidden.unique()) == len(hidden)
    with poutine.mask(mask=False):
        nodes = run({}, {})
    assert not nodes["x"]["is_observed"] and nodes["v"]["value"].unique().numel() == B * 3


def test_draw() -> None:
    """Drawn where missing, with a gradient to the likelihood's parameters, and not scored there."""
    loc = torch.tensor(2.0, requires_grad=True)

    def program() -> None:
        x = pyro.sample("x", dist.Normal(loc, 0.5))
        pyro.sample("v", dist.Normal(x.unsqueeze(-1) * torch.ones(3), 1.0).to_event(1))

    data = {"x": torch.where(SEEN, 0.0, torch.nan), "v": torch.zeros(B, 3)}
    nodes = run(data, {"x": SEEN}, program=program, draw=("x",))
    x = nodes["x"]["value"]
    assert (x[SEEN] == 0).all() and (x[~SEEN] != 0).all() and x[1] != x[3]
    assert (nodes["x"]["log_prob"][~SEEN] == 0).all() and (nodes["x"]["log_prob"][SEEN] != 0).all()
    (slope,) = torch.autograd.grad(nodes["v"]["log_prob"].sum(), loc)
    torch.testing.assert_close(slope, -3 * x[~SEEN].detach().sum())


def test_covariates_and_plates_of_the_model() -> None:
    """The handler form leaves plates and arguments to the program."""
    age = torch.arange(float(B))

    def program() -> None:
        z = pyro.sample("z", dist.Normal(age, 1.0))
        with pyro.plate("parts", 2, dim=-2):
            pyro.sample("r", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(age, 1.0))

    nodes = run({"x": age}, None, ("x",), program)
    assert nodes["r"]["value"].shape == (2, B)
    torch.testing.assert_close(nodes["x"]["log_prob"], dist.Normal(0.0, 1.0).log_prob(torch.zeros(B)))


def test_global_sites_stay_outside() -> None:
    x = torch.where(SEEN, torch.randn(B), torch.nan)

    def model() -> None:
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        with pyro.plate("data", B), observe({"x": x}, {"x": SEEN}, ["x"]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale))

    values = {"scale": torch.tensor(1.3), "z": torch.randn(B)}
    trace = poutine.trace(poutine.condition(model, values)).get_trace()
    expected = dist.Gamma(2.0, 2.0).log_prob(values["scale"]) + dist.Normal(0.0, 1.0).log_prob(values["z"]).sum()
    expected = expected + dist.Normal(values["z"], 1.3).log_prob(torch.where(SEEN, x, 0.0))[SEEN].sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_masks_are_checked() -> None:
    with pytest.raises(TypeError, match=r"obs_mask\['x'\].*bool"):
        run({"x": torch.zeros(B)}, {"x": SEEN.int()})
    with pytest.raises(ValueError, match=r"obs_mask\['v'\].*expected shape \(4,\)(.|\n)*got \(4, 2\)"):
        run({"v": torch.zeros(B, 3)}, {"v": torch.ones(B, 2).bool()})


def test_sites_already_observed_and_unnamed_ones_are_left_alone() -> None:
    nodes = run({"x": torch.ones(B)}, None, ("v",))
    assert not nodes["x"]["is_observed"]
    nodes = run({"x": torch.ones(B)}, {"x": SEEN}, ("x",), poutine.condition(story, {"x": torch.full((B,), 9.0)}))
    assert (nodes["x"]["value"] == 9).all() and (nodes["x"]["log_prob"] != 0).all()


def test_private_latents_are_marked() -> None:
    assert run({}, {}, private={"z": "x"})["z"]["infer"]["private_to"] == "x"


class Counting:
    """A likelihood's network that remembers how many rows it saw, under which precision."""

    def __init__(self) -> None:
        self.net, self.rows, self.kinds = torch.nn.Linear(2, 3), [], []

    def __call__(self, z: Tensor) -> Any:
        h = self.net(z)
        self.rows.append(z.numel() // 2)
        self.kinds.append(h.dtype)
        return dist.Normal(h.to(z.dtype), 1.0).to_event(1)

    def program(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        support = constraints.independent(constraints.real, 1)
        pyro.sample("v", Lazy(self, z, event_shape=(3,), support=support))


def test_lazy_likelihoods_run_on_scored_rows_at_the_statement() -> None:
    counting = Counting()
    v = torch.where(SEEN.unsqueeze(-1), torch.randn(B, 3), torch.nan)
    nodes = run({"v": v}, {"v": SEEN}, ("v",), counting.program)
    assert counting.rows == [2]  # compute_log_prob did not run it again
    z = nodes["z"]["value"]
    scores = dist.Normal(counting.net(z), 1.0).log_prob(v.where(SEEN.unsqueeze(-1), 0.0)).sum(-1)
    torch.testing.assert_close(nodes["v"]["log_prob"], torch.where(SEEN, scores, 0.0))


def test_gates_and_precision_around_the_model_hold_for_lazy_networks() -> None:
    counting = Counting()
    data = {"v": torch.randn(B, 3)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with poutine.trace() as t, pyro.plate("data", B), observe(data, None, ("v",)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)).float()
            z = torch.randn(B, 2, dtype=torch.float32)
            counting.net.float()
            support = constraints.independent(constraints.real, 1)
            pyro.sample("v", Lazy(counting, z, event_shape=(3,), support=support))
    t.trace.compute_log_prob()
    assert counting.kinds == [torch.bfloat16]
    counting = Counting()
    with torch.no_grad():
        with poutine.trace() as t, pyro.plate("data", B), observe(data, None, ("v",)):
            counting.program()
    t.trace.compute_log_prob()
    assert not t.trace.nodes["v"]["log_prob"].requires_grad


def test_small_networks_run_densely_with_the_same_result() -> None:
    dec = mm.nn.MLPDecoder(2, 3, hidden=(4,))
    assert dec.cost is not None

    def program() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("v", dec(z))

    v = torch.where(SEEN.unsqueeze(-1), torch.randn(B, 3), torch.nan)
    nodes = run({"v": v}, {"v": SEEN}, ("v",), program)
    scores = dec.dense(nodes["z"]["value"]).log_prob(v.where(SEEN.unsqueeze(-1), 0.0))
    torch.testing.assert_close(nodes["v"]["log_prob"], torch.where(SEEN, scores, 0.0))
