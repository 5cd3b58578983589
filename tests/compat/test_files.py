"""Folders that cannot be loaded, and why; multivae itself is not needed."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from pyro_mmvae.compat.multivae import load

CONFIG = {"name": "MVAEConfig", "n_modalities": 1, "latent_dim": 2, "input_dims": {"a": [3]}, "use_subsampling": True,
          "k": 0, "beta": 1.0, "warmup": 10, "decoders_dist": {"a": "bernoulli"}, "decoder_dist_params": {},
          "custom_architectures": []}  # fmt: skip


def state(**changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The parameters of default networks."""
    sizes = {
        "encoders.a.layers.0.0": (512, 3), "encoders.a.layers.1.0": (512, 512), "encoders.a.embedding": (2, 512),
        "encoders.a.log_var": (2, 512), "decoders.a.layers.0.0": (512, 2), "decoders.a.layers.1.0": (3, 512),
    }  # fmt: skip
    out: dict[str, torch.Tensor] = {}
    for name, size in sizes.items():
        out |= {f"{name}.weight": torch.randn(size) / 30, f"{name}.bias": torch.randn(size[:1])}
    return {name: x for name, x in (out | changed).items() if x is not None}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model_config.json").write_text(json.dumps(CONFIG))
    torch.save({"model_state_dict": state()}, tmp_path / "model.pt")
    return tmp_path


def test_nothing_of_multivae_is_needed(folder):
    vae = load(folder)
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    assert vae.log_likelihood({"a": x}, num_particles=10).shape == (2,)
    # three Bernoulli features whose probabilities lie in [0.5, 0.731], the sigmoid before the logits
    assert ((vae.decode(torch.randn(50, 2))["a"].mean - 0.6155).abs() < 0.1156).all()


@pytest.mark.parametrize("name", ["model_config.json", "model.pt"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        load(folder)


def test_damaged_files(folder):
    (folder / "model.pt").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ValueError, match=r"model\.pt' is damaged, or holds more than tensors"):
        load(folder)
    torch.save([1], folder / "model.pt")
    with pytest.raises(ValueError, match="has no 'model_state_dict'"):
        load(folder)
    (folder / "model_config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        load(folder)
    (folder / "model_config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load(folder)


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_unpickled(folder):
    trace = folder / "trace"
    (folder / "encoders.pkl").write_bytes(pickle.dumps(Harmful(trace)))
    load(folder)
    torch.save({"model_state_dict": state(), "more": Harmful(trace)}, folder / "model.pt")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoders.a.extra": torch.zeros(2)}, r"without a place here: \['decoders.a.extra'\]"),
        ({"encoders.a.embedding.bias": None}, r"cannot be made: KeyError: 'encoders.a.embedding.bias'"),
        ({"decoders.a.layers.1.0.weight": torch.zeros(4, 512)}, r"expected weights \(3, 512\), got \(4, 512\)"),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    torch.save({"model_state_dict": state(**change)}, folder / "model.pt")
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["TELBO", "JNF", "CVAE", "Nexus", "MHVAE"])
def test_models_without_a_counterpart(folder, name):
    (folder / "model_config.json").write_text(json.dumps({**CONFIG, "name": f"{name}Config"}))
    with pytest.raises(NotImplementedError, match=f"multivae's {name} cannot be loaded yet; known are .*'MVAE'"):
        load(folder)


def test_other_configs(folder):
    (folder / "model_config.json").write_text(json.dumps({**CONFIG, "name": "BaseTrainerConfig"}))
    with pytest.raises(ValueError, match="names 'BaseTrainerConfig', no config of a model"):
        load(folder)
    (folder / "model_config.json").write_text(json.dumps({**CONFIG, "input_dims": None}))
    with pytest.raises(ValueError, match="no input_dims"):
        load(folder)
