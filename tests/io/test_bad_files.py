"""Files that are missing, damaged, foreign, hostile or newer: errors that name them, and nothing is executed."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import pyro_mmvae as mm
from tests.io import cases


def edit(folder, change):
    file = folder / "config.json"
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def damage(name):
    def cut(folder):
        file = folder / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


BAD = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), FileNotFoundError, "no folder"),
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors"),
    "half a config": (damage("config.json"), ValueError, r"config.json' is no JSON file, or it is truncated"),
    "half the weights": (damage("model.safetensors"), ValueError, "model.safetensors' is no safetensors file"),
    "not text": (lambda f: (f / "config.json").write_bytes(b"\x80\x02}q"), ValueError, "config.json"),
    "deep": (lambda f: (f / "config.json").write_text("[" * 100_000), ValueError, "config.json"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), ValueError, "does not describe a pyro_mmvae model"),
    "foreign": (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), ValueError, "no format"),
    "a pickle": (lambda f: torch.save([1], f / "model.safetensors"), ValueError, "model.safetensors"),
    "newer": (lambda f: edit(f, lambda c: c.update(format_version=2)), ValueError, "version 2.*upgrade"),
    "odd version": (lambda f: edit(f, lambda c: c.update(format_version="x")), ValueError, "format version 'x'"),
    "no part": (lambda f: edit(f, lambda c: c.pop("config")), ValueError, "no part 'config'"),
    "no class": (lambda f: edit(f, lambda c: c["config"].pop("class")), ValueError, "cannot be made"),
    "option": (lambda f: edit(f, lambda c: c["config"].update(betas=1)), ValueError, r"MVAE has no option \['betas'\]"),
    "no option": (lambda f: edit(f, lambda c: c["config"].pop("latent_dim")), ValueError, "latent_dim"),
    "bad option": (lambda f: edit(f, lambda c: c["config"].update(latent_dim="2")), ValueError, "latent_dim"),
    "no items": (lambda f: edit(f, lambda c: c["config"].update(encoders={"class": "mapping"})), ValueError, "items"),
    "encoder": (
        lambda f: edit(f, lambda c: c.update(config=c["config"]["encoders"]["image"])),
        ValueError,
        "describes a MLPEncoder",
    ),
    "sites": (lambda f: edit(f, lambda c: c["model"]["sites"].pop("count")), ValueError, "modality 'count'"),
    "shared": (lambda f: edit(f, lambda c: c["shared"].update(a="b")), ValueError, "'a' is said to be 'b'"),
    "objective": (lambda f: edit(f, lambda c: c["objective"].update({"class": "os"})), ValueError, "'os'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(saved, name):
    _, folder = saved
    spoil, kind, message = BAD[name]
    spoil(folder)
    with pytest.raises(kind, match=message) as error:
        mm.load(folder)
    assert str(folder) in str(error.value)


def test_a_file_where_a_folder_belongs(saved, tmp_path):
    vae, folder = saved
    with pytest.raises(ValueError, match="is a file; expected the folder"):
        mm.load(folder / "config.json")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        vae.save(folder / "config.json")
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_missing_and_foreign_tensors_are_named(saved):
    _, folder = saved
    file = folder / "model.safetensors"
    tensors = load_file(file)
    first = next(n for n in tensors if "weight" in n)
    save_file({n: x for n, x in tensors.items() if n != first}, file)
    with pytest.raises(ValueError, match=f"has a parameter or buffer '{re.escape(first)}'.*not saved"):
        mm.load(folder)
    save_file({**tensors, "alien": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"'alien' was saved with shape \(2,\)"):
        mm.load(folder)


def test_loading_executes_nothing(saved, monkeypatch):
    """Names of modules and callables in a file are only looked up among known classes."""
    _, folder = saved
    marker = folder.parent / "executed"
    for evil in ("os.system", "builtins.eval", "antigravity", f"open({str(marker)!r}, 'w')"):
        for kind in (evil, "function", "object"):
            form = {"class": kind, "name": evil}
            edit(folder, lambda c, form=form: c["config"].update(prior=form))
            with pytest.raises(ValueError, match="known"):
                mm.load(folder)
    assert not marker.exists() and "antigravity" not in sys.modules


def test_an_infinite_option_is_refused(tmp_path):
    vae = mm.MVAE(*cases.networks(), latent_dim=2, rescale={"image": 2.0})
    vae.__dict__["_config"]["rescale"]["image"] = float("inf")  # what the constructor itself refuses
    with pytest.raises(ValueError, match="infinite or NaN"):
        vae.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_class_of_ones_own_without_config(tmp_path):
    class Mine(mm.MultimodalVAE):
        pass

    Mine(*cases.cells_programs()).save(tmp_path)
    with pytest.raises(ValueError, match=r"Mine, a class of your own.*Configurable"):
        mm.load(tmp_path)
