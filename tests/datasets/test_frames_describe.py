"""What ``describe`` says, against counts made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_mmvae.datasets import MultimodalDataset

NAN = float("nan")


def described() -> MultimodalDataset:
    a = pd.DataFrame(
        {
            "real": [1.5, 2.5, NAN, 6.5],
            "class": pd.Categorical(["u", "v", "u", None], categories=["u", "v", "w"]),
            "flag": [True, True, False, True],
        },
        index=list("pqrs"),
    )
    b = pd.DataFrame({"fixed": [3.25, 3.25]}, index=["q", "t"])
    context = pd.DataFrame({"age": [50.0, 60.0, 70.0, 80.0, 90.0]}, index=list("pqrst"))
    return MultimodalDataset.from_frames({"a": a, "b": b}, context=context)


def test_columns() -> None:
    table = described().describe().columns
    assert table.index.tolist() == [("a", "real"), ("a", "class"), ("a", "flag"), ("b", "fixed")]
    assert table["likelihood"].tolist() == ["normal", "categorical", "bernoulli", "normal"]
    assert table["observed"].tolist() == [0.6, 0.6, 0.8, 0.4]
    assert table.loc[("a", "real"), "mean"] == 3.5 and table.loc[("a", "flag"), "mean"] == 0.75
    assert table.loc[("a", "real"), "sd"] == pytest.approx(np.std([1.5, 2.5, 6.5]))
    assert table.loc[("a", "class"), "levels"] == "u (2), v (1), w (0)"
    assert table["note"].tolist() == ["", "never observed: 'w'", "", "constant"]


def test_context_and_patterns() -> None:
    found = described().describe()
    assert found.context.loc["age", ["mean", "observed"]].tolist() == [70.0, 1.0]
    assert found.patterns.to_dict("list") == {
        "a": [True, False, True], "b": [False, True, True], "rows": [3, 1, 1], "share": [0.6, 0.2, 0.2]
    }  # fmt: skip


def test_it_follows_rows_and_hiding() -> None:
    ds = described()
    assert ds[:2].describe().columns["observed"].tolist() == [1.0, 1.0, 1.0, 0.5]
    hidden = ds.hide(0.5, level="feature", seed=0)
    seen = [mask.reshape(5, -1).double().mean(0).tolist() for mask in hidden.obs_mask.values()]
    assert hidden.describe().columns["observed"].tolist() == seen[0] + seen[1]


@pytest.mark.parametrize(
    "values, note",
    [
        ([1.0, 2.0, 7.0, 9.0, 30.0, 50.0] * 2 + [NAN], "floats that are whole numbers with gaps, read as integers"),
        ([0.0, 1.0, NAN], "floats that are 0 or 1, read as bools"),
        (np.array([True, None, False], dtype=object), "objects that are bools"),
        (list(range(2000, 2020)), "varies less than counts do; 'normal' may fit better"),
        ([1, 5, 9] * 4, "3 different values; a category if they are classes"),
        ([1, 2] * 5, "two numbers, read as classes"),
        ([4, 4, 4], "constant"),
    ],
    ids=lambda v: None,
)
def test_notes(values: object, note: str) -> None:
    ds = MultimodalDataset.from_frames({"a": pd.DataFrame({"x": values})})
    assert ds.describe().columns.loc[("a", "x"), "note"] == note


def test_the_text_has_it_all() -> None:
    text = repr(described().describe())
    for part in ("5 rows", "a: 3 columns", "u (2), v (1), w (0)", "constant", "context, given for every row", "60%"):
        assert part in text
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 40)), columns=[f"g{i}" for i in range(40)])
    wide["g30"] = wide["g31"] = 2.5
    text = repr(MultimodalDataset.from_frames({"a": wide}).describe())
    assert "a: 40 columns, the first 12" in text and "in all: 40 normal" in text and "constant: g30, g31" in text


def test_tensor_data_sets_have_a_row_per_modality() -> None:
    x = torch.ones(4, 2, 3)
    x[0] = NAN
    ds = MultimodalDataset({"image": x, "label": torch.arange(4)}, covariates={"c": torch.ones(4)})
    found = ds.describe()
    assert found.columns["observed"].tolist() == [0.75, 1.0] and found.columns["mean"].tolist() == [1.0, 1.5]
    assert found.columns["note"].tolist() == ["shape (2, 3), float32", "shape (), int64"]
    assert found.context.index.tolist() == ["c"] and "4 rows" in repr(found)
