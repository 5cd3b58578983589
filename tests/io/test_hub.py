"""The hub, with a folder on this machine in its place."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import pytest
import torch

import pyro_mmvae as mm
from tests.io import cases


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A module that keeps repositories as folders, with the calls of ``huggingface_hub`` that are used."""
    calls = []

    class HfApi:
        def create_repo(self, repo_id, *, private, exist_ok):
            name = repo_id if "/" in repo_id else f"someone/{repo_id}"
            calls.append(("create", name, private, exist_ok))
            (tmp_path / name).mkdir(parents=True, exist_ok=exist_ok)
            return types.SimpleNamespace(repo_id=name)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, commit_message))
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)

    def snapshot_download(repo_id, *, revision, allow_patterns):
        calls.append(("download", repo_id, revision, allow_patterns))
        return str(tmp_path / repo_id)

    module = types.ModuleType("huggingface_hub")
    module.HfApi, module.snapshot_download, module.calls, module.root = HfApi, snapshot_download, calls, tmp_path
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_there_and_back(hub):
    vae = cases.MODELS["MoPoE"]()
    name = vae.push_to_hub("digits", private=True)
    assert name == "someone/digits"
    assert hub.calls[0] == ("create", "someone/digits", True, True)
    assert sorted(f.name for f in (hub.root / name).iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = mm.from_pretrained(name, revision="v1")
    assert hub.calls[-1] == ("download", name, "v1", ["config.json", "model.safetensors"])
    data = cases.batch("MoPoE")
    assert torch.equal(again.posterior(data).mean, vae.posterior(data).mean)


def test_a_custom_story_is_given_again(hub):
    vae = cases.cells()
    name = vae.push_to_hub("lab/cells")
    card = (hub.root / name / "README.md").read_text()
    assert "story=story, guide=guide" in card and "rna, protein; covariates: batch_label" in card
    story, guide = cases.cells_programs()
    assert mm.from_pretrained(name, story=story, guide=guide).model is story


def test_the_card_says_what_the_model_is():
    card = mm.io.model_card(cases.MODELS["MoPoE"](), "lab/model")
    assert card.startswith("---\nlibrary_name: pyro_mmvae\n")
    for part in (
        "| image | (2, 3) | Normal |",
        "| count | (2,) | Poisson |",
        "- `z_image` (1,), private to image",
        "`ELBO(num_particles=1, kl='analytic', gradient='path')`",
        "missing at random",
        "mm.from_pretrained('lab/model')",
    ):
        assert part in card


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    vae = cases.MODELS["MVAE"]()
    for call in (lambda: vae.push_to_hub("x"), lambda: mm.from_pretrained("x")):
        with pytest.raises(ImportError, match=r"huggingface_hub is not installed.*pyro-mmvae\[hub\]"):
            call()


def test_the_upload_leaves_no_folder_behind(hub, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    cases.MODELS["MVAE"]().push_to_hub("a/b")
    assert list(Path(folder).iterdir()) == []
