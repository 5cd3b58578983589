"""Few rows: what the defaults and ``fit`` do about them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.nn import SmallDecoder
from pyro_mmvae.training.step import default_optimizer, parameter_groups

ROOT = Path(__file__).parents[3] / "shared/data/tcga_brca"


def test_default_optimizer_finds_the_least_squares_solution_with_the_ridge_that_was_asked_for() -> None:
    x, y = torch.randn(40, 3), torch.randn(40, 1)
    net = nn.Sequential(nn.Linear(3, 1))
    net.weight_decay = 0.7  # type: ignore[assignment]
    optimizer = default_optimizer(parameter_groups(net), lr=1e-2)
    for _ in range(1500):
        optimizer.zero_grad()
        (0.5 * (net(x) - y).square().mean()).backward()
        optimizer.step()
    a, b = x - x.mean(0), y - y.mean(0)  # the bias is free
    exact = torch.linalg.solve(a.T @ a / 40 + 0.7 * torch.eye(3).to(a), a.T @ b / 40)
    torch.testing.assert_close(net[0].weight.T, exact, atol=1e-4, rtol=0.0)  # 1500 steps of 1e-2


def test_groups_hold_every_parameter_once_and_the_nearest_module_decides() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ModuleDict({"c": nn.Linear(2, 2)}), "d": SmallDecoder(2, 2)})
    net.weight_decay = 1.0  # type: ignore[assignment]
    net["b"].weight_decay = 2.0  # type: ignore[assignment]
    decays = {id(p): g["weight_decay"] for g in parameter_groups(net) for p in g["params"]}
    assert set(decays) == {id(p) for p in net.parameters()}
    weights = (net["a"].weight, net["b"]["c"].weight, net["d"].net[-1].weight)
    assert [decays[id(w)] for w in weights] == [1.0, 2.0, 0.0]
    assert decays[id(net["a"].bias)] == 0.0
    net.weight_decay = "much"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="weight_decay: expected a number from 0 on, got 'much'"):
        parameter_groups(net)


def test_fit_honors_weight_decay() -> None:
    ds = mm.MultimodalDataset({"a": torch.randn(30, 4), "b": torch.randn(30, 3)})
    norms = []
    for decay in (0.0, 100.0):
        torch.manual_seed(0)
        vae = mm.MoPoE.for_data(ds, latent_dim=2)
        decoders = [d for d in vae.modules() if isinstance(d, SmallDecoder)]
        for d in decoders:
            d.weight_decay = decay
        mm.fit(vae, ds, epochs=30, lr=1e-2, seed=0, progress=False)
        norms.append(sum(float(d.net[-1].weight.detach().square().sum()) for d in decoders))
    assert norms[1] < 0.1 * norms[0]


@pytest.mark.parametrize("method", ["MVAE", "MoPoE", "MMVAE", "DMVAE"])
def test_for_data_of_a_data_frame_standardizes_and_saves(method: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": torch.randn(30).numpy() * 1e4 + 1e6, "y": torch.rand(30).numpy()})
    ds = mm.MultimodalDataset.from_frames({"a": frame, "b": frame + 1.0})
    options = {"private_dim": 1} if method == "DMVAE" else {}
    vae = getattr(mm, method).for_data(ds, latent_dim=2, **options)
    loc = vae.generate(4000)["a"].double()
    assert 0.99e6 < float(loc[:, 0].mean()) < 1.01e6  # a hundredth: half a standard deviation of the column
    vae.save(tmp_path / "vae")
    again = mm.load(tmp_path / "vae")
    data = {"a": ds.data["a"]}
    assert torch.equal(again.posterior(data).mean, vae.posterior(data).mean)


@pytest.mark.slow
@pytest.mark.skipif(not ROOT.is_dir(), reason="needs the TCGA tables")
def test_proteins_from_transcripts_beat_neighbors_and_are_near_ridge() -> None:
    from benchmarks import tcga

    ds, _ = mm.datasets.tcga_brca(ROOT)
    parts = tcga.folds(ds, split=0)
    baselines = tcga.baselines()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        own = torch.tensor([tcga.of_method("recipe")(*part, 0) for part in parts])
    finally:
        torch.set_default_dtype(default)
    ridge, neighbors = (sum(baselines[m](*part, 0)[0] for part in parts) / 5 for m in ("ridge", "kNN(10)"))
    rmse, coverage = own.mean(0).tolist()
    assert rmse < neighbors and rmse <= 1.03 * ridge
    assert 0.87 <= coverage <= 0.93


@pytest.mark.skipif(not ROOT.is_dir(), reason="needs the TCGA tables")
def test_patients_without_proteins_get_them_with_intervals() -> None:
    train, test = mm.datasets.tcga_brca(ROOT)
    vae = mm.MoPoE.for_data(train, latent_dim=4)
    mm.fit(vae, train, epochs=2, progress=False, seed=0)
    full = vae.impute(test, num_samples=20, progress=False)
    low, high = (end["protein"] for end in full.interval(0.9))
    proteins = full.mean["protein"]
    assert proteins.shape == (70, 142) and proteins.index.equals(test.frames.index)
    assert list(proteins.columns) == list(train.frames.original["protein"].columns)
    assert bool((low < high).all().all()) and bool(((low < proteins) & (proteins < high)).mean().mean() > 0.99)


def test_a_narrow_table_of_many_rows_does_not_collapse() -> None:
    """Two factors behind five columns: large networks learned to do without the latent and gave column means."""
    pandas = pytest.importorskip("pandas")
    z = torch.randn(1200, 2)
    x = z @ torch.randn(2, 5) + 0.2 * torch.randn(1200, 5)
    tables = {"a": pandas.DataFrame(x[:, :3].numpy(), columns=list("abc")), "b": pandas.DataFrame(x[:, 3:].numpy())}
    ds = mm.MultimodalDataset.from_frames(tables)
    train, test = ds[:1050], ds[1050:]
    vae = mm.MoPoE.for_data(train, latent_dim=5, prior_expert="always")
    mm.fit(vae, train, epochs=30, lr=2e-3, progress=False, seed=0)
    guess = vae.predict(test, given={"a"}, target={"b"}, num_samples=20, progress=False).mean["b"]
    error = (torch.tensor(guess.to_numpy()) - x[1050:, 3:]).square().mean(0) / x[:, 3:].var(0)
    assert float(error.detach().sqrt().max()) < 0.6  # column means have 1
