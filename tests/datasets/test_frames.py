"""DataFrames in: the join, the likelihood of each column, and the very same cells out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_mmvae.columns import Column, fitted
from pyro_mmvae.datasets import Frames, MultimodalDataset

NAN = float("nan")
from_frames = MultimodalDataset.from_frames


def frames_of(ds: MultimodalDataset) -> Frames:
    assert ds.frames is not None
    return ds.frames


def mixed(n: int = 12) -> pd.DataFrame:
    """A column of every dtype, with gaps where the dtype has them."""
    rng = np.random.default_rng(0)
    gaps = np.arange(n) % 5 == 1
    counts = rng.poisson(4.0, n)
    return pd.DataFrame(
        {
            "float": np.where(gaps, NAN, rng.normal(size=n) * 1e3 + 1 / 3),
            "float32": rng.normal(size=n).astype(np.float32),
            "Float64": pd.array([None if g else x for g, x in zip(gaps, rng.normal(size=n), strict=True)], "Float64"),
            "int": counts * 10**16 + 1,  # more than a float64 can tell apart
            "int8": (counts - 4).astype(np.int8),
            "Int64": pd.array([None if g else int(x) for g, x in zip(gaps, counts, strict=True)], "Int64"),
            "gappy": np.where(gaps, NAN, counts),
            "bool": counts > 3,
            "boolean": pd.array([None if g else bool(x > 3) for g, x in zip(gaps, counts, strict=True)], "boolean"),
            "objects": np.array([None if g else bool(x > 4) for g, x in zip(gaps, counts, strict=True)], dtype=object),
            "category": pd.Categorical([None if g else "ABC"[x % 3] for g, x in zip(gaps, counts, strict=True)]),
            "ordered": pd.Categorical(["lo", "hi"] * (n // 2), categories=["lo", "mid", "hi"], ordered=True),
            "binned": pd.cut(rng.normal(size=n), [-9, -0.5, 0.5, 9]),
            7: np.arange(n, dtype=np.uint16),
        },
        index=pd.Index([f"s{i}" for i in range(n)], name="sample"),
    )


# ---- what comes in comes out


def test_cells_come_back_bit_by_bit() -> None:
    frame = mixed()
    before = frame.copy(deep=True)
    ds = from_frames({"a": frame})
    own = frames_of(ds)
    pd.testing.assert_frame_equal(own.original["a"], frame, check_exact=True)
    pd.testing.assert_frame_equal(own.to_frame("a", ds.data["a"]), frame, check_exact=True)  # through float32
    pd.testing.assert_frame_equal(own.to_frame("a", own.cells("a")), frame, check_exact=True)
    assert own.original["a"]["objects"].tolist() == frame["objects"].tolist()  # None stays None
    pd.testing.assert_frame_equal(frame, before, check_exact=True)
    assert own.original["a"].index.name == "sample"


@pytest.mark.parametrize("rows", [slice(3, 9), [5, 1, 1, 8], torch.arange(12) % 3 == 0], ids=["slice", "list", "mask"])
def test_rows_keep_their_cells(rows: Any) -> None:
    frame = mixed()
    ds = from_frames({"a": frame})[rows]
    own = frames_of(ds)
    expected = frame.iloc[rows.numpy() if isinstance(rows, torch.Tensor) else rows]
    pd.testing.assert_frame_equal(own.original["a"], expected, check_exact=True)
    pd.testing.assert_frame_equal(own.to_frame("a", ds.data["a"]), expected, check_exact=True)
    assert own.index.equals(expected.index) and len(own) == len(ds)


def test_other_numbers_come_in_the_dtypes_of_the_columns() -> None:
    frame = mixed()
    own = frames_of(from_frames({"a": frame}))
    made = own.to_frame("a", torch.full((12, 14), 1.4))
    assert made.dtypes.tolist() == frame.dtypes.tolist()
    assert made.columns.equals(frame.columns) and made.index.equals(frame.index)
    assert made["float"].tolist() == [float(np.float32(1.4))] * 12
    assert made["int"].tolist() == made["Int64"].tolist() == made["int8"].tolist() == [1] * 12  # rounded
    assert made["bool"].tolist() == made["objects"].tolist() == [True] * 12
    assert made["category"].tolist() == ["B"] * 12 and made["ordered"].tolist() == ["mid"] * 12
    far = own.to_frame("a", torch.full((12, 14), -1e30, dtype=torch.float64))
    assert far["int8"].tolist() == [-128] * 12 and far[7].tolist() == [0] * 12
    assert far["category"].tolist() == ["A"] * 12


def test_gaps_make_integers_and_bools_nullable() -> None:
    own = frames_of(from_frames({"a": mixed()}))
    made = own.to_frame("a", np.full((12, 14), NAN))
    assert [str(made[c].dtype) for c in ("int", "int8", 7, "bool")] == ["Int64", "Int8", "UInt16", "boolean"]
    assert made.isna().to_numpy().all()


def test_keep_puts_known_cells_into_a_frame() -> None:
    frame = mixed()
    own = frames_of(from_frames({"a": frame}))
    made = own.to_frame("a", torch.ones(12, 14))
    kept = torch.zeros(12, 14, dtype=torch.bool)
    kept[:6] = True
    full = own.keep("a", made, kept)
    assert full.dtypes.tolist() == frame.dtypes.tolist()
    pd.testing.assert_frame_equal(full.iloc[6:], made.iloc[6:])
    known = frame.notna()
    for c in frame.columns:
        top = known[c].to_numpy()[:6]
        assert full[c].iloc[:6][top].tolist() == frame[c].iloc[:6][top].tolist()
        assert full[c].iloc[:6][~top].tolist() == made[c].iloc[:6][~top].tolist()  # nothing is known there
    with pytest.raises(ValueError, match=r"'a': expected shape \(12, 14\), got \(12, 14\) and kept \(12,\)"):
        own.keep("a", made, kept[:, 0])
    with pytest.raises(ValueError, match=r"'a': expected cells of shape \(12, 14\), got \(3, 2\)"):
        own.to_frame("a", torch.ones(3, 2))
    with pytest.raises(ValueError, match="no table 'b'; there are a"):
        own.to_frame("b", torch.ones(3, 2))


# ---- the join


def test_outer_join_in_order_of_first_appearance() -> None:
    a = pd.DataFrame({"x": [1.5, 2.5], "y": [NAN, 3.5]}, index=["p2", "p1"])
    b = pd.DataFrame({"n": [1, 0, 5]}, index=["p3", "p1", "p0"])
    ds = from_frames({"a": a, "b": b})
    own = frames_of(ds)
    assert own.index.tolist() == ["p2", "p1", "p3", "p0"]
    assert ds.obs_mask["a"].tolist() == [[True, False], [True, True], [False, False], [False, False]]
    assert ds.obs_mask["b"].tolist() == [False, True, True, True]
    assert ds.data["b"][1:].tolist() == [[0.0], [1.0], [5.0]] and ds.data["a"].dtype == torch.float32
    assert str(own.original["b"]["n"].dtype) == "Int64"  # absent rows are gaps
    pd.testing.assert_frame_equal(own.original["b"].loc[b.index].astype("int64"), b)
    pd.testing.assert_frame_equal(own.original["a"], a.reindex(own.index))


def test_frames_follow_the_rows_everywhere() -> None:
    ds = from_frames({"a": mixed(), "b": pd.DataFrame({"v": np.arange(12) / 7}, index=mixed().index[::-1])})
    train, test = ds.split(0.5, seed=1)
    whole = frames_of(ds)
    for part in (train, test, ds.complete_cases(), ds.to(dtype=torch.float64), ds[2:5]):
        own = frames_of(part)
        assert part.obs_mask["b"].all() and len(own) == len(part)
        np.testing.assert_allclose(
            part.data["b"][:, 0], own.original["b"]["v"].to_numpy(), rtol=1e-6
        )  # the rounding of float32
        assert own.original["b"]["v"].tolist() == whole.original["b"].loc[own.index, "v"].tolist()
    assert not set(frames_of(train).index) & set(frames_of(test).index)
    assert frames_of(ds.complete_cases()).original["a"].notna().to_numpy().all()
    assert MultimodalDataset({"a": torch.ones(3)})[1:].frames is None


@pytest.mark.parametrize("level", ["modality", "feature"])
def test_hidden_cells_are_gone_from_the_frames(level: Any) -> None:
    ds = from_frames({"a": mixed(), "b": mixed()[["float32"]]})
    hidden = ds.hide(0.4, seed=3, level=level)
    for m in ("a", "b"):
        seen = hidden.obs_mask[m].reshape(12, -1).expand(12, ds.data[m].shape[1]).numpy()
        known = frames_of(hidden).original[m].notna().to_numpy()
        assert known.tolist() == seen.tolist() and known.sum() < frames_of(ds).original[m].notna().to_numpy().sum()
    assert frames_of(ds).original["b"].notna().to_numpy().all()


# ---- likelihoods


def test_likelihood_by_dtype() -> None:
    own = frames_of(from_frames({"a": mixed()}))
    assert {c.name: c.likelihood for c in own.columns["a"]} == {
        "float": "normal",
        "float32": "normal",
        "Float64": "normal",
        "int": "negative_binomial",
        "int8": "normal",  # some are negative
        "Int64": "negative_binomial",
        "gappy": "normal",  # 9 whole numbers are not enough to tell
        "bool": "bernoulli",
        "boolean": "bernoulli",
        "objects": "bernoulli",
        "category": "categorical",
        "ordered": "ordinal",
        "binned": "ordinal",
        7: "negative_binomial",
    }
    levels = {c.name: c.levels for c in own.columns["a"] if c.levels}
    assert levels["category"] == ("A", "B", "C") and levels["ordered"] == ("lo", "mid", "hi")
    assert levels["binned"] == ("(-9.0, -0.5]", "(-0.5, 0.5]", "(0.5, 9.0]")


@pytest.mark.parametrize(
    "values, likelihood",
    [
        ([0, 1, 1, 0], "bernoulli"),
        ([0, 0, 0, 0], "bernoulli"),
        ([0.0, 1.0, NAN, 1.0], "bernoulli"),
        ([0.0, 0.0, NAN], "normal"),
        ([0, 2, 1], "negative_binomial"),
        ([1, 2] * 5, "categorical"),
        ([1, 2] * 4, "negative_binomial"),
        ([1, 2, 3] * 5, "negative_binomial"),
        ([-1, 1] * 5, "normal"),
        ([1.0, 2.0, 5.0] * 4, "normal"),
        ([1.0, 2.0, 5.0] * 4 + [NAN], "negative_binomial"),
        ([1.0, 2.0, 5.5] * 4 + [NAN], "normal"),
        ([-1.0, 2.0, 5.0] * 4 + [NAN], "normal"),
        ([1.0, 2.0] * 5 + [NAN], "categorical"),
        (range(1000), "negative_binomial"),
    ],
    ids=str,
)
def test_likelihood_by_values(values: Any, likelihood: str) -> None:
    own = frames_of(from_frames({"a": pd.DataFrame({"x": list(values)})}))
    assert own.columns["a"][0].likelihood == likelihood
    if likelihood == "categorical":
        assert own.columns["a"][0].levels == (1, 2)


def test_likelihoods_on_request() -> None:
    frame = pd.DataFrame({"x": [1, 3, 9], "y": [0.5, 1.5, 2.5], "t": ["b", "a", None]})
    frame["c"] = pd.Categorical(list("uvu"))
    asked = {"a": {"x": "categorical", "y": "log_normal", "t": "categorical", "c": "ordinal"}, "b": "student_t"}
    ds = from_frames({"a": frame, "b": frame[["x", "y"]]}, likelihoods=asked)
    own = frames_of(ds)
    assert own.columns["a"] == (
        Column("x", "categorical", (1, 3, 9)),
        Column("y", "log_normal"),
        Column("t", "categorical", ("a", "b")),
        Column("c", "ordinal", ("u", "v")),
    )
    assert [c.likelihood for c in own.columns["b"]] == ["student_t"] * 2
    assert ds.data["a"][:, 0].tolist() == [0, 1, 2] and ds.data["a"][:2, 2].tolist() == [1, 0]
    made = own.to_frame("a", torch.tensor([[2.0, 1.0, 0.0, 1.0]]).expand(3, 4))
    assert made.dtypes.tolist() == frame.dtypes.tolist()
    assert made.loc[0].tolist() == [9, 1.0, "a", "v"]
    pd.testing.assert_frame_equal(own.original["a"], frame)


def test_scale_is_remembered_and_cells_keep_their_units() -> None:
    ds = from_frames({"a": pd.DataFrame({"x": [1000.5, 3000.5]})}, scale="robust")
    assert frames_of(ds).scale == frames_of(ds[:1]).scale == "robust"
    assert ds.data["a"].tolist() == [[1000.5], [3000.5]]
    column = fitted(frames_of(ds).columns["a"], ds.data["a"], ds.obs_mask["a"], "standard")[0]
    assert (column.loc, column.scale) == (2000.5, 1000.0)


def test_a_series_is_one_column() -> None:
    own = frames_of(from_frames({"a": pd.Series([1.5, 2.5]), "b": pd.Series([1.5, 2.5], name="x")}))
    assert [own.columns[m][0].name for m in ("a", "b")] == ["a", "x"]


# ---- context


def test_context_under_its_own_names() -> None:
    frame = pd.DataFrame({"x": [1.5, 2.5]}, index=["b", "a"])
    context = pd.DataFrame(
        {"age": [50, 60, 70], "male": [True, False, True], "site": pd.Categorical(["Y", "X", "X"])}, index=list("abc")
    )
    ds = from_frames({"a": frame}, context=context)
    assert ds.covariates == ("age", "male", "site")
    assert ds.data["age"].tolist() == [60.0, 50.0] and ds.data["male"].tolist() == [0.0, 1.0]
    assert ds.data["site"].tolist() == [0, 1] and ds.data["site"].dtype == torch.int64
    assert frames_of(ds).context == (
        Column("age", "normal"), Column("male", "bernoulli"), Column("site", "categorical", ("X", "Y"))
    )  # fmt: skip
    assert frames_of(ds[1:]).context == frames_of(ds).context


# ---- the columns of another data set


def test_like_takes_columns_order_levels_and_modalities() -> None:
    a = pd.DataFrame({"x": [1, 2, 9], "c": pd.Categorical(["u", "v", "w"]), "k": [True, False, True]})
    b = pd.DataFrame({"y": [0.5, 1.5, 2.5], "n": [3, 4, 9]})
    context = pd.DataFrame({"site": pd.Categorical(["P", "Q", "P"])})
    train = from_frames({"a": a, "b": b}, context=context, scale="robust")
    new = pd.DataFrame({"k": [NAN, 1.0], "c": ["w", None], "x": [4.0, NAN], "z": [1, 2]}, index=[7, 8])
    with pytest.warns(UserWarning, match=r"frames\['a'\]: `like` has no column 'z' \(1 in all\): dropped"):
        test = from_frames({"a": new}, context=pd.DataFrame({"site": ["Q", "Q"]}, index=[7, 8]), like=train)
    own = frames_of(test)
    assert own.columns == frames_of(train).columns and own.context == frames_of(train).context
    assert own.scale == "robust" and test.modalities == ("a", "b")
    assert test.data["site"].tolist() == [1, 1]
    assert test.data["a"][0, :2].tolist() == [4, 2] and not test.obs_mask["b"].any()
    assert test.obs_mask["a"].tolist() == [[True, True, False], [False, False, True]]
    full = own.to_frame("b", torch.ones(2, 2))
    assert full.dtypes.tolist() == b.dtypes.tolist() and full.index.tolist() == [7, 8]
    made = own.to_frame("a", torch.ones(2, 3))
    assert made["c"].dtype == a["c"].dtype and made["x"].dtype == new["x"].dtype  # numbers come back as they came


def test_like_with_a_column_that_is_missing() -> None:
    train = from_frames({"a": pd.DataFrame({"x": [0.5, 1.5], "n": [3, 9], "b": [True, False]})})
    test = from_frames({"a": pd.DataFrame({"x": [0.25]}, index=["new"])}, like=train)
    assert test.obs_mask["a"].tolist() == [[True, False, False]]
    full = frames_of(test).to_frame("a", torch.tensor([[0.25, 4.0, 1.0]]))
    assert full.dtypes.astype(str).tolist() == ["float64", "int64", "bool"]
    assert full.loc["new"].tolist() == [0.25, 4, True]
    zeros = frames_of(test).to_frame("a", torch.zeros(1, 3))
    assert zeros.loc["new"].tolist() == [0.0, 0, False]


def test_labels_are_aligned_by_their_index() -> None:
    frame = pd.DataFrame({"x": [1.5, 2.5]}, index=["b", "a"])
    ds = from_frames({"a": frame}, labels=pd.Series([1, 2, 3], index=["a", "b", "c"]))
    assert ds.labels.tolist() == [2, 1]
    assert from_frames({"a": frame}, labels=[5, 6]).labels == [5, 6]
    with pytest.raises(ValueError, match="labels: its index has no 'b'"):
        from_frames({"a": frame}, labels=pd.Series([1], index=["a"]))
