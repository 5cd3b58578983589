"""Hiding at random: the rate, the sample that is never emptied, and values that are really gone."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from pyro_mmvae.datasets import MultimodalDataset

N = 20_000


def complete(modalities: int, n: int = N) -> MultimodalDataset:
    return MultimodalDataset({f"x{i}": torch.ones(n, 2) for i in range(modalities)})


def seen(ds: MultimodalDataset) -> torch.Tensor:  # shape: (N, M)
    return torch.stack([mask.reshape(len(ds), -1).any(-1) for mask in ds.obs_mask.values()], -1)


@pytest.mark.parametrize(
    "modalities, rate", [(2, 0.2), (2, 0.5), (3, 0.5), (3, 0.6), (5, 0.1), (5, 0.8)], ids=lambda v: str(v)
)
@pytest.mark.parametrize("keep_one", [True, False])
def test_rate(modalities: int, rate: float, keep_one: bool) -> None:
    mask = seen(complete(modalities).hide(rate, seed=1, keep_one=keep_one))
    # four binomial standard errors; with keep_one the entries of a row repel each other, which only narrows the whole
    error = 4 * math.sqrt(rate * (1 - rate) / N)
    assert abs((~mask).double().mean().item() - rate) < error / math.sqrt(modalities)
    assert ((~mask).double().mean(0) - rate).abs().max() < error  # no modality is favored
    emptied = 0.0 if keep_one else rate**modalities
    assert abs((~mask).all(-1).double().mean().item() - emptied) <= 4 * math.sqrt(emptied * (1 - emptied) / N)


def test_one_of_three_kept_is_uniform_and_patterns_have_their_probabilities() -> None:
    rate, k = 0.5, 3
    mask = seen(complete(k).hide(rate, seed=2))
    p = next(p for p in (i / 1e5 for i in range(100_001)) if p - p**k / k >= rate)
    count = torch.bincount(mask.sum(-1), minlength=k + 1) / N
    expected = [0.0, p**3 + 3 * p**2 * (1 - p), 3 * p * (1 - p) ** 2, (1 - p) ** 3]
    for got, want in zip(count.tolist(), expected, strict=True):
        assert abs(got - want) <= 4 * math.sqrt(want * (1 - want) / N) + 1e-4  # 1e-4: the grid for p


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.75])
def test_hide_never_empties_a_sample_that_had_something(rate: float) -> None:
    had = torch.rand(500, 4) < 0.4
    ds = MultimodalDataset({f"x{i}": torch.ones(500, 3) for i in range(4)}, {f"x{i}": had[:, i] for i in range(4)})
    mask = seen(ds.hide(rate, seed=0))
    assert torch.equal(mask.any(-1), had.any(-1))
    assert not (mask & ~had).any()
    assert (mask != had).any()


def test_rates_zero_and_one() -> None:
    ds = complete(3, 50)
    assert seen(ds.hide(0.0)).all()
    assert not seen(ds.hide(1.0, keep_one=False)).any()
    assert (seen(ds.hide(2 / 3)).sum(-1) == 1).all()


def test_hidden_values_are_gone_and_the_rest_is_bit_equal() -> None:
    n = 200
    data = {
        "float": torch.full((n, 3), 7.0),
        "half": torch.full((n,), 7.0, dtype=torch.float16),
        "int": torch.full((n, 2), 7),
        "bool": torch.ones(n, dtype=torch.bool),
    }
    ds = MultimodalDataset(data, covariates={"c": torch.full((n,), 7.0)}, labels=torch.full((n,), 7))
    gone = ds.hide(0.5, seed=0)
    for name, mask in gone.obs_mask.items():
        value = gone.data[name]
        hidden, kept = value[~mask], value[mask]
        assert hidden.numel() and kept.numel()
        assert hidden.isnan().all() if value.is_floating_point() else not hidden.any()
        assert (kept == data[name].reshape(-1)[0]).all() and value.dtype == data[name].dtype
        assert torch.equal(ds.data[name], torch.full_like(value, data[name].reshape(-1)[0].item()))
        assert ds.obs_mask[name].all()
    assert (gone.data["c"] == 7).all() and (gone.labels == 7).all()
    assert all(torch.equal(gone.obs_mask[m], MultimodalDataset(gone.data).obs_mask[m]) for m in ("float", "half"))


def test_feature_level_hides_cells_and_adds_to_what_was_missing() -> None:
    n = 2_000
    x = torch.ones(n, 4, 5)
    x[:100, 0] = float("nan")
    ds = MultimodalDataset({"x": x, "y": torch.ones(n, 1), "label": torch.ones(n, dtype=torch.long)})
    gone = ds.hide(0.3, level="feature", seed=0)
    mask = gone.obs_mask["x"]
    assert mask.shape == (n, 4, 5) and not mask[:100, 0].any()
    assert torch.equal(mask, ~gone.data["x"].isnan())
    left = mask.sum().item() / ds.obs_mask["x"].sum().item()
    assert abs(left - 0.7) < 4 * math.sqrt(0.21 / ds.obs_mask["x"].sum().item())
    for name in ("y", "label"):
        assert gone.obs_mask[name].shape == (n,)
        assert abs(gone.obs_mask[name].double().mean().item() - 0.7) < 4 * math.sqrt(0.21 / n)
    assert torch.equal(gone.data["y"].isnan().squeeze(-1), ~gone.obs_mask["y"])


def test_feature_level_keeps_one_cell() -> None:
    ds = MultimodalDataset({"x": torch.ones(3_000, 3), "y": torch.ones(3_000)})
    gone = ds.hide(0.75, level="feature", seed=0)
    assert (gone.obs_mask["x"].sum(-1) + gone.obs_mask["y"] == 1).all()
    assert gone.obs_mask["x"].shape == (3_000, 3)


def test_modality_level_hides_a_partly_observed_row_whole() -> None:
    x = torch.ones(400, 2)
    x[:, 0] = float("nan")
    gone = MultimodalDataset({"x": x, "y": torch.ones(400)}).hide(0.5, seed=0)
    mask = gone.obs_mask["x"]
    assert not mask[:, 0].any() and 0 < mask[:, 1].sum() < 400
    assert torch.equal(gone.data["x"][:, 1].isnan(), ~mask[:, 1])
    assert (mask.any(-1) != gone.obs_mask["y"]).all()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"rate": 0.6}, ValueError, "at most 0.5 .* keep_one=False"),
        ({"rate": -0.1}, ValueError, r"fraction in \[0, 1\], got -0.1"),
        ({"rate": float("nan")}, ValueError, "got nan"),
        ({"rate": 1.5, "keep_one": False}, ValueError, "got 1.5"),
        ({"mechanism": "mnar"}, NotImplementedError, "'mnar': known is 'mcar'.*obs_mask"),
        ({"level": "pixel"}, ValueError, "'modality' or 'feature', got 'pixel'"),
        ({"seed": 1.5}, TypeError, "seed: expected an int, got 1.5"),
    ],
    ids=lambda v: str(v)[:24],
)
def test_errors(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        complete(2, 5).hide(**options)  # type: ignore[arg-type]


def fingerprint() -> str:
    """Numbers that change with any row that hide, split or batches treat differently."""
    ds = MultimodalDataset({f"x{i}": torch.arange(300) for i in range(3)}).split(0.7, seed=1)[0].hide(0.5, seed=4)
    row = torch.arange(len(ds), dtype=torch.float64)
    order = torch.cat([data["x0"] for data, _ in ds.batches(99, shuffle=True, seed=2)])
    return str([(mask @ row).item() for mask in seen(ds).double().mT] + [(order @ row.long()).item()])


def test_same_seed_same_result_in_a_new_process() -> None:
    script = (
        f"import sys, torch; torch.manual_seed(7); exec(open({__file__!r}).read()); sys.stdout.write(fingerprint())"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == fingerprint()
