"""
Proteins of breast tumors from their mRNA and microRNA: ``python -m benchmarks.tcga --splits 0 1 2``.

Five folds of the 150 training patients per split. Errors are in units of each protein's standard deviation over the
training fold, over all held-out cells; coverage is that of central 90 % predictive intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyro_mmvae as mm
from pyro_mmvae.quickstart.recipe import fit_options, recipe

FOLDS, DRAWS = 5, 400
GIVEN, TARGET = ("mrna", "mirna"), "protein"
Score = tuple[float, float]  # root mean squared error; coverage, NaN without intervals


def folds(ds: Any, split: int) -> list[tuple[Any, Any]]:
    """Training and held-out patients of each fold; held-out columns are those of the training patients."""
    from sklearn.model_selection import KFold

    frames, found = ds.frames.original, []
    for a, b in KFold(FOLDS, shuffle=True, random_state=split).split(np.arange(len(ds))):
        train = mm.MultimodalDataset.from_frames({m: f.iloc[a] for m, f in frames.items()})
        found.append((train, mm.MultimodalDataset.from_frames({m: f.iloc[b] for m, f in frames.items()}, like=train)))
    return found


def _standardized(train: Any, test: Any, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Both parts by the training part's means and standard deviations, modalities side by side."""
    a, b = (np.concatenate([ds.data[m].double().numpy() for m in names], 1) for ds in (train, test))
    loc, scale = a.mean(0), a.std(0)
    return (a - loc) / scale, (b - loc) / scale


def of_baseline(make: Callable[[], Any]) -> Callable[[Any, Any, int], Score]:
    """The score of a regression of scikit-learn."""

    def score(train: Any, test: Any, seed: int) -> Score:
        (x, x_new), (y, y_new) = _standardized(train, test, GIVEN), _standardized(train, test, (TARGET,))
        return float(np.sqrt(((make().fit(x, y).predict(x_new) - y_new) ** 2).mean())), float("nan")

    return score


def baselines() -> dict[str, Callable[[Any, Any, int], Score]]:
    """Column means, neighbors, partial least squares, and ridge with its penalty by leave-one-out."""
    from sklearn.cross_decomposition import PLSRegression
    from sklearn.dummy import DummyRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.neighbors import KNeighborsRegressor

    return {
        "ridge": of_baseline(lambda: RidgeCV(np.logspace(0, 5, 21))),
        "PLS(2)": of_baseline(lambda: PLSRegression(2, scale=False)),
        "kNN(10)": of_baseline(lambda: KNeighborsRegressor(10)),
        "column mean": of_baseline(DummyRegressor),
    }


def of_vae(vae: mm.MultimodalVAE, train: Any, test: Any, seed: int) -> Score:
    """The score of a trained model."""
    data = {m: test.data[m] for m in GIVEN}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean = vae.predict(data, target={TARGET}, num_samples=DRAWS, noise=False)[TARGET].mean(0)
        draws = vae.predict(data, target={TARGET}, num_samples=DRAWS)[TARGET]
    low, high = draws.quantile(0.05, 0), draws.quantile(0.95, 0)
    truth, scale = test.data[TARGET], train.data[TARGET].std(0, correction=0)
    inside = (low <= truth) & (truth <= high)
    return float(((mean - truth) / scale).square().mean().sqrt()), float(inside.float().mean())


def of_method(name: str) -> Callable[[Any, Any, int], Score]:
    """The score of a method with the networks of ``for_data`` and the options of the recipe."""

    def score(train: Any, test: Any, seed: int) -> Score:
        torch.manual_seed(seed)
        vae = recipe(train, seed=seed) if name == "recipe" else getattr(mm, name).for_data(train, latent_dim=16)
        mm.fit(vae, train, **fit_options(train, seed=seed))
        return of_vae(vae, train, test, seed)

    return score


def of_plain(train: Any, test: Any, seed: int) -> Score:
    """MoPoE with all options of ``for_data`` and ``fit`` left at their defaults."""
    torch.manual_seed(seed)
    vae = mm.MoPoE.for_data(train, latent_dim=16)
    mm.fit(vae, train, progress=False, seed=seed)
    return of_vae(vae, train, test, seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/tcga_brca"))
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=["recipe", "fit defaults", "MVAE"])
    options = parser.parse_args(argv)

    torch.set_num_threads(1)
    ds, _ = mm.datasets.tcga_brca(options.root)
    parts = [(train, test, i) for split in options.splits for i, (train, test) in enumerate(folds(ds, split))]
    own = {name: of_plain if name == "fit defaults" else of_method(name) for name in options.methods}
    print(f"{'method':14s} {'RMSE':>7s} {'/ ridge':>8s} {'s.e.':>7s} {'coverage':>9s}   splits {options.splits}")
    ridge = np.ones(len(parts))
    for name, score in {**baselines(), **own}.items():
        found = np.array([score(*part) for part in parts])  # shape: (splits * folds, 2)
        ridge = found[:, 0] if name == "ridge" else ridge
        ratio = found[:, 0] / ridge
        error = ratio.std(ddof=1) / np.sqrt(len(ratio))
        (rmse, cover), worst = found.mean(0), found[:, 1]
        text = "" if np.isnan(cover) else f"{cover:9.3f}   folds {worst.min():.3f} to {worst.max():.3f}"
        print(f"{name:14s} {rmse:7.4f} {ratio.mean():8.4f} {error:7.4f} {text}", flush=True)


if __name__ == "__main__":
    main()
