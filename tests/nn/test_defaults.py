"""Networks chosen from data of every kind."""

from __future__ import annotations

import pytest
import torch

from pyro_mmvae.nn import (
    ConvDecoder,
    ConvEncoder,
    EmbeddingEncoder,
    MLPDecoder,
    MLPEncoder,
    default_networks,
    expected,
    from_config,
)

NAN = float("nan")


def eye(*index: int) -> torch.Tensor:
    return torch.eye(4)[torch.tensor(index)]


CASES = {
    "label": (torch.tensor([0, 3, 1]), "Categorical", EmbeddingEncoder, MLPDecoder),
    "one_class": (torch.tensor([0, 0, 0]), "Categorical", EmbeddingEncoder, MLPDecoder),
    "tokens": (torch.tensor([[0, 3], [1, 1], [2, 2]]), "Categorical", EmbeddingEncoder, MLPDecoder),
    "many_labels": (torch.tensor([0, 500, 1]), "Categorical", EmbeddingEncoder, MLPDecoder),
    "count_table": (torch.tensor([[0, 300], [1, 1], [2, 2]]), "NegativeBinomial", MLPEncoder, MLPDecoder),
    "bool": (torch.tensor([[True, False], [True, True]]), "Bernoulli", MLPEncoder, MLPDecoder),
    "bits": (torch.tensor([[0.0, 1, 1], [0, 0, 0]]), "Bernoulli", MLPEncoder, MLPDecoder),
    "bit": (torch.tensor([0.0, 1, 1]), "Bernoulli", MLPEncoder, MLPDecoder),
    "one_hot": (eye(0, 2, 1), "OneHotCategorical", EmbeddingEncoder, MLPDecoder),
    "one_hot_grid": (torch.stack([eye(0, 1), eye(3, 3)]), "OneHotCategorical", EmbeddingEncoder, MLPDecoder),
    "one_hot_rows_missing": (
        torch.cat([eye(0, 2), torch.full((1, 4), NAN)]),
        "OneHotCategorical",
        EmbeddingEncoder,
        MLPDecoder,
    ),
    "float_counts": (torch.tensor([[0.0, 7.0], [1.0, 2.0]]), "NegativeBinomial", MLPEncoder, MLPDecoder),
    "fractions": (torch.rand(5, 3), "Normal", MLPEncoder, MLPDecoder),
    "reals": (torch.randn(5, 3), "Normal", MLPEncoder, MLPDecoder),
    "scalars": (torch.randn(5), "Normal", MLPEncoder, MLPDecoder),
    "image": (torch.rand(5, 1, 16, 20), "ContinuousBernoulli", ConvEncoder, ConvDecoder),
    "real_image": (torch.randn(5, 3, 16, 16), "Normal", ConvEncoder, ConvDecoder),
    "count_image": (torch.randint(0, 200, (5, 1, 16, 16)), "NegativeBinomial", ConvEncoder, ConvDecoder),
    "small_image": (torch.randn(5, 3, 8, 16), "Normal", MLPEncoder, MLPDecoder),
    "nothing": (torch.full((5, 3), NAN), "Normal", MLPEncoder, MLPDecoder),
}


@pytest.mark.parametrize("name", CASES)
def test_choice_is_made_and_said(name):
    x, likelihood, encoder, decoder = CASES[name]
    encoders, decoders, notes = default_networks({name: x}, 2)
    enc, dec = encoders[name], decoders[name]
    assert (dec.likelihood.name, type(enc), type(dec)) == (likelihood, encoder, decoder)
    assert notes[name].startswith(likelihood) and encoder.__name__ in notes[name] and "\n" not in notes[name]
    filled = torch.nan_to_num(x) if x.is_floating_point() else x
    z = enc(filled).rsample()
    assert expected(dec(z)).shape[: x.dim()] == x.shape
    whole = torch.isfinite(x).reshape(len(x), -1).all(-1) if x.is_floating_point() else torch.ones(len(x)).bool()
    if whole.any():
        value = x[whole].float() if x.dtype == torch.bool else x[whole]
        assert torch.isfinite(dec(z[whole]).log_prob(value)).all()
    assert type(from_config(enc.config)) is encoder and type(from_config(dec.config)) is decoder


def test_only_observed_entries_are_looked_at():
    x = torch.tensor([[0.0, 1.0], [1.0, -7.5], [NAN, 1.0]])
    seen = torch.tensor([[True, True], [True, False], [True, True]])
    encoders, decoders, notes = default_networks({"a": x}, 2, obs_mask={"a": seen})
    assert decoders["a"].likelihood.name == "Bernoulli"
    assert encoders["a"].mask and "sees which features are missing" in notes["a"]
    rows = torch.tensor([True, False, False])
    _, decoders, _ = default_networks({"a": x, "b": x}, 2, obs_mask={"a": rows, "b": None})
    assert decoders["a"].likelihood.name == "OneHotCategorical" and decoders["b"].likelihood.name == "Normal"


def test_missing_labels_may_hold_anything():
    label = torch.tensor([2, -1, 0])
    _, decoders, _ = default_networks({"y": label}, 2, obs_mask={"y": label >= 0})
    assert decoders["y"].likelihood.num_classes == 3
    with pytest.raises(ValueError, match=r"y: negative integers \(down to -1\).*obs_mask"):
        default_networks({"y": label}, 2)


def test_size_of_the_networks_follows_the_number_of_observed_rows():
    x = torch.randn(1500, 3)
    encoders, _, notes = default_networks({"a": x}, 2)
    assert encoders["a"].config["hidden"] == [256, 256] and encoders["a"].config["dropout"] == 0.0
    x[:600] = NAN
    encoders, _, notes = default_networks({"a": x}, 2)
    assert encoders["a"].config["hidden"] == [64] and encoders["a"].config["dropout"] == 0.1
    assert "for 900 rows" in notes["a"] and not encoders["a"].mask


def test_notes_say_what_should_be_looked_at():
    x = torch.cat([1000 * torch.randn(50, 2), torch.full((50, 1), 3.5)], -1)
    note = default_networks({"a": x}, 2)[2]["a"]
    assert "standardize" in note and "1 features are constant" in note


def test_decoders_have_their_own_likelihood_objects_and_data_stay():
    x = torch.randn(5, 3)
    before = x.clone()
    _, decoders, _ = default_networks({"a": x, "b": x}, 2)
    assert decoders["a"].likelihood is not decoders["b"].likelihood and torch.equal(x, before)


def test_errors():
    with pytest.raises(ValueError, match=r"a: obs_mask must be bool of shape \(5,\) or \(5, 3\)"):
        default_networks({"a": torch.zeros(5, 3)}, 2, obs_mask={"a": torch.ones(5, 1, dtype=torch.bool)})
    with pytest.raises(ValueError, match="obs_mask must be bool"):
        default_networks({"a": torch.zeros(5, 3)}, 2, obs_mask={"a": torch.ones(5)})
    for bad in ([1.0], torch.tensor(1.0)):
        with pytest.raises(TypeError, match="a: expected a tensor"):
            default_networks({"a": bad}, 2)
