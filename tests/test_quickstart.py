"""The quickstart, trained for one epoch: its tables, its pictures, its file; and scores whose values are known."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import pytest
import torch

from pyro_mmvae.datasets import MultimodalDataset, digits
from pyro_mmvae.quickstart import __main__ as quickstart
from pyro_mmvae.quickstart import baselines, scores, tables

PICTURES = ["completions.png", "from_label.png", "from_prior.png", "latent.png", "posterior.png"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the program prints, and the folder it fills."""
    folder, printed = tmp_path_factory.mktemp("quickstart") / "made" / "here", io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("error")
        quickstart.main(["--epochs", "1", "--particles", "20", "--seeds", "1", "--output", str(folder)])
    return printed.getvalue(), folder


def test_the_table_holds_the_model_and_all_baselines(done):
    printed, _ = done
    for name in tables.ROWS:
        assert any(line.startswith(name) for line in printed.splitlines()), name
    for subset in scores.SUBSETS:
        assert f"\n{'+'.join(subset)} " in printed
    assert "359 held-out digits" in printed
    assert "K = 20" in printed
    assert "nan" not in printed


def test_the_numbers_in_the_table_are_those_of_the_baselines(done):
    printed, _ = done
    line = next(line for line in printed.splitlines() if line.startswith("SVM, all labels"))
    assert [float(x) for x in line.split()[-5:-2]] == pytest.approx([0.914, 0.914, 0.989], abs=0.02)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_something(done, name):
    from matplotlib.image import imread

    image = imread(done[1] / name)
    assert min(image.shape[:2]) > 300
    assert image[..., :3].std() > 0.05  # blank paper has 0
    assert str(done[1] / name) in done[0]


def test_the_arviz_file_has_all_groups_and_named_coordinates(done):
    xarray = pytest.importorskip("xarray")
    groups = ["posterior", "posterior_predictive", "log_likelihood", "prior", "prior_predictive", "observed_data"]
    found = {g: xarray.load_dataset(done[1] / "digits.nc", group=g, engine="h5netcdf") for g in groups}
    assert found["posterior"]["z"].dims == ("chain", "draw", "sample", "latent")
    for group in ("posterior_predictive", "prior_predictive"):
        assert found[group]["bottom"].dims == ("chain", "draw", "sample", "row_bottom", "column")
        assert found[group]["bottom"].row_bottom.values.tolist() == [4, 5, 6, 7]
        assert 0 <= float(found[group]["top"].min()) <= float(found[group]["top"].max()) <= 16
    probability = found["posterior_predictive"]["label_probability"]
    assert probability.dims == ("chain", "draw", "sample", "class")
    assert probability["class"].values.tolist() == list(range(10))
    assert probability.sum("class").values == pytest.approx(1.0, abs=1e-5)  # float32
    assert found["log_likelihood"]["top"].dims == ("chain", "draw", "sample")
    hidden = found["observed_data"]["top"].isnull().all(("row_top", "column"))
    assert 0 < int(hidden.sum()) < hidden.size
    assert found["log_likelihood"]["top"].isnull().all(("chain", "draw")).equals(hidden)


@pytest.mark.param_store
def test_training_changes_every_network_and_lowers_the_loss():
    train, _ = digits().split(0.8, seed=0)
    train = train.hide(0.5, seed=0)
    vae = quickstart.build(steps=24)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    first = vae.objective.loss(vae.model, vae.guide, train.data, train.obs_mask)
    quickstart.train(vae, train, epochs=2)
    assert vae.objective.step == 24
    assert all(not torch.equal(p, before[name]) for name, p in vae.named_parameters())
    vae.train()
    assert vae.objective.loss(vae.model, vae.guide, train.data, train.obs_mask) < 0.8 * first


def test_coverage_of_draws_from_the_truth_is_the_level():
    draws = torch.rand(400, 100, 4, 8)
    assert scores._coverage(draws, torch.rand(100, 4, 8), 0.9) == pytest.approx(0.9, abs=0.022)  # 4 s.e., 3,200 pixels
    assert scores._coverage(draws, torch.full((100, 4, 8), 2.0), 0.9) == 0.0


def test_spread_is_the_mean_pairwise_rmse():
    means = torch.stack([torch.zeros(3, 4, 8), torch.full((3, 4, 8), 2.0), torch.full((3, 4, 8), 6.0)])
    assert scores._spread(means) == pytest.approx((2 + 6 + 4) / 3)
    assert scores.rmse(means[0], means[1]) == 2.0


def test_baselines_do_not_see_what_is_hidden():
    train, held_out = digits().split(0.8, seed=0)
    hidden = train.hide(0.5, seed=3)
    garbage = {m: x.clone() for m, x in train.data.items()}
    for m, mask in hidden.obs_mask.items():
        garbage[m][~mask] = 7
    first = baselines.of_baselines(hidden, train, held_out)
    second = baselines.of_baselines(MultimodalDataset(garbage, hidden.obs_mask), train, held_out)
    assert first == second


def test_report_of_several_seeds_has_means_spreads_and_a_row_per_seed():
    names = [*tables.COLUMNS, "coverage bottom", "coverage top", "spread bottom", "spread top"]
    parts = ("", " over digits", " per digit", " ess")
    names += [f"log p {'+'.join(subset)}{part}" for subset in scores.SUBSETS for part in parts]
    others = {name: {"rmse top": 4.0} for name in tables.ROWS if name != tables.MODEL}
    runs = [tables.Run(s, dict.fromkeys(names, float(s)), others, 10.0, 5.0) for s in (1, 2, 3)]
    text = tables.report(runs, digits=7, particles=5)
    assert "mean and standard deviation of 3 seeds" in text
    assert "2.000 ±1.000" in text
    assert text.count("\n1 ") == text.count("\n3 ") == 1


@pytest.mark.parametrize("option", ["--epochs", "--seeds", "--particles"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_count_below_one_is_refused(option, value, capsys):
    with pytest.raises(SystemExit):
        quickstart.main([f"{option}={value}"])
    assert f"argument {option}: expected a whole number from 1 on, got '{value}'" in capsys.readouterr().err
