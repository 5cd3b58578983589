"""Completed tables from draws that are known: means, spreads, intervals, classes, dtypes."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae.inference import Completed
from pyro_mmvae.inference import completed as module
from pyro_mmvae.inference._intervals import central, student_quantile
from pyro_mmvae.inference.completed import Gaps

NAN = float("nan")
KINDS = ["real", "count", "flag", "class", "order", "rate"]


def table() -> pd.DataFrame:
    """One row that is known, and one that is a gap, of each kind of column."""
    return pd.DataFrame(
        {
            "real": [0.1, NAN, 2.0],
            "count": pd.array([3, None, 4], "Int64"),
            "flag": pd.array([True, None, False], "boolean"),
            "class": pd.Categorical(["b", None, "c"], categories=["a", "b", "c"]),
            "order": pd.Categorical(["lo", None, "hi"], categories=["lo", "mid", "hi"], ordered=True),
            "rate": [0.5, NAN, 4.0],
        },
        index=["p", "q", "r"],
    )


DRAWS = torch.tensor(
    [
        [1.0, 0.0, 1.0, 2.0, 0.0, 1.0],
        [2.0, 5.0, 0.0, 1.0, 2.0, 2.0],
        [4.0, 6.0, 1.0, 2.0, 2.0, 4.0],
        [5.0, 7.0, 0.0, 2.0, 1.0, 5.0],
    ]
)
MEANS = torch.tensor([3.0, 4.4, 0.3, 2.0, 2.0, 3.0])


def completed(draws: torch.Tensor = DRAWS) -> Completed:
    kinds = {"rate": "log_normal", "count": "poisson"}
    ds = mm.MultimodalDataset.from_frames({"t": table()}, likelihoods={"t": kinds})
    return Completed(ds.frames, {"t": Gaps(torch.tensor([False, True, False])[:, None].expand(3, 6), draws, MEANS)})


def gap(frame: pd.DataFrame) -> list[object]:
    assert list(frame) == KINDS and list(frame.index) == ["p", "q", "r"]
    return frame.loc["q"].tolist()


def test_means_by_kind() -> None:
    mean = completed().mean["t"]
    # mean, nearest whole number, more probable value, most frequent classes, mean
    assert gap(mean) == [3.0, 4, False, "c", "hi", 3.0]
    assert mean.dtypes.equals(table().dtypes)
    pd.testing.assert_frame_equal(mean.loc[["p", "r"]], table().loc[["p", "r"]], check_exact=True)


def test_standard_deviations_by_kind() -> None:
    real, count, flag, *classes, rate = gap(completed().sd["t"])
    assert real == pytest.approx(math.sqrt((4 + 1 + 1 + 4) / 4))
    assert count == pytest.approx(math.sqrt((4.4**2 + 0.6**2 + 1.6**2 + 2.6**2) / 4))
    assert flag == pytest.approx(math.sqrt(0.3 * 0.7)) and rate == pytest.approx(math.sqrt(10 / 4))
    assert all(math.isnan(x) for x in classes)
    assert (completed().sd["t"].loc[["p", "r"]] == 0).all(axis=None)


def test_interval_ends_by_kind() -> None:
    low, high = completed().interval(0.5)  # ranks 1.25 and 3.75 of 4
    assert gap(low["t"])[:3] == [pytest.approx(1.25), 0, False]
    assert gap(high["t"])[:3] == [pytest.approx(4.75), 7, True]
    assert [gap(x["t"])[4] for x in (low, high)] == ["lo", "hi"]  # levels, not numbers between them
    assert pd.isna(gap(low["t"])[3]) and pd.isna(gap(high["t"])[3])  # unordered classes have no ends
    assert low["t"].dtypes.equals(table().dtypes)
    assert (low["t"].loc["p"] == table().loc["p"]).all() and (high["t"].loc["r"] == table().loc["r"]).all()


def test_intervals_of_few_draws_reach_beyond_them() -> None:
    low, high = completed().interval(0.95)  # 4 draws reach 0.6
    reach = 2.7764451 * math.sqrt(10 / 4)  # t of 4 degrees of freedom
    assert gap(low["t"])[0] == pytest.approx(3 - reach) and gap(high["t"])[0] == pytest.approx(3 + reach)
    spread = math.sqrt(sum((math.log(x) - math.log(3)) ** 2 for x in (1, 2, 4, 5)) / 4) * 2.7764451
    assert gap(low["t"])[5] == pytest.approx(3 * math.exp(-spread))  # positive, on the scale of logarithms
    assert gap(high["t"])[5] == pytest.approx(3 * math.exp(spread))
    assert gap(low["t"])[1] == 0 and gap(high["t"])[1] == 7  # counts end at the farthest draws


def test_quantiles_of_student() -> None:
    stats = pytest.importorskip("scipy.stats")
    for df in (1, 2, 3, 4, 7, 30, 101):
        for q in (0.6, 0.95, 0.999):
            assert student_quantile(q, df) == pytest.approx(stats.t.ppf(q, df), rel=1e-9)


@pytest.mark.parametrize("count", [19, 20, 39, 100])
def test_ends_are_ranks(count: int) -> None:
    """Uniform order statistics: a share (S + 1) q of the probability lies below rank q."""
    draws = torch.rand(count, 4000, dtype=torch.float64)
    real = torch.ones(4000, dtype=torch.bool)
    low, high = central(draws, torch.full((4000,), 0.5), 0.9, real=real, positive=~real)
    error = math.sqrt(0.05 * 0.95 / count / 4000) * 4
    assert abs(low.mean() - 0.05) < error and abs(high.mean() - 0.95) < error


def test_probabilities() -> None:
    full = completed()
    classes = full.probabilities("t", "class")
    assert list(classes) == ["a", "b", "c"] and classes.loc["q"].tolist() == [0.0, 0.25, 0.75]
    assert classes.loc["p"].tolist() == [0, 1, 0] and classes.loc["r"].tolist() == [0, 0, 1]
    assert full.probabilities("t", "order").loc["q"].tolist() == [0.25, 0.25, 0.5]
    flags = full.probabilities("t", "flag")
    assert list(flags) == [False, True] and flags.loc["q"].tolist() == pytest.approx([0.7, 0.3])
    assert flags.loc["p"].tolist() == [0, 1]
    wrong = {("x", "class"): "no modality 'x'", ("t", "x"): "no column 'x'", ("t", "real"): r"Fix: \.mean"}
    for args, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            full.probabilities(*args)


def test_draws_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    full = completed()
    assert gap(full.draw(1)["t"]) == [2.0, 5, False, "b", "hi", 2.0]
    whole = full.draws["t"]
    assert whole.loc[(2, "q")].tolist() == [4.0, 6, True, "c", "hi", 4.0] and whole.dtypes.equals(table().dtypes)
    monkeypatch.setattr(module, "_CELLS", 2 * 18)  # two draws at a time
    pd.testing.assert_frame_equal(completed().draws["t"], whole, check_exact=True)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_draws_of_one_floating_dtype(dtype: type) -> None:
    frame = table()[["real", "rate"]].astype(dtype)
    ds = mm.MultimodalDataset.from_frames({"t": frame})
    cells = torch.tensor([[False, False], [True, True], [False, False]])
    full = Completed(ds.frames, {"t": Gaps(cells, DRAWS[:, [0, 5]], MEANS[[0, 5]])})
    assert (full.draws["t"].dtypes == dtype).all() and full.draws["t"].index.nlevels == 2
    for i in range(4):
        pd.testing.assert_frame_equal(full.draws["t"].loc[i], full.draw(i)["t"], check_exact=True)


@pytest.mark.parametrize("level", [0, 1, 90, -0.1, NAN, "0.9", None])
def test_levels(level: object) -> None:
    with pytest.raises(ValueError, match="level: expected a probability"):
        completed().interval(level)  # type: ignore[arg-type]


def test_integers_and_bools_without_gaps_of_their_own() -> None:
    """A row that only another table has: the dtype holds no gaps, and the completed table has none."""
    frame = pd.DataFrame({"n": [2**53 + 1, 5], "b": [True, False]}, index=["p", "q"])
    other = pd.DataFrame({"x": [1.0, 2.0, 3.0]}, index=["p", "q", "r"])
    ds = mm.MultimodalDataset.from_frames({"t": frame, "u": other})
    draws = torch.tensor([[3.4, 1.0], [3.0, 1.0], [4.0, 0.0]])
    cells = torch.tensor([[False] * 2, [False] * 2, [True] * 2])
    full = Completed(ds.frames, {"t": Gaps(cells, draws, torch.tensor([3.6, 0.6]))})
    assert full.mean["t"].dtypes.tolist() == [np.dtype("int64"), np.dtype(bool)]
    assert full.mean["t"].loc["r"].tolist() == [4, True] and full.mean["t"]["n"].iloc[0] == 2**53 + 1
    assert full.draws["t"].dtypes.tolist() == [np.dtype("int64"), np.dtype(bool)]
    assert (full.draws["t"]["n"].xs("p", level=1) == 2**53 + 1).all()
    assert full.interval(0.5).lower["t"].dtypes.tolist() == [np.dtype("int64"), np.dtype(bool)]


def test_it_says_what_was_filled() -> None:
    assert repr(completed()) == "Completed(t: 6 of 18 cells filled)"
