"""to_inference_data: groups, dimensions, gaps, numbers, a round trip through a file."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.inference import to_inference_data
from tests.inference.programs import ClusterGuide, linear_pair
from tests.inference.test_discrete import cluster_case
from tests.inference.test_predict import Words, words_guide
from tests.oracles.cases import make_case

az = pytest.importorskip("arviz")
pytestmark = pytest.mark.usefixtures("float64")
GROUPS = {
    "posterior", "posterior_predictive", "log_likelihood", "sample_stats", "prior", "prior_predictive",
    "observed_data", "constant_data",
}  # fmt: skip


def values(group, name) -> torch.Tensor:
    return torch.as_tensor(group[name].values)


@pytest.mark.parametrize("per_feature", [False, True])
def test_groups_and_numbers(per_feature):
    case = make_case(3, 2, per_feature=per_feature)
    model, guide = linear_pair(case.model)
    idata = to_inference_data(
        model, guide, case.data, case.obs_mask, num_samples=50, batch_size=3,
        dims={"a": ["channel"], "z": ["factor"]}, coords={"sample": list("stuvwxyz"), "channel": ["left", "right"]},
    )  # fmt: skip
    assert set(idata.groups()) == GROUPS
    assert idata.posterior["z"].dims == ("chain", "draw", "sample", "factor")
    assert idata.posterior_predictive["a"].dims == ("chain", "draw", "sample", "channel")
    assert idata.posterior_predictive["b"].dims == ("chain", "draw", "sample", "b_dim_0")
    assert idata.log_likelihood["a"].dims == ("chain", "draw", "sample")
    assert list(idata.observed_data["a"].coords["sample"].values) == list("stuvwxyz")
    z = values(idata.posterior, "z")[0]
    exact = case.model.log_likelihoods(z, case.data, case.obs_mask)
    for m, mask in case.obs_mask.items():
        rows = mask.any(-1) if mask.dim() > 1 else mask
        found = values(idata.log_likelihood, m)[0]
        assert found[:, ~rows].isnan().all()
        torch.testing.assert_close(found[:, rows], exact[m][:, rows])
        seen = (mask if mask.dim() > 1 else mask.unsqueeze(-1)).expand_as(case.data[m])
        kept = values(idata.observed_data, m)
        assert torch.equal(kept[seen], case.data[m][seen]) and kept[~seen].isnan().all()
        assert torch.equal(values(idata.constant_data, f"{m}_obs_mask").reshape(mask.shape), mask)
    weight = values(idata.sample_stats, "log_weight")[0]  # constant, since the guide is exact
    torch.testing.assert_close(weight, case.model.log_evidence(case.data, case.obs_mask).expand(50, -1))
    prior = values(idata.prior, "z")[0]
    assert prior.shape == (50, 8, 2) and prior.std() > z.std(0).mean()


def test_round_trip_through_a_file(tmp_path):
    case = make_case(2, 1)
    model, guide = linear_pair(case.model)
    idata = to_inference_data(model, guide, case.data, case.obs_mask, num_samples=5, given={"a"})
    path = str(tmp_path / "idata.nc")
    idata.to_netcdf(path)
    again = az.from_netcdf(path)
    assert set(again.groups()) == GROUPS
    for group in ("posterior", "observed_data", "constant_data"):
        for name in idata[group].data_vars:
            assert again[group][name].equals(idata[group][name])
    assert again.constant_data["a_obs_mask"].dtype == bool


def test_discrete_latents_and_whole_numbers():
    _, model, data, masks = cluster_case(12)
    idata = to_inference_data(model, ClusterGuide(), data, masks, num_samples=20)
    assert idata.posterior["c"].dims == ("chain", "draw", "sample")
    assert values(idata.posterior, "c").unique().numel() > 1
    label = values(idata.observed_data, "label")
    assert label.isnan().equal(~masks["label"])
    complete = to_inference_data(model, ClusterGuide(), data, num_samples=3)
    assert complete.observed_data["label"].dtype.kind == "i"


def test_plates_and_covariates():
    model = mm.observe(Words(), ("x",))
    idata = to_inference_data(model, words_guide, {"x": torch.zeros(4)}, num_samples=5)
    assert idata.posterior["w"].dims == ("chain", "draw", "sample", "w_plate_0", "w_dim")
    assert idata.posterior["w"].shape == (1, 5, 4, 3, 2)

    class Dosed(nn.Module):
        def forward(self, dose):
            z = pyro.sample("z", dist.Normal(dose, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0))

    def guide(data, obs_mask):
        with pyro.plate("data", len(data["x"])):
            pyro.sample("z", dist.Normal(data["dose"], 1.0))

    data = {"x": torch.zeros(3), "dose": torch.tensor([0.0, 50.0, 100.0])}
    idata = to_inference_data(mm.observe(Dosed(), ("x",)), guide, data, num_samples=5)
    assert idata.constant_data["dose"].values.tolist() == [0.0, 50.0, 100.0]
    assert idata.prior_predictive["x"].values[0, :, 2].min() > 80


def test_errors():
    case = make_case(2)
    model, guide = linear_pair(case.model)
    with pytest.raises(ValueError, match=r"dims: \['nope'\]"):
        to_inference_data(model, guide, case.data, case.obs_mask, dims={"nope": ["x"]}, num_samples=2)
    with pytest.raises(ValueError, match=r"dims\['a'\]: expected 1 names"):
        to_inference_data(model, guide, case.data, case.obs_mask, dims={"a": ["x", "y"]}, num_samples=2)
    with pytest.raises(ValueError, match="num_samples"):
        to_inference_data(model, guide, case.data, case.obs_mask, num_samples=0)
