"""The simulated cohort against its own story: moments, gaps, and what is given as the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_mmvae.datasets import MultimodalDataset, synthetic_cohort


@pytest.fixture(scope="module")
def large() -> MultimodalDataset:
    return synthetic_cohort(4000, seed=3)


def test_tables_and_covariates(large: MultimodalDataset) -> None:
    assert large.modalities == ("mrna", "protein", "clinical") and large.covariates == ("age", "site")
    assert large.frames is not None
    kinds = {m: [c.kind for c in columns] for m, columns in large.frames.columns.items()}
    assert kinds["mrna"] == ["real"] * 12 and kinds["protein"] == ["real"] * 8
    assert kinds["clinical"] == ["real", "real", "positive", "count", "binary", "ordinal", "category"]
    assert large.data["site"].unique().tolist() == [0, 1, 2]


def test_observed_cells_are_those_of_the_truth(large: MultimodalDataset) -> None:
    assert large.frames is not None
    assert large.frames.index.equals(large.truth.context.index) and len(large.truth.z) == 4000
    for m, frame in large.frames.original.items():
        complete = large.truth.frames[m]
        assert complete.index.equals(frame.index) and complete.notna().to_numpy().all()
        for name in frame:
            seen = frame[name].notna()
            assert frame.loc[seen, name].tolist() == complete.loc[seen, name].tolist()
    assert large.truth.context["age"].to_numpy() == pytest.approx(large.data["age"].numpy(), rel=1e-6)  # float32


def test_rates_of_gaps(large: MultimodalDataset) -> None:
    n = len(large)
    for m, absent, missing in (("mrna", 0.2, 0.02), ("protein", 1 / 3, 0.05)):
        mask = large.obs_mask[m]
        there = mask.any(-1)
        assert abs(1 - there.double().mean() - absent) < 4 * (absent * (1 - absent) / n) ** 0.5  # standard errors
        cells = mask[there].double()
        assert abs(1 - cells.mean() - missing) < 4 * (missing * (1 - missing) / cells.numel()) ** 0.5
    assert torch.stack([mask.any(-1) for mask in large.obs_mask.values()]).any(0).all()


def test_real_columns_have_the_moments_of_the_truth(large: MultimodalDataset) -> None:
    truth = large.truth
    clinical = truth.frames["clinical"][["bmi", "systolic"]]
    real = pd.concat([truth.frames["mrna"], truth.frames["protein"], clinical], axis=1)
    covariance = truth.covariance().to_numpy()
    residual = (real - truth.mean()).to_numpy()
    sd = np.sqrt(np.diag(covariance))
    assert (np.abs(residual.mean(0)) < 4.5 * sd / 4000**0.5).all()
    # the standard error of a covariance of normal variables
    error = np.sqrt((covariance**2 + np.outer(sd**2, sd**2)) / 4000)
    assert (np.abs(residual.T @ residual / 4000 - covariance) < 4.5 * error).all()
    weights = truth.weights.loc[real.columns].to_numpy()
    noise = residual / truth.unit.to_numpy() - truth.z @ weights.T
    assert abs(noise.std() - truth.noise) < 4 * truth.noise / (2 * noise.size) ** 0.5


def test_other_columns_follow_their_signals(large: MultimodalDataset) -> None:
    truth, clinical = large.truth, large.truth.frames["clinical"]
    site = clinical.index.map(truth.context["site"])
    design = np.stack([(truth.context["age"] - 60) / 10, site == "Kyoto", site == "Lima"], 1).astype(float)
    e = pd.DataFrame(
        truth.z @ truth.weights.to_numpy().T + design @ truth.effects.to_numpy().T,
        index=clinical.index,
        columns=truth.weights.index,
    )
    n = len(clinical)
    mean = np.exp(1.2 + 0.5 * e["lesions"])
    excess = (clinical["lesions"] - mean) / np.sqrt(mean + mean**2 / 4)  # mean 0, variance 1
    assert abs(excess.mean()) < 4 / n**0.5
    chance = 1 / (1 + np.exp(0.5 - 1.5 * e["smoker"]))
    assert abs((clinical["smoker"] - chance).mean()) < 4 * 0.5 / n**0.5
    late = 1 / (1 + np.exp(1.5 - 1.5 * e["stage"]))
    assert abs(((clinical["stage"] == "IV") - late).mean()) < 4 * 0.5 / n**0.5
    logits = np.exp(1.2 * e[[f"histology: {t}" for t in ("ductal", "lobular", "mixed")]].to_numpy())
    shares = logits / logits.sum(1, keepdims=True)
    for k, name in enumerate(("ductal", "lobular", "mixed")):
        assert abs(((clinical["histology"] == name) - shares[:, k]).mean()) < 4 * 0.5 / n**0.5
    log_crp = (np.log(clinical["crp"] / 3) / 0.6 - e["crp"]).to_numpy()
    assert abs(log_crp.std() - truth.noise) < 4 * truth.noise / (2 * n) ** 0.5


def test_seeds_and_sizes() -> None:
    first, again, other = synthetic_cohort(60, 1), synthetic_cohort(60, 1), synthetic_cohort(60, 2)
    assert first.frames is not None and again.frames is not None and len(other) == 60
    for m, frame in first.frames.original.items():
        pd.testing.assert_frame_equal(frame, again.frames.original[m], check_exact=True)
    assert first.truth.z.tolist() != other.truth.z.tolist()
    with pytest.raises(ValueError, match="n: expected at least 20 patients, got 3"):
        synthetic_cohort(3)
