"""Networks chosen from data of every kind."""

from __future__ import annotations

import pytest
import torch

from pyro_mmvae.columns import Column
from pyro_mmvae.nn import (
    ConvDecoder,
    ConvEncoder,
    EmbeddingEncoder,
    MLPDecoder,
    MLPEncoder,
    SmallDecoder,
    TableEncoder,
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
    small = decoder is MLPDecoder and likelihood == "Normal" and x.dim() == 2  # few rows of real numbers
    expected_types = (encoder, SmallDecoder if small else decoder)
    assert (dec.likelihood.name, type(enc), type(dec)) == (likelihood, *expected_types)
    assert notes[name].startswith(likelihood) and encoder.__name__ in notes[name] and "\n" not in notes[name]
    filled = torch.nan_to_num(x) if x.is_floating_point() else x
    z = enc(filled).rsample()
    assert expected(dec(z)).shape[: x.dim()] == x.shape
    whole = torch.isfinite(x).reshape(len(x), -1).all(-1) if x.is_floating_point() else torch.ones(len(x)).bool()
    if whole.any():
        value = x[whole].float() if x.dtype == torch.bool else x[whole]
        assert torch.isfinite(dec(z[whole]).log_prob(value)).all()
    assert type(from_config(enc.config)) is encoder and type(from_config(dec.config)) is type(dec)


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
    assert encoders["a"].config["hidden"] == []
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


TABLE = [Column("crp", "normal", loc=5.0, scale=2.0), Column("stage", "ordinal", ("I", "II", "III"))]


@pytest.mark.parametrize(("rows", "decoder"), [(999, SmallDecoder), (1000, MLPDecoder)])
def test_a_table_gets_networks_of_its_columns_and_its_context(rows, decoder):
    cells = torch.stack([torch.randn(rows), torch.randint(3, (rows,)).float()], -1)
    age = Column("age", "normal", loc=50.0, scale=10.0)
    encoders, decoders, notes = default_networks({"blood": cells}, 2, columns={"blood": TABLE}, context=[age])
    enc, dec = encoders["blood"], decoders["blood"]
    assert (type(enc), type(dec), dec.likelihood.name) == (TableEncoder, decoder, "Columns")
    assert enc.covariates == dec.covariates == ("age",)
    assert notes["blood"].startswith("1 normal, 1 ordinal; TableEncoder")
    q = enc(cells, age=torch.full((rows,), 61.0))
    assert q.event_shape == (2,) and (q.base_dist.scale < 0.5).all()  # experts start sharp
    assert dec(torch.zeros(3, 2), age=torch.zeros(3)).mean.shape == (3, 2)


def test_a_table_of_another_width_than_its_columns_is_refused():
    with pytest.raises(ValueError, match=r"blood: expected cells \(B, 2\), one per column, got \(5, 3\)"):
        default_networks({"blood": torch.zeros(5, 3)}, 2, columns={"blood": TABLE})


def test_weight_decay_of_few_rows_follows_the_units_of_the_data():
    x = torch.randn(50, 3, dtype=torch.float64)
    decays = [default_networks({"a": k * x}, 2)[1]["a"].weight_decay for k in (1.0, 7.0)]
    assert decays[0] == pytest.approx(100 / 50 / float(x.var(correction=0)))
    assert decays[1] == pytest.approx(decays[0] / 49)  # loadings are 7 times as large


def test_dropout_of_few_rows_fades_as_rows_outnumber_the_columns_of_all_modalities():
    def rates(rows, width, mask=None):
        data = {"a": torch.randn(rows, 3), "b": torch.randn(rows, width)}
        encoders, decoders, notes = default_networks(data, 4, obs_mask=mask)
        assert "dropout (strength " in notes["a"]
        return encoders["a"].head.dropout.p, decoders["a"].net[0].dropout.p

    full = 3 / 46, 0.4 * 4 / 8
    assert rates(50, 47) == rates(50, 200) == pytest.approx(full)  # as many numbers in a row as there are rows, or more
    assert rates(200, 7) == pytest.approx([r * 10 / 200 for r in full])
    seen = torch.arange(200) < 40  # rows without "a" do not teach its networks
    assert rates(200, 7, {"a": seen}) == pytest.approx([r * 10 / 40 for r in full])
    table = default_networks({"blood": torch.ones(100, 2)}, 2, columns={"blood": TABLE})
    assert table[0]["blood"].head.dropout.p == pytest.approx(2 / 44 * 2 / 100)
    assert table[1]["blood"].net[0].dropout.p == pytest.approx(0.4 * 2 / 6 * 2 / 100)


def test_small_networks_are_rebuilt_from_their_configs():
    x = torch.randn(20, 3)
    encoders, decoders, _ = default_networks({"a": x}, 2)
    for network, given in ((encoders["a"], x), (decoders["a"], torch.randn(4, 2))):
        copy = from_config(network.config)
        copy.load_state_dict(network.state_dict())
        assert torch.equal(copy.eval()(given).mean, network.eval()(given).mean)
