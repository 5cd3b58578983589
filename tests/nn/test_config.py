"""Configs: what they hold, what they rebuild, what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from pyro_mmvae import nn as mmnn
from pyro_mmvae.nn.config import Configurable, from_config, register_function, to_json


class Box(Configurable, nn.Module):
    def __init__(self, content, size=(1, 2), *, label=None):
        super().__init__()
        self.content, self.size, self.label = content, size, label


class BigBox(Box):
    def __init__(self, width):
        super().__init__(content=None, size=(width, width))


def test_defaults_are_filled_in_and_the_result_is_json():
    config = Box(np.float32(0.5), label="x").config
    assert config == {"class": f"{__name__}.Box", "content": 0.5, "size": [1, 2], "label": "x"}
    assert json.loads(json.dumps(config)) == config


def test_a_config_is_a_snapshot():
    sizes = [1, 2]
    box = Box(None, sizes)
    sizes.append(3)
    box.config["size"].append(4)
    assert box.config["size"] == [1, 2]


def test_a_subclass_keeps_its_own_arguments():
    assert BigBox(3).config == {"class": f"{__name__}.BigBox", "width": 3}
    again = from_config(BigBox(3).config)
    assert isinstance(again, BigBox) and again.size == (3, 3)


def test_nested_objects_lists_and_mappings():
    box = Box({"type": Box(1), "rna.x": [Box(2), None]}, size=mmnn.Binomial(4))
    again = from_config(json.loads(json.dumps(box.config)))
    assert again.content["type"].content == 1 and again.content["rna.x"][0].content == 2
    assert isinstance(again.size, mmnn.Binomial) and again.size.total_count == 4
    assert again.config == box.config


def test_a_mapping_may_have_the_key_class_or_other_keys():
    content = {"class": 10, "other": Box(1)}
    again = from_config(json.loads(json.dumps(Box(content, {1: "a"}).config)))
    assert again.content["class"] == 10 and again.content["other"].content == 1 and again.size == {1: "a"}


def test_functions_and_classes_by_name():
    box = Box(nn.SiLU, mmnn.LaplaceHead)
    assert box.config["content"] == {"class": "function", "name": "SiLU"}
    again = from_config(box.config)
    assert again.content is nn.SiLU and again.size is mmnn.LaplaceHead


@pytest.mark.parametrize("content", [lambda x: x, nn.Linear(2, 2), torch.zeros(2), {1, 2}])
def test_what_json_cannot_say_is_marked_and_refused(content):
    config = json.loads(json.dumps(Box({"deep": [content]}).config))
    assert config["content"]["deep"][0]["class"] is None
    with pytest.raises(ValueError, match=r"config.content.deep\[0\] was .* construct the object in Python"):
        from_config(config)


def test_unknown_names_are_refused_and_nothing_is_imported():
    with pytest.raises(ValueError, match=r"no class 'os.system' is known"):
        from_config({"class": "os.system", "command": "true"})
    with pytest.raises(ValueError, match="'system' is not known"):
        from_config({"class": f"{__name__}.Box", "content": {"class": "function", "name": "system"}})
    with pytest.raises(ValueError, match=r"MLPEncoder has no option \['widths'\]"):
        from_config({"class": "MLPEncoder", "shape": 2, "latent_dim": 1, "widths": [3]})
    for bad in ([], "MLPEncoder", {"shape": 2}):
        with pytest.raises(TypeError, match="a mapping with a"):
            from_config(bad)


def test_constructors_must_name_their_arguments():
    with pytest.raises(TypeError, match="names every argument"):

        class Loose(Configurable):
            def __init__(self, **kwargs):
                pass


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(ValueError, match="Two configurable classes"):
        type("MLPEncoder", (Configurable,), {"__module__": "pyro_mmvae.nn.other"})


def test_registered_functions():
    register_function("log1p", torch.log1p)
    with pytest.raises(ValueError, match="stands for"):
        register_function("log1p", torch.sqrt)


def test_an_error_in_the_constructor_is_its_own():
    with pytest.raises(TypeError, match="Box: missing"):
        Box()


def test_a_misspelt_option_names_the_class_and_what_it_takes():
    with pytest.raises(TypeError, match=r"Box: .*'sise'\. Its arguments: content, size, label\."):
        Box(1, sise=2)


def test_plain_values_stay():
    assert to_json([1, 2.5, "a", None, True, (3,)]) == [1, 2.5, "a", None, True, [3]]
