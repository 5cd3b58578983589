"""Modules under free names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyro_mmvae.nn import NamedModules

NAMES = ["rna.x", "type", "keys", "train", "m_%2E", "a$$$b", "ümlaut", "with space", "%", "_modules", "forward"]


def make() -> NamedModules:
    return NamedModules({name: nn.Linear(1, i + 1) for i, name in enumerate(NAMES)})


def test_reads_as_a_mapping_in_order():
    nets = make()
    assert list(nets) == list(nets.keys()) == NAMES and len(nets) == len(NAMES)
    assert [net.out_features for net in nets.values()] == list(range(1, len(NAMES) + 1))
    assert all(nets[name] is net and name in nets for name, net in nets.items())
    assert "absent" not in nets and 3 not in nets and "m_type" not in nets
    assert dict(nets) == dict(nets.items())


@pytest.mark.parametrize("name", ["absent", "", 3, None])
def test_unknown_names(name):
    with pytest.raises(KeyError, match="not one of"):
        make()[name]


def test_state_dict_keys_are_stable_and_load_in_another_order():
    nets = make()
    keys = list(nets.state_dict())
    assert keys[0] == "m_rna%2Ex.weight" and all(key.count(".") == 1 and "$" not in key for key in keys)
    other = NamedModules({name: nn.Linear(1, NAMES.index(name) + 1) for name in reversed(NAMES)})
    other.load_state_dict(nets.state_dict())
    assert all(torch.equal(other[name].weight, nets[name].weight) for name in NAMES)


def test_is_a_module_like_any_other():
    nets = make().double()
    assert nets["keys"].weight.dtype == torch.float64
    assert not nets.eval()["train"].training
    twin = copy.deepcopy(nets)
    assert list(twin) == NAMES and twin["type"] is not nets["type"]
    assert bool(NamedModules({})) and len(NamedModules({})) == 0


@pytest.mark.parametrize("name", ["", 3, None])
def test_names_are_nonempty_strings(name):
    with pytest.raises(ValueError, match="non-empty string"):
        NamedModules({name: nn.Identity()})


def test_values_are_modules():
    with pytest.raises(TypeError, match=r"'a': expected an nn.Module, got function"):
        NamedModules({"a": lambda x: x})
