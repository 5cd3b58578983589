"""Pictures, by what is drawn: images and their colors, points, curves, patterns and labels."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread

from pyro_mmvae import plotting
from pyro_mmvae.datasets import MultimodalDataset, synthetic_cohort
from pyro_mmvae.training import History

matplotlib.use("Agg")
NAN = float("nan")


def axes() -> Any:
    return Figure().subplots()


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def rendered(ax: Any) -> np.ndarray:
    """The picture, so that a fault at drawing time shows."""
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png")
    buffer.seek(0)
    return imread(buffer)


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plotting.grid(torch.rand(2, 2, 3, 3), ax=ax),
        lambda ax: plotting.latent(torch.randn(5, 3), ax=ax),
        lambda ax: plotting.history({"loss": [1.0]}, ax=ax),
        lambda ax: plotting.missingness(MultimodalDataset({"a": torch.ones(3)}), ax=ax),
    ],
    ids=["grid", "latent", "history", "missingness"],
)
def test_axes_are_taken_or_made(draw: Any) -> None:
    ax = axes()
    assert draw(ax) is ax and not pyplot.get_fignums()
    made = draw(None)
    assert pyplot.get_fignums() and made.figure.axes[0] is made
    for picture in (rendered(ax), rendered(made)):
        assert picture.std() > 0.01


def test_importing_the_module_does_not_import_matplotlib() -> None:
    script = "import sys; import pyro_mmvae.plotting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


# ---- grid


def test_grid_draws_each_image_in_its_place() -> None:
    values = torch.arange(2 * 3 * 4 * 5, dtype=torch.float64).reshape(2, 3, 4, 5)
    ax = plotting.grid(values, ["a", "b", "c"], axes(), row_titles=["r", "s"], cmap="gray")
    assert len(ax.images) == 6
    centers, extents = [], []
    for image, expected in zip(ax.images, values.reshape(6, 4, 5), strict=True):
        left, right, bottom, top = image.get_extent()
        assert (right - left, bottom - top) == pytest.approx((5, 4))
        grey = image.get_array()[..., 0]  # one scale for all: 0 is black, 119 is white
        np.testing.assert_allclose(grey, expected / 119, atol=1 / 255)
        centers.append((round((left + right) / 2, 6), round((top + bottom) / 2, 6)))
        extents.append((left, right, top, bottom))
    columns, rows = sorted({x for x, _ in centers}), sorted({y for _, y in centers})
    assert centers == [(x, y) for y in rows for x in columns]  # row by row, from the top (y points down)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    for i, a in enumerate(extents):
        for b in extents[i + 1 :]:
            assert a[1] < b[0] or b[1] < a[0] or a[3] < b[2] or b[3] < a[2]  # apart
    assert texts(ax.get_xticklabels()) == ["a", "b", "c"] and texts(ax.get_yticklabels()) == ["r", "s"]
    np.testing.assert_allclose(ax.get_xticks(), columns)
    np.testing.assert_allclose(ax.get_yticks(), rows)


def test_grid_limits() -> None:
    images = torch.tensor([-5.0, 0.0, 8.0, 16.0]).reshape(1, 1, 2, 2)
    grey = plotting.grid(images, ax=axes(), vmin=0, vmax=16, cmap="gray").images[0].get_array()[..., 0]
    np.testing.assert_allclose(grey, [[0, 0], [0.5, 1]], atol=1 / 255)
    grey = plotting.grid(images, ax=axes(), cmap="gray").images[0].get_array()[..., 0]
    np.testing.assert_allclose(grey, [[0, 5 / 21], [13 / 21, 1]], atol=1 / 255)


def test_grid_draws_nan_as_missing() -> None:
    images = torch.zeros(1, 2, 4, 4)
    images[0, 0, 2:] = NAN
    images[0, 1, 0, 0] = 1.0
    first, second = plotting.grid(images, ax=axes()).images
    missing = (np.asarray(first.get_array()) == to_rgba(plotting.MISSING)).all(-1)
    assert missing.tolist() == [[False] * 4] * 2 + [[True] * 4] * 2
    assert not (np.asarray(second.get_array()) == to_rgba(plotting.MISSING)).all(-1).any()


def test_grid_channels() -> None:
    images = torch.rand(2, 3, 3, 4, 5)
    images[0, 0, :, 0, 0] = NAN
    ax = plotting.grid(images, ax=axes(), vmin=0, vmax=1)
    colors = np.asarray(ax.images[4].get_array())
    np.testing.assert_allclose(colors[..., :3], images[1, 1].permute(1, 2, 0), atol=1e-6)
    assert (colors[..., 3] == 1).all()
    assert tuple(ax.images[0].get_array()[0, 0]) == to_rgba(plotting.MISSING)
    one = plotting.grid(images[:, :, :1], ax=axes(), vmin=0, vmax=1, cmap="gray")
    np.testing.assert_allclose(one.images[4].get_array()[..., 1], images[1, 1, 0], atol=1 / 255)


@pytest.mark.parametrize("value", [3.0, NAN], ids=["constant", "all missing"])
def test_grid_without_a_range(value: float) -> None:
    assert rendered(plotting.grid(np.full((1, 2, 3, 3), value), ax=axes())).size


def test_grid_takes_integers_and_leaves_its_input() -> None:
    images = torch.randint(0, 17, (1, 2, 4, 8))
    before = images.clone()
    plotting.grid(images, ax=axes())
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"images": torch.rand(3, 4, 4)}, ValueError, r"expected \(R, C, H, W\).* got \(3, 4, 4\)"),
        ({"images": torch.rand(1, 1, 2, 4, 4)}, ValueError, r"got \(1, 1, 2, 4, 4\)"),
        ({"images": torch.rand(0, 2, 4, 4)}, ValueError, r"got \(0, 2, 4, 4\)"),
        ({"images": torch.rand(1, 2, 4, 4), "titles": ["a"]}, ValueError, "titles: expected 2, got 1"),
        ({"images": torch.rand(1, 2, 4, 4), "row_titles": []}, ValueError, "row_titles: expected 1, got 0"),
        ({"images": "picture"}, TypeError, "images: expected a tensor or array of numbers, got str"),
    ],
    ids=lambda v: None,
)
def test_grid_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plotting.grid(**arguments)


# ---- latent


def test_latent_classes_have_their_points_color_and_legend() -> None:
    z = torch.randn(60, 2)
    labels = torch.arange(60) % 3 + 4
    ax = plotting.latent(z, labels, axes())
    assert texts(ax.get_legend().get_texts()) == ["4", "5", "6"]
    assert len({tuple(points.get_facecolor()[0]) for points in ax.collections}) == 3
    for name, points in zip((4, 5, 6), ax.collections, strict=True):
        np.testing.assert_allclose(points.get_offsets(), z[labels == name], atol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z[0]", "z[1]")


def test_latent_strings_bools_and_no_labels() -> None:
    z = np.random.default_rng(0).normal(size=(4, 2))
    assert texts(plotting.latent(z, ["b", "a", "b", "a"], axes()).get_legend().get_texts()) == ["a", "b"]
    assert texts(plotting.latent(z, np.array([True, False] * 2), axes()).get_legend().get_texts()) == ["False", "True"]
    plain = plotting.latent(z, ax=axes())
    assert plain.get_legend() is None and len(plain.collections) == 1
    np.testing.assert_allclose(plain.collections[0].get_offsets(), z)


@pytest.mark.parametrize("labels", [torch.linspace(0, 1, 50), torch.arange(50)], ids=["float", "many integers"])
def test_latent_continuous_labels_have_a_color_scale(labels: torch.Tensor) -> None:
    ax = plotting.latent(torch.randn(50, 2), labels, axes())
    assert ax.get_legend() is None and len(ax.figure.axes) == 2  # the second is the color bar
    np.testing.assert_allclose(ax.collections[0].get_array(), labels)


def test_latent_wider_than_two_is_drawn_by_its_principal_components() -> None:
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    scores = torch.randn(400, 5, dtype=torch.float64) * torch.tensor([5.0, 3.0, 0.1, 0.1, 0.1])
    ax = plotting.latent(scores @ basis.T + 10, ax=axes())
    drawn = torch.from_numpy(np.asarray(ax.collections[0].get_offsets()))
    eigenvalues = torch.linalg.eigvalsh(torch.cov((scores @ basis.T).T)).flip(0)
    torch.testing.assert_close(drawn.var(0), eigenvalues[:2])
    torch.testing.assert_close(drawn.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    assert torch.corrcoef(drawn.T)[0, 1].abs() < 1e-9
    share = eigenvalues / eigenvalues.sum()
    assert ax.get_xlabel() == f"PC 1 ({share[0]:.0%} of variance)"
    assert ax.get_ylabel() == f"PC 2 ({share[1]:.0%} of variance)"


@pytest.mark.parametrize("shape", [(6, 1), (1, 4), (2, 3)], ids=str)
def test_latent_of_few_points_or_dimensions(shape: tuple[int, int]) -> None:
    ax = plotting.latent(torch.randn(shape), ax=axes())
    offsets = np.asarray(ax.collections[0].get_offsets())
    assert offsets.shape == (shape[0], 2) and np.isfinite(offsets).all()


@pytest.mark.parametrize(
    "z, labels, message",
    [
        (torch.randn(3), None, r"expected finite points, shape \(N, D\), got shape \(3,\)"),
        (torch.randn(0, 2), None, r"got shape \(0, 2\)"),
        (torch.tensor([[0.0, NAN]]), None, "with NaN"),
        (torch.randn(3, 2), [0, 1], r"labels: expected shape \(3,\), one per point, got \(2,\)"),
    ],
    ids=lambda v: None,
)
def test_latent_errors(z: torch.Tensor, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plotting.latent(z, labels)


# ---- history


def test_history_draws_each_curve_and_pairs_validation_with_training() -> None:
    curves: dict[str, list[float | None]] = {
        "train_loss": [3.0, 2.0, 1.0],
        "val_loss": [3.5, None, 1.5],
        "lr": [0.1, NAN, 0.05],
        "validation_lr": [None, 1.0, None],
    }
    ax = plotting.history(curves, axes())
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines) == list(curves) == texts(ax.get_legend().get_texts())
    assert lines["train_loss"].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert lines["val_loss"].get_xydata().tolist() == [[1, 3.5], [3, 1.5]]
    assert lines["lr"].get_xydata().tolist() == [[1, 0.1], [3, 0.05]]
    assert lines["validation_lr"].get_xydata().tolist() == [[2, 1]]
    assert [line.get_linestyle() for line in lines.values()] == ["-", "--", "-", "--"]
    colors = [line.get_color() for line in lines.values()]
    assert colors[0] == colors[1] != colors[2] == colors[3]
    assert ax.get_xlabel() == "epoch"
    assert all(tick == int(tick) for tick in ax.get_xticks())


def test_history_of_fit_draws_the_losses_alone() -> None:
    recorded = History(epoch=[1, 2], loss=[3.0, 2.0], val_loss=[3.5, 2.5], seconds=[0.1, 900.0], lr=[1e-3, 1e-3])
    ax = plotting.history(recorded, axes())
    assert [line.get_label() for line in ax.get_lines()] == ["loss", "val_loss"]


def test_history_without_curves() -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        plotting.history({})


# ---- missingness


def patterned() -> MultimodalDataset:
    """Five rows complete, three without b, two with a in part, nothing else."""
    a = torch.ones(10, 2)
    a[8:, 0] = NAN
    return MultimodalDataset(
        {"a": a, "b": torch.ones(10)},
        {"b": torch.arange(10).remainder(10).lt(5) | torch.arange(10).ge(8)},
        covariates={"c": torch.ones(10)},
    )


def test_missingness_patterns_counts_and_names() -> None:
    ax = plotting.missingness(patterned(), axes())
    assert np.asarray(ax.images[0].get_array()).tolist() == [[1, 1], [1, 0], [0.5, 1]]
    assert texts(ax.get_yticklabels()) == ["5 (50%)", "3 (30%)", "2 (20%)"]
    assert texts(ax.get_xticklabels()) == ["a", "b"]
    assert texts(ax.get_legend().get_texts()) == ["observed", "in part", "missing"]
    assert ax.get_xlabel() == ""
    colors = ax.images[0].cmap(np.array([0.0, 1.0]))
    np.testing.assert_allclose(colors, [to_rgba(plotting.MISSING), to_rgba(plotting.OBSERVED)])


def test_missingness_sums_up_rare_patterns() -> None:
    ax = plotting.missingness(patterned(), axes(), max_patterns=1)
    assert texts(ax.get_yticklabels()) == ["5 (50%)"]
    assert ax.get_xlabel() == "2 more patterns, 5 samples"
    assert texts(ax.get_legend().get_texts()) == ["observed"]
    with pytest.raises(ValueError, match="max_patterns: expected at least 1, got 0"):
        plotting.missingness(patterned(), max_patterns=0)


def test_missingness_counts_every_row() -> None:
    ds = MultimodalDataset({f"x{i}": torch.ones(500) for i in range(4)}).hide(0.5, seed=0)
    ax = plotting.missingness(ds, axes())
    counts = [int(label.split()[0]) for label in texts(ax.get_yticklabels())]
    state = torch.stack(list(ds.obs_mask.values()), -1)
    for row, count in zip(np.asarray(ax.images[0].get_array()), counts, strict=True):
        assert (state == torch.tensor(row == 1)).all(-1).sum() == count
    assert sum(counts) == 500 and counts == sorted(counts, reverse=True)


def test_missingness_draws_the_share_of_each_feature() -> None:
    ax = plotting.missingness(patterned(), axes())
    observed = [bars for bars in ax.patches if tuple(bars.get_facecolor()) == to_rgba(plotting.OBSERVED)]
    assert len(observed) == 2  # one outline for each modality
    for i, (bars, shares) in enumerate(zip(observed, ([0.8, 1.0], [0.7]), strict=True)):
        tops, edges, bottom = bars.get_data()
        np.testing.assert_allclose((bottom - tops) / 3.0, shares)
        assert i - 0.5 < edges[0] < edges[-1] < i + 0.5
    assert {"2 features", "1 feature", "100%", "0%", "observed"} <= {text.get_text() for text in ax.texts}
    assert ax.get_ylim()[0] > 6 and rendered(ax).std() > 0.01


def test_missingness_of_whole_modalities_draws_patterns_alone() -> None:
    ax = plotting.missingness(MultimodalDataset({"a": torch.ones(3, 2)}), axes())
    assert not ax.texts and not ax.patches and ax.get_ylim() == (0.5, -0.5)


def test_missingness_of_tables() -> None:
    ds = synthetic_cohort(50)
    ax = plotting.missingness(ds, max_patterns=5)
    assert texts(ax.get_xticklabels()) == ["mrna", "protein", "clinical"]
    assert {"12 features", "8 features", "7 features"} <= {text.get_text() for text in ax.texts}
    picture = rendered(ax)
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])[:, :3]
    assert (edge == 1).all()  # nothing is cut off
