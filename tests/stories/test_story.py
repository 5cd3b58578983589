"""Stories as modules, and what one look at them tells without leaving a trace."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_mmvae as mm
from pyro_mmvae.stories import Story, outline

NET = nn.Linear(2, 3)


def closure(net: nn.Module) -> Any:
    def story() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1))

    return story


def uses_global() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(NET(z), 1.0).to_event(1))


def test_networks_in_a_closure_must_be_given() -> None:
    net = nn.Linear(2, 3)
    with pytest.raises(ValueError) as caught:
        mm.observe(closure(net), ("x",))
    for word in ("'story'", "['net']", "neither trained nor saved", "modules={'net': net}", "nn.Module"):
        assert word in str(caught.value)
    model = mm.observe(closure(net), ("x",), modules={"net": net})
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}


def test_global_networks_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"\['NET'\]"):
        Story(uses_global)
    assert len(list(Story(uses_global, {"decoder": NET}).parameters())) == 2


@pytest.mark.parametrize("make", [lambda n: [n], lambda n: (n,), lambda n: {"x": n}], ids=["list", "tuple", "dict"])
def test_networks_in_containers_are_found(make: Any) -> None:
    nets = make(nn.Linear(2, 3))

    def story() -> None:
        pyro.sample("x", dist.Normal(next(iter(nets))(torch.zeros(2)), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"\['nets'\]"):
        Story(story)
    Story(story, {"net": next(iter(nets.values() if isinstance(nets, dict) else nets))})


def test_a_part_of_a_given_module_is_given() -> None:
    whole = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    first = whole[0]
    Story(closure(first), {"whole": whole})


def test_a_module_is_taken_as_it_is() -> None:
    class Program(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 3)

        def forward(self, age: Tensor, size: Tensor | None = None) -> None:
            pyro.sample("x", dist.Normal(self.net(torch.zeros(2)), 1.0).to_event(1))

    story = Story(Program())
    assert story.covariates == ("age", "size") and story.required == ("age",)
    assert "program.net.weight" in story.state_dict()


@pytest.mark.parametrize(
    "program",
    [lambda *ages: None, lambda **ages: None, eval("lambda age, /: None")],
    ids=["*args", "**kwargs", "positional only"],
)
def test_arguments_need_names(program: Any) -> None:
    with pytest.raises(TypeError, match=r"no fixed name\. Fix: name every covariate"):
        Story(program)


def test_keyword_only_arguments_are_covariates() -> None:
    def story(*, age: Tensor) -> None:
        pyro.sample("x", dist.Normal(age, 1.0))

    model = mm.observe(story, ("x",))
    assert model.covariates == ("age",)
    assert pyro.poutine.trace(model).get_trace({"age": torch.arange(3.0)}).nodes["x"]["fn"].mean.tolist() == [0, 1, 2]


@pytest.mark.parametrize("wrap", [lambda f: poutine.condition(f, {"c": torch.tensor(1)}), config_enumerate])
def test_wrapped_stories(wrap: Any) -> None:
    inner = Everything()
    story = Story(wrap(inner))
    assert story.covariates == ("age",)
    assert {id(p) for p in story.parameters()} == {id(p) for p in inner.parameters()}
    with pytest.raises(ValueError, match=r"\['net'\]"):
        Story(wrap(closure(nn.Linear(2, 3))))


def test_methods_of_modules_bring_their_module() -> None:
    inner = Everything()
    with pytest.raises(ValueError, match=r"\['self'\](.|\n)*neither trained"):
        Story(inner.forward)
    assert len(list(Story(inner.forward, {"story": inner}).parameters())) == len(list(inner.parameters()))


def test_a_story_is_callable() -> None:
    with pytest.raises(TypeError, match=r"story: expected an nn\.Module or a function, got int"):
        Story(3)  # type: ignore[arg-type]


class Everything(nn.Module):
    """Latents of several kinds, a plate, a network with batch statistics and dropout, lazy and plain likelihoods."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.lazy = nn.Linear(8, 4)
        self.calls = 0

    def decode(self, h: Tensor) -> Any:
        self.calls += 1
        return dist.Normal(self.lazy(h), 1.0).to_event(1)

    def forward(self, age: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(age.unsqueeze(-1).expand(*age.shape, 2), 1.0).to_event(1))
        c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        with pyro.plate("parts", 5, dim=-2):
            r = pyro.sample("r", dist.Gamma(2.0, 1.0))
        pyro.deterministic("total", r.sum(-2))
        pyro.factor("soft", -z.square().sum(-1))
        h = self.net(z.reshape(-1, 2)).reshape(*z.shape[:-1], 8)
        real = constraints.independent(constraints.real, 1)
        pyro.sample("image", mm.distributions.Lazy(self.decode, h, event_shape=(4,), support=real))
        pyro.sample("count", dist.Poisson(r.sum(-2, keepdim=True)))
        pyro.sample("y", dist.Categorical(logits=torch.eye(3)[c]))


def test_outline() -> None:
    found = outline(Story(Everything()), ("y", "image", "count"), {"age": torch.zeros(7)})
    assert list(found.modalities) == ["y", "image", "count"]
    assert [s.event_shape for s in found.modalities.values()] == [torch.Size([]), torch.Size([4]), torch.Size([])]
    assert found.modalities["y"].likelihood == "Categorical" and found.modalities["count"].likelihood == "Poisson"
    assert found.modalities["count"].support is constraints.nonnegative_integer
    assert float(found.modalities["y"].fill) == 0.0
    assert list(found.latents) == ["z", "c", "r"]
    assert [s.enumerated for s in found.latents.values()] == [False, True, False]
    assert [s.has_rsample for s in found.latents.values()] == [True, False, True]
    assert found.latents["z"].event_shape == torch.Size([2]) and found.latents["r"].support is constraints.nonnegative
    assert found.nesting == 2


def test_looking_leaves_no_trace() -> None:
    story = Everything()
    story.net[2].eval()
    before = {name: t.clone() for name, t in story.state_dict().items()}
    modes = {name: m.training for name, m in story.named_modules()}
    state = torch.get_rng_state()
    outline(Story(story), ("image",), {"age": torch.zeros(7)})
    assert torch.equal(torch.get_rng_state(), state)
    assert story.calls == 0
    assert {name: m.training for name, m in story.named_modules()} == modes and not modes["net.2"] and modes["net.1"]
    assert all(torch.equal(t, before[name]) for name, t in story.state_dict().items())
    assert list(pyro.get_param_store().keys()) == []


def test_modes_come_back_after_an_error() -> None:
    story = Story(Everything())
    with pytest.raises(ValueError, match="no sample sites"):
        outline(story, ("text",), {"age": torch.zeros(7)})
    with pytest.raises(ValueError, match="Shape mismatch"):
        outline(story, ("image",), {"age": torch.zeros(7, 3, 3)})
    assert all(m.training for m in story.modules())


def test_one_look_per_shape_of_covariates() -> None:
    calls = []

    def story(age: Tensor) -> None:
        calls.append(tuple(age.shape))
        pyro.sample("x", dist.Normal(age.unsqueeze(-1) if age.dim() == 1 else age, 1.0).to_event(1))

    door = mm.observe(story, ("x",)).door
    for shape in ((3,), (9,), (3, 2), (3,)):
        door.outline({"age": torch.zeros(shape)})
    assert calls == [(1,), (1, 2)]
    assert door.outline({"age": torch.zeros(4, 2)}).modalities["x"].event_shape == torch.Size([2])
