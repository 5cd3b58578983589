"""Bad tables: each error names the frame, the column and the ids, and says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_mmvae.datasets import MultimodalDataset

NAN = float("nan")
from_frames = MultimodalDataset.from_frames
IDS = ["p1", "p2", "p3"]
GOOD = pd.DataFrame({"x": [1.5, 2.5, 3.5]}, index=IDS)


def table(values: Any, index: Any = None, name: Any = "x") -> pd.DataFrame:
    return pd.DataFrame({name: values}, index=index if index is not None else IDS)


@pytest.mark.parametrize(
    "frames, error, message",
    [
        ([GOOD], TypeError, "expected a mapping from modality names to DataFrames, got list"),
        ({}, ValueError, "at least one DataFrame"),
        ({1: GOOD}, TypeError, "names are strings, got 1"),
        ({"a": np.ones((3, 1))}, TypeError, r"frames\['a'\]: expected a pandas.DataFrame, got ndarray"),
        ({"a": GOOD.iloc[:0]}, ValueError, "is empty: 0 rows, 1 columns"),
        ({"a": GOOD[[]]}, ValueError, "is empty: 3 rows, 0 columns"),
        ({"a": table([1.5] * 5, list("ddeef"))}, ValueError, r"'d', 'e' are there more than once \(2 ids\)"),
        ({"a": table([1.5] * 10, list("ddeeffgghh"))}, ValueError, r"'d', 'e', 'f', \.\.\. are there more than once"),
        ({"a": table([1.5] * 3, ["p", None, "q"])}, ValueError, "1 rows have no id"),
        ({"a": GOOD, "b": table([1.5] * 3, list("uvw"))}, ValueError,
         r"frames\['b'\] shares no id with a: its index has 'u', 'v', 'w', theirs 'p1', 'p2', 'p3'"),
        ({"a": table([1.5] * 3, [11, 12, 13]), "b": table([1.5] * 3, ["12", "13", "14"])}, ValueError,
         r"its index has '12', '13', '14', theirs 11, 12, 13\. As text some are equal \('12' is not 12\)"),
        ({"a": GOOD, "b": table([1.5] * 3, ["P1 ", "P2", "P9"])}, ValueError, "differ by spaces or capitals only"),
        ({"a": GOOD, "b": table([1.5] * 3, list("uvw")), "c": table([1.5] * 3, list("vwx"))}, ValueError,
         "shares no id with a:"),
        ({"a": pd.DataFrame([[1.5, 2.5]] * 3, columns=["x", "x"])}, ValueError, "label 'x' is there more than once"),
        ({"a": pd.DataFrame([[1.5, 2.5]], columns=pd.MultiIndex.from_tuples([("u", "v"), ("u", "w")]))}, ValueError,
         r"its columns have 2 levels. Fix: frame.columns = frame.columns.map\('_'.join\)"),
        ({"a": table([1.5] * 3, name=2.5)}, TypeError, "column labels are strings or integers, got 2.5"),
        ({"a": table([1.5] * 3, name=True)}, TypeError, "column labels are strings or integers, got True"),
        ({"a": table([1.5, np.inf, 2.5])}, ValueError, r"frames\['a'\], column 'x', row 'p2': inf is infinite"),
        ({"a": table([1.5, 2.5, -1e39])}, ValueError, "row 'p3': .* beyond single precision"),
        ({"a": table(["u", "v", "w"])}, TypeError,
         r"column 'x' is text.*astype\('category'\).*to_numeric.*drop\(columns=column\)"),
        ({"a": table(["u", 1.5, None])}, TypeError, "column 'x' is text, or no number"),
        ({"a": table(np.array([1, 2, None], dtype=object))}, TypeError, "Python objects .*pd.to_numeric"),
        ({"a": table(pd.to_datetime(["2020-01-01"] * 3))}, TypeError, "dates or times .*Timedelta"),
        ({"a": table(pd.to_timedelta([1, 2, 3], unit="D"))}, TypeError, "dates or times"),
        ({"a": table(pd.arrays.SparseArray([0.0, 0.0, 1.5]))}, TypeError, "is sparse .*to_dense"),
        ({"a": table([1j, 2j, 3j])}, TypeError, "is text, or no number .complex128"),
        ({"a": table([NAN] * 3)}, ValueError, r"frames\['a'\]: nothing is observed, in none of its columns"),
    ],
    ids=lambda v: None,
)  # fmt: skip
def test_frames(frames: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_frames(frames)


def test_frames_tied_through_a_third_are_joined() -> None:
    ends = {"a": table([1.5] * 2, ["p", "q"]), "b": table([1.5] * 2, ["r", "s"]), "c": table([1.5] * 2, ["q", "r"])}
    assert len(from_frames(ends)) == 4


def test_columns_with_nothing_observed_are_dropped_by_name() -> None:
    frame = pd.DataFrame({"x": [1.5, 2.5], "void": [NAN, NAN], "none": [None, None], "c": pd.Categorical([NAN, NAN])})
    with pytest.warns(UserWarning, match=r"nothing is observed of column 'void', 'none', 'c' \(3 in all\): dropped"):
        ds = from_frames({"a": frame})
    assert ds.frames is not None and [c.name for c in ds.frames.columns["a"]] == ["x"]
    assert ds.frames.original["a"].columns.tolist() == ["x"]


@pytest.mark.parametrize("value, likelihood", [(2.5, "normal"), (7, "negative_binomial"), (True, "bernoulli")])
def test_a_constant_column_is_kept(value: Any, likelihood: str) -> None:
    ds = from_frames({"a": table([value] * 3)})
    assert ds.frames is not None and ds.frames.columns["a"][0].likelihood == likelihood
    assert ds.describe().columns.loc[("a", "x"), "note"] == "constant"


@pytest.mark.parametrize(
    "values, asked, error, message",
    [
        ([1.5] * 3, {"a": {"x": "gauss"}}, ValueError, "column 'x': unknown 'gauss'; known are normal, laplace"),
        ([1.5] * 3, {"b": "normal"}, ValueError, "no modality 'b'; there are a"),
        ([1.5] * 3, {"a": {"y": "normal"}}, ValueError, "'a' has no column 'y'; it has 'x'"),
        ([1.5] * 3, "normal", TypeError, "expected {modality: {column: likelihood}}, got str"),
        ([1.5, -2.5, 3.5], {"a": "log_normal"}, ValueError, "'p2': 'log_normal' is about positive numbers, got -2.5"),
        ([1, 2.5, 3], {"a": "poisson"}, ValueError, "row 'p2': 'poisson' is about whole numbers from 0 on, got 2.5"),
        ([0, 1, 2], {"a": "bernoulli"}, ValueError, "row 'p3': 'bernoulli' is about 0 and 1, got 2"),
        (pd.Categorical(list("uvw")), {"a": "normal"}, ValueError, "holds category cells and cannot be 'normal'"),
        (["u", "v", "w"], {"a": "ordinal"}, ValueError, "holds text cells and cannot be 'ordinal'. Fix: one of categ"),
    ],
    ids=lambda v: None,
)
def test_likelihoods(values: Any, asked: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_frames({"a": table(values)}, likelihoods=asked)


@pytest.mark.parametrize(
    "values, message",
    [
        ([1e30, -2e30, 3e29], r"frames\['a'\], column 'x': its cells are as large as 2e\+30.*frame\[column\] / 1e\+30"),
        ([1e-30, -2e-30, 3e-30], r"column 'x': its cells are as small as 2e-30.*frame\[column\] / 1e-30"),
        ([1e-25, NAN, 1e-25], r"as small as 1e-28"),  # constant: its floor is a thousandth of it
    ],
)
def test_real_cells_whose_squares_are_lost(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_frames({"a": table(values)})
    if min(values) > 0:
        from_frames({"a": table(values)}, likelihoods={"a": "log_normal"})  # logarithms of any size are good
    for fine in (1e12, 1e-12):
        from_frames({"a": table([fine, -2 * fine, fine])})


def test_cells_that_single_precision_can_hardly_tell() -> None:
    near = table([1e9, 1e9 + 1, 1e9 + 3.5])
    with pytest.warns(UserWarning, match=r"frames\['a'\]: cells of column 'x' \(1 in all\) differ") as said:
        from_frames({"a": near})
    assert [w.filename for w in said] == [__file__]  # it points to the call
    from_frames({"a": near - 1e9, "b": table([1e9, 1e9, 1e9])})  # no warning


def test_scale_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="scale: expected 'standard', 'robust' or None, got 'minmax'"):
        from_frames({"a": GOOD}, scale="minmax")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "context, error, message",
    [
        (table([50.0, NAN, NAN], name="age"), ValueError,
         r"context, column 'age': missing for 'p2', 'p3' \(2 rows\); covariates are given"),
        (table([50.0], ["p2"], "age"), ValueError, r"context: no row for 'p1', 'p3' \(2 of 3 rows\); its ids are 'p2'"),
        (table(["u", "v", "w"], name="site"), TypeError, r"context, column 'site' is text.*astype\('category'\)"),
        (table([50.0, np.inf, 60.0], name="age"), ValueError, "context, column 'age', row 'p2': inf is infinite"),
        (table([50.0] * 3, name=3), TypeError, "context: column 3 is given to networks by name"),
        (table([50.0] * 3, name="a"), ValueError, "a: both a modality and a covariate"),
        (table([50.0] * 3, ["p1", "p1", "p2"]), ValueError, "context: the index names each sample once, but 'p1' is"),
        ([1, 2, 3], TypeError, "context: expected a pandas.DataFrame, got list"),
    ],
    ids=lambda v: None,
)  # fmt: skip
def test_context(context: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_frames({"a": GOOD}, context=context)


TRAIN = from_frames(
    {"a": pd.DataFrame({"c": pd.Categorical(list("uvu")), "n": [2, 5, 9], "k": [1, 2, 3]}, index=IDS)},
    context=pd.DataFrame({"site": pd.Categorical(list("PQP"))}, index=IDS),
    likelihoods={"a": {"k": "categorical"}},
)


@pytest.mark.parametrize(
    "frame, context, error, message",
    [
        ({"c": ["u", "q"]}, ["P", "P"], ValueError, r"column 'c', row 1: unknown level 'q'; `like` has \['u', 'v'\]"),
        ({"k": [1, 4]}, ["P", "P"], ValueError, "column 'k', row 1: unknown level 4; known are 1, 2, 3"),
        ({"n": [1.5, 2]}, ["P", "P"], ValueError, "row 0: 'negative_binomial' is about whole numbers .*got 1.5"),
        ({"n": ["1", "2"]}, ["P", "P"], TypeError, "column 'n' is text"),
        ({"n": pd.Categorical([1, 2])}, ["P", "P"], TypeError, "is a category here and int64 in `like`"),
        ({"n": [1, 2]}, ["P", "R"], ValueError, "context, column 'site', row 1: unknown level 'R'"),
        ({"n": [1, 2]}, None, ValueError, "context: `like` has 'site', none came"),
        ({"n": [np.inf, 2]}, ["P", "P"], ValueError, "row 0: inf is infinite"),
    ],
    ids=lambda v: None,
)
def test_like(frame: Any, context: Any, error: type[Exception], message: str) -> None:
    given = None if context is None else pd.DataFrame({"site": context})
    with pytest.raises(error, match=message):
        from_frames({"a": pd.DataFrame(frame)}, context=given, like=TRAIN)


def test_like_is_a_data_set_from_frames() -> None:
    with pytest.raises(TypeError, match="like: expected a dataset made by from_frames, got one made of tensors"):
        from_frames({"a": GOOD}, like=MultimodalDataset({"a": torch.ones(3)}))
    with pytest.raises(TypeError, match="made by from_frames, got DataFrame"):
        from_frames({"a": GOOD}, like=GOOD)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`like` has no modality 'b'; it has a"):
        from_frames({"b": GOOD}, like=TRAIN)
    with pytest.raises(ValueError, match="with `like`, likelihoods are those of the other"):
        from_frames({"a": GOOD}, like=TRAIN, likelihoods={"a": "normal"})
    with pytest.raises(ValueError, match="context: column 'site' of `like` is missing"):
        from_frames({"a": pd.DataFrame({"n": [1]})}, like=TRAIN, context=pd.DataFrame({"ward": [1]}))
