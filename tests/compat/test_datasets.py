"""Datasets of multivae as this library's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_mmvae.compat.multivae import dataset


def test_batches_and_namespaces_need_no_multivae():
    data = {"a": torch.randn(3, 2), "b": np.eye(3)}
    masks = {"a": [[1], [0], [1]], "b": torch.tensor([True, True, False]), "unused": torch.ones(3)}
    ds = dataset(SimpleNamespace(data=data, masks=masks, labels=torch.arange(3)))
    assert ds.data["a"].data_ptr() == data["a"].data_ptr()
    assert ds.modalities == ("a", "b")
    assert {m: v.tolist() for m, v in ds.obs_mask.items()} == {"a": [True, False, True], "b": [True, True, False]}
    assert ds.labels.tolist() == [0, 1, 2]
    assert dataset({"data": data}).obs_mask["a"].all()


def test_errors():
    with pytest.raises(TypeError, match="expected a dataset with a mapping `data`, got list"):
        dataset([1, 2])
    tokens = {"text": {"tokens": torch.zeros(3, 2), "padding_mask": torch.ones(3, 2)}}
    with pytest.raises(TypeError, match=r"'text' is a mapping of \['padding_mask', 'tokens'\]"):
        dataset(SimpleNamespace(data=tokens))


@pytest.mark.extra
class TestOwnClasses:
    """multivae's own classes."""

    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("multivae", reason="an extra of the tests; make test installs it", exc_type=ImportError)

    def test_complete(self):
        from multivae.data.datasets.base import MultimodalBaseDataset

        data = {"a": torch.randn(3, 2), "b": torch.randn(3, 1)}
        ds = dataset(MultimodalBaseDataset(data, torch.arange(3)))
        assert all(ds.data[m].data_ptr() == x.data_ptr() and ds.obs_mask[m].all() for m, x in data.items())
        assert ds.labels.tolist() == [0, 1, 2]
        assert dataset(MultimodalBaseDataset(data)).labels is None

    def test_incomplete_whatever_is_filled_in(self):
        from multivae.data.datasets.base import IncompleteDataset

        data = {"a": torch.tensor([[0.0], [float("inf")], [2.0]]), "b": torch.zeros(3, 1)}
        masks = {"a": torch.tensor([True, False, True]), "b": torch.tensor([1, 1, 0])}
        ds = dataset(IncompleteDataset(data, masks))
        assert ds.obs_mask["a"].tolist() == [True, False, True]
        assert ds.obs_mask["b"].tolist() == [True, True, False]

    def test_a_class_that_makes_its_samples(self):
        from multivae.data.datasets.base import DatasetOutput, MultimodalBaseDataset

        class Doubled(MultimodalBaseDataset):
            def __getitem__(self, index):
                x = {m: 2 * v[index] for m, v in self.data.items()}
                return DatasetOutput(data=x, masks={"a": torch.tensor(index != 1)}, labels=torch.tensor(index))

        ds = dataset(Doubled({"a": torch.ones(3, 2)}))
        assert ds.data["a"].tolist() == [[2.0, 2.0]] * 3
        assert ds.obs_mask["a"].tolist() == [True, False, True]
        assert ds.labels.tolist() == [0, 1, 2]
