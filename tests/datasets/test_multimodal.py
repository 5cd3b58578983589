"""The dataset container: what counts as missing, rows, splits and batches. Bad input is in test_errors.py."""

from __future__ import annotations

import copy
import math
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pyro_mmvae.datasets import MultimodalDataset

NAN = float("nan")
INF = float("inf")


def numbered(n: int = 20) -> MultimodalDataset:
    """Row i of every modality, covariate and label says i, so that misaligned rows show."""
    i = torch.arange(n)
    values = {"flat": i.double(), "image": i.double().reshape(n, 1, 1).expand(n, 2, 3).clone(), "label": i.clone()}
    masks = {"flat": i % 3 != 0, "image": (i % 2 == 0).reshape(n, 1, 1).expand(n, 2, 3).clone(), "label": i % 5 != 0}
    masks["image"][1, 0] = True  # row 1 in part
    return MultimodalDataset(values, masks, labels=i.clone(), covariates={"batch": i.double().reshape(n, 1)})


def rows_of(data: dict[str, torch.Tensor]) -> list[int]:
    """The row numbers of a batch of ``numbered``, after checking that all its tensors agree."""
    rows = data["label"]
    for value in data.values():
        assert (value.reshape(len(rows), -1) == rows.unsqueeze(-1)).all()
    return rows.tolist()


def assert_masks_follow(data: dict[str, torch.Tensor], obs_mask: dict[str, torch.Tensor]) -> None:
    whole = numbered()
    for name, mask in whole.obs_mask.items():
        assert torch.equal(obs_mask[name], mask[data["label"]])


# ---- what is missing


def test_nan_row_is_a_missing_modality_and_nan_cell_a_missing_feature() -> None:
    rows = torch.tensor([[1.0, 2.0], [NAN, NAN], [3.0, 4.0]])
    mixed = torch.tensor([[1.0, 2.0], [NAN, NAN], [3.0, NAN]])
    ds = MultimodalDataset({"rows": rows, "mixed": mixed, "int": torch.arange(3)})
    assert ds.obs_mask["rows"].tolist() == [True, False, True]
    assert ds.obs_mask["mixed"].tolist() == [[True, True], [False, False], [True, False]]
    assert ds.obs_mask["int"].tolist() == [True, True, True]
    assert all(mask.dtype == torch.bool for mask in ds.obs_mask.values())


def test_given_mask_hides_more_never_less() -> None:
    x = torch.tensor([[1.0, 2.0], [NAN, 3.0], [4.0, 5.0]])
    by_row = MultimodalDataset({"x": x}, {"x": torch.tensor([True, True, False])})
    assert by_row.obs_mask["x"].tolist() == [[True, True], [False, True], [False, False]]
    by_cell = MultimodalDataset({"x": x}, {"x": torch.tensor([[False, False], [True, False], [True, True]])})
    assert by_cell.obs_mask["x"].tolist() == [False, False, True]  # no row is left in part


def test_mask_of_cells_is_kept_for_integers_and_scalar_events() -> None:
    cells = torch.tensor([[True, False], [True, True]])
    ds = MultimodalDataset({"x": torch.ones(2, 2, dtype=torch.long), "s": torch.tensor([0.0, NAN])}, {"x": cells})
    assert torch.equal(ds.obs_mask["x"], cells)
    assert ds.obs_mask["s"].tolist() == [True, False]


def test_all_rows_of_a_modality_may_be_missing() -> None:
    ds = MultimodalDataset({"a": torch.full((3, 2), NAN), "b": torch.arange(3)})
    assert not ds.obs_mask["a"].any()


def test_content_under_the_mask_is_kept_as_it_came() -> None:
    x = torch.tensor([[INF, NAN, 1e30], [1.0, 2.0, 3.0]])
    ds = MultimodalDataset({"x": x}, {"x": torch.tensor([[False, True, False], [True, True, True]])})
    assert torch.equal(torch.isinf(ds.data["x"]), torch.isinf(x)) and ds.data["x"][0, 2] == x[0, 2]
    assert ds.obs_mask["x"].tolist() == [False, True]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0)[::-1].reshape(3, 2),
        np.arange(6.0).reshape(3, 2).astype(">f8"),
        np.broadcast_to(np.array([1.0, 2.0]), (3, 2)),
        np.arange(6, dtype=np.uint16).reshape(3, 2),
        np.ones((3, 2), dtype=bool),
    ],
    ids=["reversed", "big-endian", "read-only", "uint16", "bool"],
)
def test_numpy_arrays_that_torch_cannot_share(array: np.ndarray) -> None:
    ds = MultimodalDataset({"x": array})
    assert ds.data["x"].numpy().tolist() == array.tolist()
    assert len(ds.hide(0.5, keep_one=False)) == 3


def test_nothing_of_the_callers_is_changed() -> None:
    data = {"x": torch.tensor([[1.0, NAN], [3.0, 4.0]]), "y": np.array([1.0, NAN])}
    obs_mask = {"x": torch.tensor([True, True])}
    before = copy.deepcopy((data, obs_mask))
    ds = MultimodalDataset(data, obs_mask, labels=[0, 1])
    ds.hide(0.5, keep_one=False, seed=3)
    ds.hide(0.9, level="feature", keep_one=False)
    ds.split(0.5)
    assert torch.equal(ds.data["x"].isnan(), before[0]["x"].isnan())
    for kept, old in zip((data, obs_mask), before, strict=True):
        assert list(kept) == list(old)
        for name in old:
            np.testing.assert_array_equal(np.asarray(kept[name]), np.asarray(old[name]))


def test_names_and_repr() -> None:
    ds = numbered()
    assert ds.modalities == ("flat", "image", "label")
    assert ds.covariates == ("batch",)
    assert list(ds.data) == ["flat", "image", "label", "batch"]
    assert list(ds.obs_mask) == ["flat", "image", "label"]
    lines = repr(ds).splitlines()
    assert lines[0] == "MultimodalDataset(20 rows)"
    assert lines[2] == f"  image: (2, 3) float64, observed {(10 * 6 + 3) / 120:.2f}"
    assert lines[4] == "  batch: (1,) float64, covariate"


def test_data_with_gradients_is_detached() -> None:
    ds = MultimodalDataset({"x": torch.ones(2, 2, requires_grad=True)})
    assert not ds.data["x"].requires_grad


# ---- rows


@pytest.mark.parametrize(
    "index, rows",
    [
        (slice(2, 5), [2, 3, 4]),
        (slice(None, None, 7), [0, 7, 14]),
        (slice(3, None, -2), [3, 1]),
        (torch.tensor([5, 1, -1]), [5, 1, 19]),
        (np.array([4, 4]), [4, 4]),
        ([0, 2], [0, 2]),
        (torch.arange(20) > 17, [18, 19]),
        (np.arange(20) < 2, [0, 1]),
        (torch.tensor([3, 0], dtype=torch.uint8), [3, 0]),
    ],
    ids=["slice", "step", "backwards", "tensor", "array", "list", "bool tensor", "bool array", "uint8"],
)
def test_indexing_takes_the_same_rows_of_everything(index: object, rows: list[int]) -> None:
    part = numbered()[index]  # type: ignore[call-overload]
    assert isinstance(part, MultimodalDataset)
    assert len(part) == len(rows)
    assert rows_of(part.data) == rows
    assert part.labels.tolist() == rows
    assert_masks_follow(part.data, part.obs_mask)


def test_mask_rank_survives_slicing() -> None:
    assert numbered()[2:4].obs_mask["image"].shape == (2, 2, 3)  # though neither row is in part


@pytest.mark.parametrize("index", [4, -16, np.int64(4), torch.tensor(4)], ids=["int", "negative", "numpy", "tensor"])
def test_one_sample_is_a_pair(index: int) -> None:
    data, obs_mask = numbered()[index]
    assert data["image"].shape == (2, 3) and (data["image"] == 4).all() and data["batch"].tolist() == [4.0]
    assert {name: mask.shape for name, mask in obs_mask.items()} == {"flat": (), "image": (2, 3), "label": ()}
    assert obs_mask["flat"].item() is True and obs_mask["image"].all()


def test_iteration_ends() -> None:
    assert [int(data["label"]) for data, _ in numbered()] == list(range(20))


def test_labels_follow_in_their_own_kind() -> None:
    pandas = pytest.importorskip("pandas")
    names = [f"s{i}" for i in range(4)]
    for labels in (names, tuple(names), np.array(names), pandas.Series(names, index=[9, 8, 7, 6])):
        ds = MultimodalDataset({"x": torch.arange(4)}, labels=labels)
        for part in (ds[torch.tensor([3, 1])], ds[3:0:-2]):
            assert type(part.labels) is type(labels)
            assert list(part.labels) == ["s3", "s1"]
    assert ds[1:3].truth is None and MultimodalDataset({"x": torch.arange(4)})[1:3].labels is None


# ---- split, complete cases


def test_split_is_a_partition_and_random() -> None:
    ds = numbered()
    for fractions, sizes in ((0.8, [16, 4]), ([0.5, 0.25, 0.25], [10, 5, 5]), ((0.33, 0.67), [7, 13])):
        parts = ds.split(fractions, seed=1)
        rows = [rows_of(part.data) for part in parts]
        assert [len(r) for r in rows] == sizes
        drawn = list(chain(*rows))
        assert sorted(drawn) == list(range(20)) and drawn != list(range(20))
        for part in parts:
            assert_masks_follow(part.data, part.obs_mask)
    assert rows_of(ds.split(0.8, seed=1)[0].data) != rows_of(ds.split(0.8, seed=2)[0].data)


def test_complete_cases_needs_every_cell() -> None:
    x = torch.tensor([[1.0, 2.0], [NAN, 3.0], [NAN, NAN], [4.0, 5.0]])
    ds = MultimodalDataset({"x": x, "y": torch.arange(4)}, {"y": torch.tensor([True, True, True, False])})
    assert ds.complete_cases().data["y"].tolist() == [0]
    with pytest.raises(ValueError, match="none of the 2 rows"):
        ds[1:3].complete_cases()


# ---- batches


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 6, 20, 50])
def test_batches_cover_each_row_once(batch_size: int, shuffle: bool) -> None:
    batches = numbered().batches(batch_size, shuffle=shuffle, seed=0)
    assert len(batches) == math.ceil(20 / batch_size)
    epochs = []
    for _ in range(2):
        rows = []
        for data, obs_mask in batches:
            rows.append(rows_of(data))
            assert_masks_follow(data, obs_mask)
        assert len(rows) == len(batches) and {len(r) for r in rows[:-1]} <= {batch_size}
        epochs.append(list(chain(*rows)))
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert (epochs[0] == epochs[1]) is not shuffle  # 1 / 20! by chance


def test_drop_last() -> None:
    batches = numbered().batches(6, drop_last=True)
    assert [len(rows_of(data)) for data, _ in batches] == [6, 6, 6] and len(batches) == 3


def test_shuffling_follows_the_seed_the_generator_or_torch() -> None:
    ds = numbered()

    def order(**options: object) -> list[int]:
        return list(chain(*(rows_of(data) for data, _ in ds.batches(7, shuffle=True, **options))))  # type: ignore[arg-type]

    assert order(seed=5) == order(seed=5) == order(generator=torch.Generator().manual_seed(5))
    assert order(seed=5) != order(seed=6)
    state = torch.get_rng_state()
    first = order()
    torch.set_rng_state(state)
    assert first == order()


def test_changing_a_shuffled_batch_leaves_the_dataset() -> None:
    ds = numbered()
    for data, _ in ds.batches(5, shuffle=True, seed=0):
        data["flat"].zero_()
    assert ds.data["flat"].tolist() == list(range(20))


@pytest.mark.parametrize("collate", [None, MultimodalDataset.collate], ids=["default", "collate"])
def test_data_loader(collate: object) -> None:
    rows: list[int] = []
    for data, obs_mask in DataLoader(numbered(), batch_size=6, collate_fn=collate, num_workers=0):  # type: ignore[arg-type]
        rows += rows_of(data)
        assert_masks_follow(data, obs_mask)
    assert rows == list(range(20))


# ---- device, random state


def test_to_moves_everything_and_casts_floats_only() -> None:
    ds = numbered().to("meta")
    assert {x.device.type for x in [*ds.data.values(), *ds.obs_mask.values(), ds.labels]} == {"meta"}
    cast = numbered().to(dtype=torch.float32)
    assert {name: value.dtype for name, value in cast.data.items()} == {
        "flat": torch.float32,
        "image": torch.float32,
        "label": torch.int64,
        "batch": torch.float32,
    }
    assert cast.obs_mask["flat"].dtype == torch.bool and cast.labels.dtype == torch.int64


def test_another_default_device_changes_nothing() -> None:
    ds = numbered()
    try:
        torch.set_default_device("meta")  # a tensor created without a device would have no content
        part = ds.hide(0.3, seed=0).split(0.5)[0][torch.tensor([0, 1], device="cpu")][[1, 0]][::-1]
        values = [
            part.data["flat"],
            *part.obs_mask.values(),
            next(iter(ds.batches(3, shuffle=True, seed=0)))[0]["flat"],
        ]
    finally:
        torch.set_default_device(None)
    assert {x.device.type for x in values} == {"cpu"}


def test_global_random_state_is_untouched() -> None:
    ds = numbered()
    state = torch.get_rng_state()
    ds.hide(0.5)
    ds.hide(0.5, level="feature")
    ds.split(0.5)
    list(ds.batches(3, shuffle=True, seed=0))
    assert torch.equal(state, torch.get_rng_state())
