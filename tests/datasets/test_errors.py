"""Bad input to the dataset: each error names what is wrong, what was expected and what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyro_mmvae.datasets import MultimodalDataset

NAN = float("nan")
X = torch.ones(4, 2)


@pytest.mark.parametrize(
    "data, error, message",
    [
        ({}, ValueError, "at least one modality"),
        ([X], TypeError, "expected a mapping from modality names to arrays, got list"),
        ({1: X}, TypeError, r"names are strings, got 1 \(int\)"),
        ({"": X}, ValueError, "name '' is not free"),
        ({"terms": X}, ValueError, "'terms' is not free .*data, terms, particles"),
        ({"x": None}, TypeError, "modality 'x' is None. Fix: leave it out"),
        ({"x": [[1.0]]}, TypeError, "modality 'x': expected a torch.Tensor or numpy array, got list"),
        ({"x": np.array(["a", "b"])}, TypeError, "modality 'x': expected numbers, got dtype <U1"),
        ({"x": np.array([1, None])}, TypeError, "expected numbers, got dtype object"),
        ({"x": np.ma.masked_invalid([1.0, NAN])}, TypeError, "masked array. Fix: value.filled"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, TypeError, "dense real tensor, got .*complex64"),
        ({"x": torch.eye(2).to_sparse()}, TypeError, "dense real tensor, got torch.sparse_coo"),
        ({"x": torch.tensor(1.0)}, ValueError, "expected rows.*scalar"),
        ({"x": X, "y": torch.ones(3)}, ValueError, "same number of rows, got {'x': 4, 'y': 3}"),
        ({"x": torch.ones(0, 2)}, ValueError, "dataset is empty"),
        ({"x": torch.ones(4, 0)}, ValueError, r"'x' has no features: shape \(4, 0\)"),
        ({"x": torch.tensor([[0.0, 0.0], [0.0, float("inf")]])}, ValueError, "'x': an infinite value.*row 1.*NaN"),
        ({"x": torch.tensor([[0.0], [0.0], [-float("inf")]])}, ValueError, "first in row 2"),
    ],
    ids=lambda v: None,
)
def test_data(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultimodalDataset(data)


@pytest.mark.parametrize(
    "obs_mask, error, message",
    [
        ({"x": torch.ones(4)}, TypeError, r"obs_mask\['x'\]: expected bool .*got torch.float32. Fix: mask.bool\(\)"),
        ({"x": torch.ones(4, dtype=torch.long)}, TypeError, r"got torch.int64. Fix: mask.bool\(\)"),
        ({"x": np.ones((4, 2))}, TypeError, r"got torch.float64. Fix: mask.bool\(\)"),
        ({"x": [True] * 4}, TypeError, r"obs_mask\['x'\]: expected a bool tensor, got list"),
        ({"x": torch.ones(5, dtype=torch.bool)}, ValueError, r"\(4,\) \(rows\) or \(4, 2\) \(cells\), got \(5,\)"),
        ({"x": torch.ones(4, 1, dtype=torch.bool)}, ValueError, r"got \(4, 1\)"),
        ({"y": torch.ones(4, dtype=torch.bool)}, ValueError, r"obs_mask\['y'\]: no such modality. Known: x"),
        ({"c": torch.ones(4, dtype=torch.bool)}, ValueError, r"obs_mask\['c'\]: a covariate is always observed"),
        (torch.ones(4, dtype=torch.bool), TypeError, "expected a mapping from modality names to bool tensors"),
    ],
    ids=lambda v: None,
)
def test_obs_mask(obs_mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultimodalDataset({"x": X}, obs_mask, covariates={"c": torch.ones(4)})


def test_none_in_the_mask_is_all_observed() -> None:
    assert MultimodalDataset({"x": X}, {"x": None}).obs_mask["x"].all()
    assert MultimodalDataset({"x": X}, {"x": np.ones(4, dtype=bool)}).obs_mask["x"].all()


def test_infinite_values_under_the_mask_are_fine() -> None:
    x = torch.tensor([[float("inf"), 0.0], [0.0, 0.0]])
    ds = MultimodalDataset({"x": x}, {"x": torch.tensor([[False, True], [True, True]])})
    assert ds.obs_mask["x"].sum() == 3


@pytest.mark.parametrize(
    "covariates, error, message",
    [
        ({"c": torch.tensor([1.0, NAN, 1.0, 1.0])}, ValueError, "covariate 'c' is missing or infinite, first in row 1"),
        ({"c": torch.tensor([1.0, 1.0, 1.0, float("inf")])}, ValueError, "first in row 3"),
        ({"c": torch.ones(3)}, ValueError, "got {'x': 4, 'c': 3}"),
        ({"x": torch.ones(4)}, ValueError, "x: both a modality and a covariate"),
        ({"c": None}, TypeError, "covariate 'c' is None"),
        ({2: torch.ones(4)}, TypeError, "covariate names are strings, got 2"),
    ],
    ids=lambda v: None,
)
def test_covariates(covariates: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultimodalDataset({"x": X}, covariates=covariates)


@pytest.mark.parametrize(
    "labels, error, message",
    [
        ([0, 1], ValueError, "expected 4 entries, one per row, got 2"),
        ("abcd", TypeError, "labels: .*got str"),
        ({0: 1, 1: 1, 2: 1, 3: 1}, TypeError, "labels: .*got dict"),
        (7, TypeError, "labels: .*got int"),
    ],
    ids=lambda v: None,
)
def test_labels(labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultimodalDataset({"x": X}, labels=labels)


@pytest.mark.parametrize(
    "index, error, message",
    [
        (4, IndexError, "row 4 of a dataset with 4 rows"),
        (-5, IndexError, "row -5"),
        (torch.tensor([0, 4]), IndexError, "row 4 of"),
        (torch.tensor([0, -5]), IndexError, "row -5 of"),
        (torch.tensor([0.0, 1.0]), TypeError, "integers or bools, got .*float32"),
        (torch.tensor([[0]]), TypeError, r"shape \(1, 1\)"),
        (torch.tensor([True]), ValueError, r"bool index needs shape \(4,\)"),
        (torch.zeros(4, dtype=torch.bool), ValueError, "selects none of the 4 rows"),
        (slice(2, 2), ValueError, "selects none"),
        ([], ValueError, "selects none"),
        ("x", TypeError, r"Fix: ds.data\['x'\]"),
    ],
    ids=lambda v: None,
)
def test_index(index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultimodalDataset({"x": X})[index]


@pytest.mark.parametrize("fractions", [0, 1, 1.2, -0.1, [0.5, 0.4], [0.5, 0.5, 0.0], [], [1.5, -0.5], float("nan")])
def test_fractions(fractions: Any) -> None:
    with pytest.raises(ValueError, match="fractions: expected one in"):
        MultimodalDataset({"x": X}).split(fractions)


def test_empty_part_of_a_split() -> None:
    with pytest.raises(ValueError, match=r"give parts of \[4, 0\] rows: one is empty"):
        MultimodalDataset({"x": X}).split(0.9)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size: expected an int, got 2.0"),
        ({"batch_size": 5, "drop_last": True}, ValueError, "leaves no batch of 4 rows"),
        ({"batch_size": 2, "seed": 0, "generator": torch.Generator()}, ValueError, "not both"),
    ],
    ids=lambda v: None,
)
def test_batches(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultimodalDataset({"x": X}).batches(**arguments)
