"""Observed models under stock Pyro: equal to hand-written masked models, for every ELBO; plates, scales, prediction."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.handlers.registration import Registered
from pyro_mmvae.stories import data_plate

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

B, L = 6, 2
WA, WB = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, 0.2]]).double(), torch.tensor([[0.4, -0.6]] * 4).double()


class Story(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
        pyro.sample("a", dist.Normal(z @ WA.T, self.scale).to_event(1))
        pyro.sample("b", dist.Poisson((z @ WB.T).exp()).to_event(1))
        pyro.sample("y", dist.Bernoulli(logits=z.sum(-1)))


def by_hand(story: Story, data: Any, obs_mask: Any, size: int | None = None) -> Any:
    """Masked sample statements, written out on complete values."""

    def model(*args: Any) -> None:
        with data_plate(B, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
            with poutine.mask(mask=obs_mask["a"]):
                pyro.sample("a", dist.Normal(z @ WA.T, story.scale).to_event(1), obs=data["a"])
            b = dist.Poisson((z @ WB.T).exp()).mask(obs_mask["b"]).to_event(1)
            pyro.sample("b", b, obs=data["b"])
            with poutine.mask(mask=obs_mask["y"]):
                pyro.sample("y", dist.Bernoulli(logits=z.sum(-1)), obs=data["y"])

    return model


def problem() -> tuple[Story, Any, Any, Any, Any]:
    obs_mask = {
        "a": torch.tensor([1, 0, 1, 0, 1, 0]).bool(),
        "b": torch.rand(B, 4) < 0.5,
        "y": torch.tensor([1, 1, 0, 0, 1, 0]).bool(),
    }
    complete = {"a": torch.randn(B, 3), "b": torch.randint(0, 5, (B, 4)).double(), "y": torch.ones(B)}
    shown = {
        "a": torch.where(obs_mask["a"].unsqueeze(-1), complete["a"], torch.nan),
        "b": torch.where(obs_mask["b"], complete["b"], -1.0),
        "y": torch.where(obs_mask["y"], complete["y"], torch.inf),
    }
    return Story(), shown, complete, obs_mask, Guide()


class Guide(nn.Module):
    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.randn(B, L)), nn.Parameter(torch.zeros(L))
        self.size = size

    def forward(self, *args: Any) -> None:
        with data_plate(B, self.size):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))


ELBOS = {
    "trace": Trace_ELBO(),
    "particles": Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    "mean field": TraceMeanField_ELBO(),
}


@pytest.mark.parametrize("size", [None, 10 * B])
@pytest.mark.parametrize("name", ELBOS)
def test_loss_and_gradients(name: str, size: int | None) -> None:
    story, shown, complete, obs_mask, guide = problem()
    guide.size = size
    found, ours = [], mm.observe(story, ("a", "b", "y"), size=size)
    for model, data in ((ours, shown), (by_hand(story, complete, obs_mask, size), complete)):
        torch.manual_seed(1)
        loss = ELBOS[name].differentiable_loss(model, guide, data, obs_mask)
        found.append((loss.detach(), *torch.autograd.grad(loss, [story.scale, guide.loc, guide.log_scale])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["renyi", "graph"])
def test_loss_of_the_others(name: str) -> None:
    story, shown, complete, obs_mask, guide = problem()
    options = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}
    elbo = RenyiELBO(alpha=0, **options) if name == "renyi" else TraceGraph_ELBO(**options)
    losses = []
    for model, data in ((mm.observe(story, ("a", "b", "y")), shown), (by_hand(story, complete, obs_mask), complete)):
        torch.manual_seed(1)
        losses.append(elbo.loss(model, guide, data, obs_mask))
    assert abs(losses[0] - losses[1]) < 1e-10


def test_prediction_draws_what_is_missing_and_keeps_the_rest() -> None:
    story, shown, complete, obs_mask, guide = problem()
    model = mm.observe(story, ("a", "b", "y"))
    draws = Predictive(model, guide=guide, num_samples=400, parallel=True)(shown, obs_mask)
    for m, mask in obs_mask.items():
        x = draws[m].reshape(400, *complete[m].shape)
        assert (x[:, mask] == complete[m][mask]).all()
        assert x.isfinite().all() and (x[:, ~mask].std(0) > 0).all()
    mean = draws["a"].reshape(400, B, 3)[:, 1].mean(0)  # row 1 has no a
    expected = guide.loc[1] @ WA.T
    spread = (WA.square().sum(-1) + 0.49).sqrt() / 20
    assert ((mean - expected).abs() < 4.5 * spread).all()


def test_prior_prediction_needs_no_data() -> None:
    model = mm.observe(Story(), ("a", "b", "y"))
    draws = Predictive(model, num_samples=50)(n=3)
    assert draws["a"].shape == (50, 3, 3) and draws["b"].shape == (50, 3, 4) and draws["z"].shape == (50, 3, L)


def test_conditioning_on_latents_and_on_the_story() -> None:
    story, shown, _, obs_mask, _ = problem()
    z = torch.randn(B, L)
    model = mm.observe(story, ("a", "b", "y"))
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(shown, obs_mask)
    assert trace.nodes["z"]["is_observed"] and trace.nodes["z"]["value"] is z
    fixed = mm.observe(poutine.condition(story, {"z": torch.ones(L)}), ("a", "b", "y"))
    trace = poutine.trace(fixed).get_trace(shown, obs_mask)
    assert trace.nodes["a"]["fn"].mean[0].tolist() == WA.sum(-1).tolist()


@pytest.mark.parametrize(("batch", "size", "scale"), [(5, None, 1.0), (5, 5, 1.0), (5, 50, 10.0), (4, 7, 1.75)])
def test_the_scale_of_the_plate_is_exact(batch: int, size: int | None, scale: float) -> None:
    model = mm.observe(Story(), ("y",), size=size)
    trace = poutine.trace(model).get_trace({"y": torch.ones(batch)})
    assert trace.nodes["y"]["scale"] == scale and trace.nodes["z"]["scale"] == scale
    assert trace.nodes["y"]["value"].shape == (batch,)


def test_metadata_of_sites() -> None:
    model = mm.observe(Story(), ("a", "y"), private={"z": "a"})
    trace = poutine.trace(model).get_trace({"a": torch.zeros(2, 3)})
    assert trace.nodes["a"]["infer"]["modality"] == "a" and trace.nodes["y"]["infer"]["modality"] == "y"
    assert trace.nodes["z"]["infer"]["private_to"] == "a" and "modality" not in trace.nodes["z"]["infer"]
    assert "b" in trace.nodes and not trace.nodes["b"]["is_observed"]  # a site not named is a latent of the model


def test_inputs_stay_as_they_are() -> None:
    story, shown, _, obs_mask, guide = problem()
    before = copy.deepcopy((shown, obs_mask))
    model = mm.observe(story, ("a", "b", "y"))
    for run in (lambda: model(shown, obs_mask), lambda: mm.ELBO().loss(model, guide, shown, obs_mask)):
        run()
        assert list(shown) == list(before[0]) and list(obs_mask) == list(before[1])
        for m in shown:
            assert torch.equal(shown[m][obs_mask[m]], before[0][m][obs_mask[m]])
            assert shown[m].isfinite().equal(before[0][m].isfinite()) and obs_mask[m].equal(before[1][m])


def test_two_models_train_under_svi_in_one_process() -> None:
    for _ in range(2):
        story, shown, _, obs_mask, _ = problem()
        model = mm.observe(story, ("a", "b", "y"))
        guide = mm.guides.Product(model, {"a": mm.nn.MLPEncoder(3, L, hidden=(4,)).double()})
        before = [p.clone() for p in (*model.parameters(), *guide.parameters())]
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        for _ in range(3):
            svi.step(shown, obs_mask)
        assert all((p != b).any() for p, b in zip((*model.parameters(), *guide.parameters()), before, strict=True))


def test_a_copy_is_told_from_its_original() -> None:
    story, shown, _, obs_mask, _ = problem()
    model = mm.observe(story, ("a", "b", "y"))
    model(shown, obs_mask)
    with pytest.raises(RuntimeError, match=r"another tensor(.|\n)*Fix: call pyro.clear_param_store"):
        copy.deepcopy(model)(shown, obs_mask)


def test_quiet_programs_do_not_touch_the_store() -> None:
    story, shown, _, obs_mask, _ = problem()
    with mm.handlers.unregistered():
        mm.observe(story, ("a", "b", "y"))(shown, obs_mask)
    assert list(pyro.get_param_store().keys()) == []
    Registered("model")(nn.Linear(1, 1))
    assert len(list(pyro.get_param_store().keys())) == 2
