"""Prepared batches are what the door makes of each batch."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.masks import Data, ObsMask
from pyro_mmvae.training import PreparedBatches
from pyro_mmvae.training.batches import DoorBatches, make_batches

CPU = torch.device("cpu")


def story(shift):
    z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    pyro.sample("a", dist.Normal((z + shift.unsqueeze(-1)).expand((*z.shape[:-1], 2)), 1.0).to_event(1))
    pyro.sample("s", dist.Normal(z[..., 0], 1.0))
    pyro.sample("c", dist.Normal(z, 1.0).to_event(1))


def dataset(n=7):
    nan = float("nan")
    a = torch.arange(2.0 * n).reshape(n, 2)
    a[1, 0] = nan  # a missing feature
    a[2] = nan  # a missing modality
    s = torch.arange(float(n))
    s[3] = nan
    return MultimodalDataset({"a": a, "s": s}, covariates={"shift": torch.arange(float(n))})  # "c" is absent


@pytest.fixture
def model():
    return mm.observe(story, ("a", "s", "c"), modules={})


def test_equal_to_preparing_every_batch(model):
    ds = dataset()
    data, obs_mask = model.prepare(ds.data, ds.obs_mask)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    batches = PreparedBatches(data, obs_mask, 3, generator=generator)
    assert len(batches) == 3
    assert batches.num_rows == 7
    for (x, mask), rows in zip(batches, order.split(3), strict=True):
        door_data, door_mask = model.prepare(
            {m: v[rows] for m, v in ds.data.items()}, {m: v[rows] for m, v in ds.obs_mask.items()}
        )
        assert isinstance(x, Data) and x.filled and x.size == len(rows)
        assert isinstance(mask, ObsMask) and mask.private is None and mask.event_dims == door_mask.event_dims
        assert x.keys() == door_data.keys() == {"a", "s", "c", "shift"}
        for name in x:
            assert torch.equal(x[name], door_data[name])
        for m in door_mask:
            assert torch.equal(mask[m], door_mask[m])
            assert torch.equal(mask.rows[m], door_mask.rows[m])
            assert mask.index[m].tolist() == [i for i, seen in enumerate(door_mask.rows[m].tolist()) if seen]
        assert model.prepare(x, mask)[0] is x  # passes the door unchecked


def test_shuffle_differs_between_epochs_and_covers_all(model):
    ds = dataset()
    batches = PreparedBatches(*model.prepare(ds.data, ds.obs_mask), 3, generator=torch.Generator().manual_seed(0))
    epochs = [[int(i) for x, _ in batches for i in x["shift"]] for _ in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_in_order_without_generator(model):
    ds = dataset()
    batches = PreparedBatches(*model.prepare(ds.data, ds.obs_mask), 4)
    assert [x["shift"].tolist() for x, _ in batches] == [[0, 1, 2, 3], [4, 5, 6]]


def test_batch_size_0(model):
    ds = dataset()
    with pytest.raises(ValueError, match="batch_size"):
        PreparedBatches(*model.prepare(ds.data, ds.obs_mask), 0)


def test_data_follow_the_dtype_of_the_parameters_and_stay_as_they_are():
    ds = dataset()
    before = {m: x.clone() for m, x in ds.data.items()}
    holder = torch.nn.Module()
    holder.model = mm.observe(story, ("a", "s", "c"), modules={"net": torch.nn.Linear(1, 1).double()})
    data, _ = next(iter(make_batches(holder, ds, 4, CPU)))
    assert data["a"].dtype == data["shift"].dtype == torch.float64
    for name, x in ds.data.items():
        assert x.dtype == torch.float32
        assert torch.equal(x.isnan(), before[name].isnan())
        assert torch.equal(x[~x.isnan()], before[name][~before[name].isnan()])


def test_a_native_model_gets_door_form_batches():
    holder = torch.nn.Module()
    holder.model = torch.nn.Linear(1, 1)  # has no prepare
    batches = make_batches(holder, dataset(), 4, CPU)
    assert isinstance(batches, DoorBatches)
    assert (len(batches), batches.num_rows) == (2, 7)
    data, obs_mask = next(iter(batches))
    assert obs_mask["a"].tolist()[1] == [False, True]
    assert data["a"].shape == (4, 2)


def test_another_default_device_than_the_datas(model):
    ds = dataset()
    holder = torch.nn.Module()
    holder.model = mm.observe(story, ("a", "s", "c"), modules={"net": torch.nn.Linear(1, 1)})
    holder.model.prepare(ds.data, ds.obs_mask)
    torch.set_default_device("meta")  # whatever is made without a device has no values
    try:
        batches = make_batches(holder, ds, 4, CPU, torch.Generator("cpu"))
        devices = {x.device for data, mask in batches for x in (*data.values(), *mask.values(), *mask.index.values())}
    finally:
        torch.set_default_device(None)
    assert devices == {CPU}
