"""Splits that keep groups together or shares of classes, by what they promise for any seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_mmvae.datasets import MultimodalDataset

FRACTIONS = [[0.8, 0.2], [0.5, 0.5], [0.5, 0.3, 0.2], [0.25] * 4, [0.7, 0.1, 0.1, 0.1]]


def numbered(n: int, **options: Any) -> MultimodalDataset:
    return MultimodalDataset({"row": torch.arange(n)}, **options)


def rows(parts: tuple[MultimodalDataset, ...]) -> list[list[int]]:
    return [part.data["row"].tolist() for part in parts]


@pytest.mark.parametrize("fractions", FRACTIONS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_stratified_shares_are_kept_within_one(fractions: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.choice(6, p=[0.4, 0.3, 0.15, 0.1, 0.04, 0.01], size=203)
    parts = rows(numbered(203).split(fractions, seed=seed, stratify=classes))
    assert sorted(row for part in parts for row in part) == list(range(203))
    for k in range(6):
        total = int((classes == k).sum())
        for part, share in zip(parts, fractions, strict=True):
            assert abs(int((classes[part] == k).sum()) - total * share) < 1
    for part, share in zip(parts, fractions, strict=True):
        assert abs(len(part) - 203 * share) < 2  # debts of one part are paid before they reach two rows


def test_a_stratified_split_is_random_within_classes() -> None:
    ds, classes = numbered(40), [0] * 30 + [1] * 10
    first, again, other = (rows(ds.split(0.5, seed=s, stratify=classes)) for s in (1, 1, 2))
    assert first == again != other
    taken = Counter(row for seed in range(200) for row in rows(ds.split(0.5, seed=seed, stratify=classes))[0])
    spread = 3.9 * (0.25 / 200) ** 0.5  # a normal deviate beyond 3.9: one in 10,000, for 40 rows
    assert all(abs(taken[row] / 200 - 0.5) < spread for row in range(40))
    assert rows(ds.split(0.5, seed=0, stratify=classes))[0] != sorted(rows(ds.split(0.5, stratify=classes))[0])


@pytest.mark.parametrize("fractions", FRACTIONS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_parts(fractions: list[float], seed: int) -> None:
    groups = np.random.default_rng(seed).integers(0, 40, 200)
    parts = rows(numbered(200).split(fractions, seed=seed, groups=groups))
    assert sorted(row for part in parts for row in part) == list(range(200)) and all(parts)
    found = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, found)) == len(set(groups.tolist()))
    largest = max(Counter(groups.tolist()).values())
    for part, share in zip(parts, fractions, strict=True):
        assert abs(len(part) - 200 * share) <= largest * len(fractions)


def test_groups_of_very_different_size_fill_every_part() -> None:
    groups = [0] * 90 + [1] * 5 + [2] * 5
    sizes = set()
    for seed in range(30):
        parts = numbered(100).split([0.8, 0.1, 0.1], seed=seed, groups=groups)
        sizes.add(tuple(len(part) for part in parts))
        assert {len(part) for part in parts} == {90, 5}
    assert len(sizes) > 1  # the order of groups is random
    first, again = (rows(numbered(100).split(0.5, seed=3, groups=groups)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    "values",
    [
        np.array(["u", "v"] * 10),
        torch.arange(20) % 2,
        ["u", "v"] * 10,
        pd.Series(["u", "v"] * 10, index=range(100, 120)),
        pd.Series(pd.Categorical(["u", "v"] * 10)),
        "site",
    ],
    ids=["array", "tensor", "list", "series", "category", "covariate"],
)
def test_forms_of_groups_and_classes(values: Any) -> None:
    ds = numbered(20, covariates={"site": torch.arange(20) % 2})
    a, b = rows(ds.split(0.5, groups=values))
    assert {tuple(sorted(a)), tuple(sorted(b))} == {tuple(range(0, 20, 2)), tuple(range(1, 20, 2))}
    a, b = rows(ds.split(0.5, stratify=values))
    assert sum(row % 2 for row in a) == sum(row % 2 for row in b) == 5


def test_a_series_is_aligned_by_the_ids_of_the_frames() -> None:
    frame = pd.DataFrame({"row": np.arange(20) + 0.5}, index=[f"p{i}" for i in range(20)])
    ds = MultimodalDataset.from_frames({"a": frame}, labels=frame.assign(half=np.arange(20) < 10))
    ward = pd.Series(np.arange(20) < 10, index=frame.index)[::-1]
    for groups in (ward, "half"):
        train, _ = ds.split(0.5, groups=groups)
        assert len(train) == 10 and len({row < 10 for row in train.data["a"][:, 0].tolist()}) == 1
    with pytest.raises(ValueError, match="groups: its index has no 'p3'"):
        ds.split(0.5, groups=ward.drop("p3"))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"groups": [0] * 10}, ValueError, "groups: 1 of them cannot fill 2 parts"),
        ({"stratify": range(10)}, ValueError, "stratify: each of the 10 rows is a class of its own. .*qcut"),
        ({"groups": [0] * 5 + [1] * 5, "stratify": [0] * 10}, NotImplementedError, "groups and stratify at once"),
        ({"groups": [0, 1]}, ValueError, r"groups: expected 10 values, one for each row, got shape \(2,\)"),
        ({"stratify": np.zeros((10, 2))}, ValueError, r"stratify: expected 10 values, .* got shape \(10, 2\)"),
        ({"groups": ["u", None] * 5}, ValueError, "groups: row 1 has no value"),
        ({"stratify": [0.0, float("nan")] * 5}, ValueError, "stratify: row 1 has no value"),
        ({"stratify": pd.array([1, None] * 5)}, ValueError, "stratify: row 1 has no value"),
        ({"groups": "ward"}, ValueError, r"groups: 'ward' is no covariate \(\), nor a column of labels"),
        ({"groups": 3}, TypeError, "groups: expected one value for each row, got int"),
    ],
    ids=lambda v: None,
)
def test_errors(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        numbered(10).split(0.8, **options)


def test_an_empty_part_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"give parts of \[10, 0\] rows: one is empty"):
        numbered(10).split(0.99, stratify=[0] * 10)
