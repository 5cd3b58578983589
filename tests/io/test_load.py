"""Saving and loading whole models: same outputs in a new process, nothing of the data, errors that name the file."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from safetensors.torch import load_file
from torch import nn

import pyro_mmvae as mm
from tests.io import cases

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)  # as the tests themselves: more threads sum in another order
import pyro_mmvae as mm
from tests.io import cases
for name in sys.argv[2:]:
    given = {}
    if name == "cells":
        given["story"], given["guide"] = cases.cells_programs()
    vae = mm.load(f"{sys.argv[1]}/{name}", **given)
    save_file(cases.outputs(vae, name), f"{sys.argv[1]}/{name}.out")
"""


def test_same_outputs_in_a_new_process(tmp_path):
    expected = {}
    for name, make in cases.MODELS.items():
        vae = make()
        cases.train(vae, cases.batch(name))
        vae.save(tmp_path / name)
        expected[name] = cases.outputs(vae, name)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), *cases.MODELS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, own in expected.items():
        found = load_file(tmp_path / f"{name}.out")
        assert found.keys() == own.keys()
        for key, x in own.items():  # the same operations on the same bits
            assert torch.equal(found[key], x), (name, key)
    assert int(expected["MVAE"]["step"]) == 3


@pytest.mark.parametrize("name", [n for n in cases.MODELS if n != "cells"])
def test_config_rebuilds_a_method(name):
    vae = cases.MODELS[name]()
    again = mm.from_config(json.loads(json.dumps(vae.config)))
    assert type(again) is type(vae)
    assert again.config == vae.config
    again.load_state_dict(vae.state_dict())
    assert torch.equal(again.posterior(cases.batch(name)).mean, vae.posterior(cases.batch(name)).mean)


def test_loading_leaves_the_global_state_and_the_saved_model(saved):
    vae, folder = saved
    before, state = torch.get_rng_state(), copy.deepcopy(vae.state_dict())
    again = mm.load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, state[n]) for n, x in vae.state_dict().items())
    with torch.no_grad():
        next(again.parameters()).add_(1.0)
    assert all(torch.equal(x, state[n]) for n, x in vae.state_dict().items())


def test_dtypes_come_back(tmp_path, float64):
    vae = cases.MODELS["MoPoE"]()
    vae.save(tmp_path)
    torch.set_default_dtype(torch.float32)
    again = mm.load(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float64}
    assert {b.dtype for b in again.buffers() if b.is_floating_point()} == {torch.float64}
    assert all(torch.equal(x, vae.state_dict()[n]) for n, x in again.state_dict().items())


def test_shared_networks_are_stored_once_and_stay_shared(tmp_path):
    encoders, decoders = ({m: net for m in "ab"} for net in (mm.nn.MLPEncoder(3, 2), mm.nn.MLPDecoder(2, 3)))
    vae = mm.MVAE(encoders, decoders, latent_dim=2)
    vae.save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(x.numel() for n, x in stored.items() if n != "objective._step") == sum(
        x.numel() for x in (*encoders["a"].parameters(), *decoders["a"].parameters())
    ) + sum(b.numel() for b in vae.model.story.program.prior.buffers())
    again = mm.load(tmp_path)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in vae.parameters())
    assert all(torch.equal(x, vae.state_dict()[n]) for n, x in again.state_dict().items())


# --- nothing of the data ---------------------------------------------------------------------------------------------


def test_a_saved_model_holds_nothing_of_the_data(tmp_path):
    data = {"image": torch.randn(6, 2, 3), "count": torch.poisson(torch.full((6, 2), 3.0))}
    data["image"][2] = torch.tensor([[1.2345678, -1.2345678, 0.98765432], [3.1415927, -2.7182817, 1.6180340]])
    labels = [f"patient-secret-{i}" for i in range(6)]
    ds = mm.datasets.MultimodalDataset(data, labels=torch.arange(6) + 777001)
    vae = mm.MVAE.for_data(ds, latent_dim=2)
    vae.labels_seen = labels  # an attribute is not state
    cases.train(vae, ds.data)
    vae.posterior(ds.data)
    vae.save(tmp_path)
    content = b"".join(file.read_bytes() for file in sorted(tmp_path.iterdir()))
    weight = next(vae.parameters()).detach().numpy().ravel()[0]
    assert weight.tobytes() in content and b"MLPEncoder" in content  # the search finds what is there
    for value in data["image"][2].flatten().tolist():
        for kind in (np.float32, np.float64):  # the two bytes of a float16 occur by chance
            assert kind(value).tobytes() not in content
        assert f"{value:.4f}".encode() not in content
    for value in [*labels, "patient", *(str(777001 + i) for i in range(6))]:
        assert value.encode() not in content
    assert not any(np.int64(777001 + i).tobytes() in content for i in range(6))


def test_an_option_that_holds_data_is_named_not_shown(tmp_path):
    class Remembering(mm.nn.Configurable, nn.Module):
        def __init__(self, size, *, examples=None):
            super().__init__()
            self.net, self.examples = cases.MyEncoder(size), examples

        def forward(self, x):
            return self.net(x)

    encoders, decoders = cases.networks()
    encoders["image"] = Remembering(6, examples=torch.tensor([123456.789, 2.0]))
    mm.MVAE(encoders, decoders, latent_dim=2).save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "12345" not in text and '"was": "Tensor"' in text


# --- networks and programs of the user's ----------------------------------------------------------------------------


def test_own_networks_must_be_given_again(tmp_path):
    encoders, decoders = cases.networks()
    encoders["image"] = cases.MyEncoder()
    vae = mm.MVAE(encoders, decoders, latent_dim=2)
    vae.save(tmp_path)
    with pytest.raises(ValueError, match=r"encoders.image \(MyEncoder\).*mm|encoders=\{modality: network\}") as error:
        mm.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    again = mm.load(tmp_path, encoders={"image": cases.MyEncoder()})
    data = cases.batch("MVAE")
    assert torch.equal(again.posterior(data).mean, vae.posterior(data).mean)
    with pytest.raises(ValueError, match=r"\['sound'\] are no modalities"):
        mm.load(tmp_path, encoders={"sound": cases.MyEncoder()})
    with pytest.raises(ValueError, match=r"net.weight.*\(4, 6\).*|cannot be made"):
        mm.load(tmp_path, encoders={"image": cases.MyEncoder(5)})


def test_own_prior_is_given_by_name(tmp_path):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((2,), 3.0))

        def forward(self):
            return dist.Normal(torch.zeros(2), self.scale).to_event(1)

    vae = mm.MVAE(*cases.networks(), latent_dim=2, prior=Wide())
    with torch.no_grad():
        vae.model.story.program.prior.scale.fill_(5.0)
    vae.save(tmp_path)
    with pytest.raises(ValueError, match=r"prior \(.*Wide\).*options=\{'prior': \.\.\.\}"):
        mm.load(tmp_path)
    again = mm.load(tmp_path, options={"prior": Wide()})
    assert again.model.story.program.prior.scale.tolist() == [5.0, 5.0]
    with pytest.raises(ValueError, match=r"saved without \['priors'\]"):
        mm.load(tmp_path, options={"priors": Wide()})


def test_a_story_of_ones_own(tmp_path):
    vae = cases.cells()
    cases.train(vae, cases.batch("cells"))
    vae.save(tmp_path)
    with pytest.raises(ValueError, match=r"Cells.*story=story, guide=guide"):
        mm.load(tmp_path)
    with pytest.raises(ValueError, match="holds a MultimodalVAE: encoders, decoders"):
        mm.load(tmp_path, encoders={})
    story = cases.Cells()
    encoders = {m: mm.nn.MLPEncoder(size, 2, hidden=(5,)) for m, size in (("rna", 4), ("protein", 3))}
    guide = mm.guides.Product(story, {"z": encoders}, modalities=("rna", "protein"))
    again = mm.load(tmp_path, story=story, guide=guide)
    assert again.model is guide.observed and isinstance(again, mm.MultimodalVAE)
    for key, x in cases.outputs(vae, "cells").items():
        assert torch.equal(cases.outputs(again, "cells")[key], x), key
    assert isinstance(again.objective, mm.IWAE) and again.objective.num_particles == 2


def simple(names=("a", "b"), shape=3, latent=2, family=dist.Normal, site="z"):
    class Simple(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = nn.ModuleList(nn.Linear(latent, shape) for _ in names)

        def forward(self):
            z = pyro.sample(site, dist.Normal(torch.zeros(latent), 1.0).to_event(1))
            for m, net in zip(names, self.nets, strict=True):
                pyro.sample(m, family(net(z), 1.0).to_event(1))

    model = mm.observe(Simple(), names)
    return model, mm.guides.Product(model, {site: {m: mm.nn.MLPEncoder(shape, latent, hidden=()) for m in names}})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"names": ("a", "c")}, r"modalities: saved \['a', 'b'\], the model has \['a', 'c'\]"),
        ({"shape": 4}, r"modality 'a': saved .*\[3\].*, the model has .*\[4\]"),
        ({"family": dist.Laplace}, r"modality 'a': saved .*'Normal'.*, the model has .*'Laplace'"),
        ({"latent": 5}, r"latent site 'z': saved \[2\], the model has \[5\]"),
        ({"site": "w"}, r"latent site 'z': saved \[2\], the model has None"),
    ],
)
def test_the_first_difference_is_named_and_nothing_is_changed(tmp_path, other, message):
    mm.MultimodalVAE(*simple()).save(tmp_path)
    model, guide = simple(**other)
    before = copy.deepcopy((model.state_dict(), guide.state_dict()))
    with pytest.raises(ValueError, match=message) as error:
        mm.load(tmp_path, story=model, guide=guide)
    assert str(tmp_path) in str(error.value)
    for then, now in zip(before, (model.state_dict(), guide.state_dict()), strict=True):
        assert all(torch.equal(then[n], now[n]) for n in now)


def test_parameter_shapes_are_compared(tmp_path):
    mm.MultimodalVAE(*simple()).save(tmp_path)
    model, _ = simple()
    guide = mm.guides.Product(model, {m: mm.nn.MLPEncoder(3, 2, hidden=(7,)) for m in ("a", "b")})
    with pytest.raises(ValueError, match=r"'guide\.encoders\.m_z\.m_a\..*shape \(.*\)"):
        mm.load(tmp_path, story=model, guide=guide)


def test_a_native_model_and_a_plain_guide(tmp_path):
    net = nn.Linear(2, 3)

    class Native(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, data, obs_mask=None):
            with pyro.plate("data", len(data["x"]), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=data["x"])

    def guide(data, obs_mask=None):
        with pyro.plate("data", len(data["x"]), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    mm.MultimodalVAE(Native(), guide, Trace_ELBO()).save(tmp_path)
    kept = net.weight.detach().clone()
    nn.init.zeros_(net.weight)
    with pytest.warns(UserWarning, match=r"Trace_ELBO.*ELBO\(\) takes its place"):
        again = mm.load(tmp_path, story=Native(), guide=guide)
    assert torch.equal(again.model.net.weight, kept)
    again = mm.load(tmp_path, story=Native(), guide=guide, objective=Trace_ELBO())
    assert isinstance(again.objective, Trace_ELBO)


def test_a_stale_param_store_is_refused(tmp_path):
    class Scaled(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = PyroParam(torch.ones(3), constraint=dist.constraints.positive)

        def forward(self):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, self.scale).to_event(1))

    def programs():
        model = mm.observe(Scaled(), ("x",))
        return model, mm.guides.Product(model, {"z": {"x": mm.nn.MLPEncoder(3, 3, hidden=())}})

    vae = mm.MultimodalVAE(*programs())
    with torch.no_grad():
        vae.model.story.program.scale_unconstrained.fill_(1.5)
    vae.save(tmp_path)
    pyro.clear_param_store()
    pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
    story = Scaled()
    with pytest.raises(RuntimeError, match=r"'scale'.*clear_param_store"):
        mm.load(tmp_path, story=story, guide=lambda data, obs_mask: None)
    pyro.clear_param_store()
    again = mm.load(tmp_path, **dict(zip(("story", "guide"), programs(), strict=True)))
    assert again.model.story.program.scale_unconstrained.tolist() == [1.5] * 3
    pyro.clear_param_store()


# --- objectives ------------------------------------------------------------------------------------------------------

TABLE = mm.Terms(
    [
        mm.Term(weight=2.0, beta={"": mm.objectives.Annealed(0.5, 10, "cosine"), "z": 1.5}),
        mm.Term(mm.objectives.Powerset(2), mm.objectives.Only(("a",)), detach=frozenset({"z", "decoder"})),
        mm.Term(mm.objectives.Fixed(((True, False),)), mm.objectives.Complement(), prior=mm.objectives.Each()),
    ],
    duplicates="drop",
)


@pytest.mark.parametrize(
    "objective",
    [mm.ELBO(TABLE, num_particles=3, kl="sampled"), mm.IWAE(TABLE, gradient="stl", bound="tight"), mm.ELBO()],
)
def test_a_table_comes_back_with_its_clock(tmp_path, objective):
    vae = mm.MultimodalVAE(*simple(), objective=copy.deepcopy(objective))
    vae.objective.advance(4)
    vae.save(tmp_path)
    again = mm.load(tmp_path, **dict(zip(("story", "guide"), simple(), strict=True))).objective
    assert type(again) is type(objective) and again.extra_repr() == objective.extra_repr()
    assert again.terms.terms == objective.terms.terms and again.terms.duplicates == objective.terms.duplicates
    assert again.step == 4


def test_a_function_in_the_table_needs_the_objective_again(tmp_path):
    objective = mm.ELBO(mm.Terms([mm.Term(weight=lambda context: 2.0)]))
    vae = mm.MultimodalVAE(*simple(), objective=objective)
    vae.objective.advance(5)
    vae.save(tmp_path)
    given = dict(zip(("story", "guide"), simple(), strict=True))
    with pytest.warns(UserWarning, match=r"not stored in full.*objective=objective"):
        assert mm.load(tmp_path, **given).objective.step == 5
    other = mm.ELBO(mm.Terms([mm.Term(weight=lambda context: 2.0)]))
    assert mm.load(tmp_path, **given, objective=other).objective is other
    assert other.step == 5


def test_an_objective_put_in_later_is_saved(saved, tmp_path):
    vae, _ = saved
    vae.objective = mm.IWAE(num_particles=9)
    vae.save(tmp_path / "other")
    again = mm.load(tmp_path / "other").objective
    assert isinstance(again, mm.IWAE) and again.num_particles == 9
