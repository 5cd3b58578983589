"""Loading with a story and a guide of one's own: every difference from what was saved is named, with its fix."""

from __future__ import annotations

import json
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_mmvae as mm
from tests.io import cases


class Program(nn.Module):
    """Two modalities, a shared and a private latent, a covariate; every name and size can be another one."""

    def __init__(self, shared: str = "z", size: int = 2, events: Any = (3, 4), names: Any = ("a", "b")) -> None:
        super().__init__()
        self.shared, self.size, self.events, self.names = shared, size, events, names
        self.nets = nn.ModuleList(nn.Linear(size + 1, n) for n in events)

    def forward(self, age: Tensor) -> None:
        z = pyro.sample(self.shared, dist.Normal(torch.zeros(self.size), 1.0).to_event(1))
        pyro.sample("z_a", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        inputs = torch.cat([z, age.unsqueeze(-1).expand((*z.shape[:-1], 1))], -1)
        for name, net in zip(self.names, self.nets, strict=True):
            pyro.sample(name, dist.Normal(net(inputs), 1.0).to_event(1))


class OtherCovariate(Program):
    def forward(self, years: Tensor) -> None:
        super().forward(years)


def pair(story: nn.Module | None = None, *, names: Any = ("a", "b"), private: Any = None, **own: Any) -> Any:
    story = Program(names=names, **own) if story is None else story
    model = mm.observe(story, names, private={"z_a": "a"} if private is None else private)
    sizes = dict(zip(names, story.events, strict=True))
    encoders = {m: mm.nn.MLPEncoder(sizes[m], story.size, hidden=()) for m in names}
    return model, mm.guides.Product(model, {story.shared: encoders})


def data(model: Any) -> dict[str, Tensor]:
    sizes = dict(zip(model.modalities, model.story.program.events, strict=True))
    return {**{m: torch.zeros(2, n) for m, n in sizes.items()}, "age": torch.tensor([1.0, 2.0])}


@pytest.fixture
def folder(tmp_path: Any) -> Any:
    vae = mm.MultimodalVAE(*pair())
    vae.objective.differentiable_loss(vae.model, vae.guide, data(vae.model))  # the sites are known once it has run
    vae.save(tmp_path)
    return tmp_path


def test_the_same_programs_load(folder: Any) -> None:
    model, guide = pair()
    again = mm.load(folder, story=model, guide=guide)
    assert again.posterior(data(model), latents="z").mean.shape == (2, 2)
    found = json.loads((folder / "config.json").read_text())["model"]
    assert found["latents"] == {"z": [2], "z_a": [1]} and found["covariate_shapes"] == {"age": [[], "float32"]}


OTHERS = {
    "a renamed latent": (
        {"shared": "w"},
        r"latent site 'z': saved \[2\], the model has None.*Fix: name .*\['z', 'z_a'\].*\['w', 'z_a'\]",
    ),
    "another latent size": ({"size": 5}, r"latent site 'z': saved \[2\], the model has \[5\].*Fix: construct"),
    "another event shape": ({"events": (3, 7)}, r"modality 'b': saved .*\[4\].*, the model has .*\[7\].*Fix: con"),
    "a missing modality": (
        {"names": ("a",), "events": (3,)},
        r"modalities: saved \['a', 'b'\], the model has \['a'\]\. Fix: .*observe\(story, modalities=\['a', 'b'\]\)",
    ),
    "another private map": (
        {"private": {"z_a": "b"}},
        r"private: saved \{'z_a': 'a'\}, the model has \{'z_a': 'b'\}\. Fix: .*private=\{'z_a': 'a'\}",
    ),
    "another covariate": (
        {"story": OtherCovariate()},
        r"covariates: saved \['age'\], the model has \['years'\]\. Fix: name the story's arguments \['age'\]",
    ),
}


@pytest.mark.parametrize(("other", "message"), OTHERS.values(), ids=OTHERS)
def test_the_first_mismatch_is_named_with_its_fix(folder: Any, other: Any, message: str) -> None:
    model, guide = pair(**other)
    before = {n: x.clone() for n, x in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        mm.load(folder, story=model, guide=guide)
    assert str(folder) in str(error.value)
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


def test_a_parameter_of_another_shape(folder: Any) -> None:
    model, _ = pair()
    encoders = {m: mm.nn.MLPEncoder(n, 2, hidden=(7,)) for m, n in (("a", 3), ("b", 4))}
    guide = mm.guides.Product(model, {"z": encoders})
    with pytest.raises(ValueError, match=r"parameter or buffer 'guide\..* shape \(.*Fix: construct networks"):
        mm.load(folder, story=model, guide=guide)


def test_a_file_without_the_shapes_of_covariates_still_loads(folder: Any) -> None:
    file = folder / "config.json"
    found = json.loads(file.read_text())
    del found["model"]["covariate_shapes"]
    found["model"]["sites"] = found["model"]["latents"] = None
    file.write_text(json.dumps(found))
    model, guide = pair()
    assert isinstance(mm.load(folder, story=model, guide=guide), mm.MultimodalVAE)
    with pytest.raises(ValueError, match="modalities: saved"):
        mm.load(folder, **dict(zip(("story", "guide"), pair(names=("a", "c")), strict=True)))


def test_a_story_that_never_ran_has_no_shapes_to_compare(tmp_path: Any) -> None:
    mm.MultimodalVAE(*pair()).save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["sites"] is None
    model, guide = pair()
    assert isinstance(mm.load(tmp_path, story=model, guide=guide), mm.MultimodalVAE)


@pytest.mark.param_store
def test_a_native_model_with_an_autoguide(tmp_path: Any) -> None:
    class Native(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.tensor(0.3))

        def forward(self, data: Any, obs_mask: Any = None) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(data["x"])), mm.handlers.observe(data, obs_mask, ["x"]):
                z = pyro.sample("z", dist.Normal(mu, 1.0))
                pyro.sample("x", dist.Normal(z + self.offset, 1.0))

    def of_rows(data: Any, obs_mask: Any = None) -> None:
        with pyro.plate("data", len(data["x"])):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def made() -> Any:
        model = Native()
        return model, mm.guides.WithGlobals(AutoNormal(poutine.block(model, expose=["mu"])), of_rows)

    x = {"x": torch.zeros(3)}
    model, guide = made()
    guide(x)
    with torch.no_grad():
        guide.of_data_set.locs.mu.copy_(torch.tensor(1.25))
    mm.MultimodalVAE(model, guide).save(tmp_path)
    pyro.clear_param_store()
    model, guide = made()
    with pytest.raises(ValueError, match=r"'guide\.of_data_set\.locs\.mu_.*AutoGuide.*call guide\(data"):
        mm.load(tmp_path, story=model, guide=guide)
    guide(x)
    again = mm.load(tmp_path, story=model, guide=guide)
    assert again.guide.of_data_set.locs.mu.item() == 1.25


def test_a_story_with_covariates_of_the_shipped_cases(tmp_path: Any) -> None:
    vae = cases.cells()
    cases.train(vae, cases.batch("cells"))
    vae.save(tmp_path)
    model, guide = cases.cells_programs()
    again = mm.load(tmp_path, story=model, guide=guide).model.story.program
    assert torch.equal(again.log_total, vae.model.story.program.log_total)
