"""Bad options get a clear error, and change nothing."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import nn

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.training import fit
from tests.training import cases

QUIET = {"progress": False, "seed": 0}


ERRORS = {
    "batch_size 0": ({"batch_size": 0}, ValueError, "batch_size"),
    "batch_size float": ({"batch_size": 8.0}, TypeError, "batch_size"),
    "negative epochs": ({"epochs": -1}, ValueError, "epochs"),
    "epochs True": ({"epochs": True}, TypeError, "epochs"),
    "lr 0": ({"lr": 0.0}, ValueError, "lr"),
    "lr NaN": ({"lr": float("nan")}, ValueError, "lr"),
    "clip_norm negative": ({"clip_norm": -1.0}, ValueError, "clip_norm"),
    "seed float": ({"seed": 0.5}, TypeError, "seed"),
    "patience without validation": ({"patience": 3}, ValueError, "patience.*validation=0.1"),
    "patience 0": ({"patience": 0, "validation": 0.1}, ValueError, "patience"),
    "fraction 1": ({"validation": 1.0}, ValueError, "validation"),
    "fraction too small": ({"validation": 0.001}, ValueError, "empty"),
    "validation of another kind": ({"validation": {"a": torch.zeros(2)}}, TypeError, "validation.*MultimodalDataset"),
    "optimizer instance": ({"optimizer": torch.optim.SGD([torch.zeros(1)], 0.1)}, TypeError, "optimizer.*function"),
    "Pyro's optimizer": ({"optimizer": pyro.optim.Adam({"lr": 0.1})}, TypeError, "optimizer.*SVI"),
    "scheduler of another kind": ({"scheduler": 3}, TypeError, "scheduler.*function"),
    "a single callback": ({"callbacks": print}, TypeError, "callbacks"),
    "checkpoint in no folder": ({"checkpoint": "missing-folder/x.ckpt"}, ValueError, "missing-folder"),
    "resume from nothing": ({"resume": "missing.ckpt"}, FileNotFoundError, "missing.ckpt"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    options, kind, match = ERRORS[case]
    vae = cases.vae()
    before = cases.weights(vae)
    with pytest.raises(kind, match=match):
        fit(vae, cases.data(), **{"progress": False, **options})
    assert cases.differing(before, cases.weights(vae)) == []


def test_errors_of_vae_and_data():
    with pytest.raises(TypeError, match=r"ds: expected a MultimodalDataset, got dict"):
        fit(cases.vae(), {"a": torch.zeros(2, 2)}, progress=False)
    with pytest.raises(TypeError, match=r"vae.*without \['model', 'guide', 'objective'\]"):
        fit(nn.Linear(1, 1), cases.data(), progress=False)
    vae = cases.vae()
    vae.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        fit(vae, cases.data(), progress=False)
    with pytest.raises(ValueError, match=r"0 rows|no rows|empty"):
        MultimodalDataset({"a": torch.zeros(0, 2)})
    with pytest.raises(ValueError, match=r"unknown keys.*'c'"):
        fit(cases.vae(), MultimodalDataset({"c": torch.zeros(3, 2)}), progress=False)
