"""The algebra of masks: forms, filling, subsets."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from pyro_mmvae.masks import (
    ObsMask,
    batch_size,
    check_mask,
    complement,
    fill,
    intersect,
    normalize,
    observed_rows,
    powerset,
    random_subsets,
    restrict,
    singletons,
)

SHAPES: dict[str, tuple[int, ...]] = {"image": (2, 3), "label": (), "vector": (4,)}
B = 5


def some(**masks: Any) -> ObsMask:
    return normalize(masks, SHAPES, B)


def test_normalize_forms() -> None:
    rows, features = torch.tensor([1, 0, 1, 0, 1]).bool(), torch.rand(B, 2, 3) < 0.5
    features[1] = False
    found = some(image=features, label=rows, vector=rows)
    assert list(found) == list(SHAPES)
    assert {m: tuple(x.shape) for m, x in found.items()} == {"image": (B, 2, 3), "label": (B,), "vector": (B, 1)}
    assert torch.equal(found["image"], features) and torch.equal(found["vector"].squeeze(-1), rows)
    assert torch.equal(found.rows["image"], features.flatten(1).any(-1)) and torch.equal(found.rows["label"], rows)
    assert found.private is None and found.index == {} and found.stacked(("label", "image")).shape == (B, 2)


def test_normalize_defaults() -> None:
    for given in (None, {}, {"image": None}):
        assert all(x.all() for x in normalize(given, SHAPES, B).values())
    found = normalize({"label": torch.ones(B).bool()}, SHAPES, B, absent=("label", "vector"))
    assert {m: bool(x.any()) for m, x in found.items()} == {"image": True, "label": False, "vector": False}
    assert found["vector"].shape == (B, 1)


def test_normalize_does_not_guess_between_rows_and_features() -> None:
    """Five rows of five features: a square mask is features, one of length five is rows."""
    shapes = {"x": (5,)}
    rows = torch.tensor([1, 0, 1, 0, 1]).bool()
    assert normalize({"x": rows}, shapes, 5)["x"].shape == (5, 1)
    square = torch.eye(5).bool()
    assert torch.equal(normalize({"x": square}, shapes, 5)["x"], square)
    with pytest.raises(ValueError, match=r"expected shape \(5,\) \(whole modality\) or \(5, 5\)(.|\n)*got \(3, 5, 1\)"):
        normalize({"x": torch.ones(3, 5, 1).bool()}, shapes, 5)  # terms exist only inside


@pytest.mark.parametrize(
    ("mask", "kind", "words"),
    [
        (torch.ones(B), TypeError, "bool.*float32.*mask == 0"),
        (torch.ones(B).long(), TypeError, "bool.*int64"),
        ([True] * B, TypeError, "bool Tensor, got list"),
        (torch.ones(B + 1).bool(), ValueError, r"\(5,\).*\(5, 2, 3\).*got \(6,\)"),
        (torch.ones(B, 1, 1).bool(), ValueError, r"got \(5, 1, 1\)"),
        (torch.ones(()).bool(), ValueError, r"got \(\)"),
    ],
)
def test_check_mask(mask: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=rf"^obs_mask\['image'\](.|\n)*{words}"):
        check_mask("image", mask, (B, 2, 3))


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"unknown keys \['text'\]; modalities are \['image', 'label', 'vector'\]"):
        some(text=torch.ones(B).bool())


def test_batch_size() -> None:
    assert batch_size({"a": torch.zeros(3, 2), "b": None}) == 3 and batch_size({}, 7) == 7
    for data, n, words in (
        ({}, None, "data is empty"),
        ({"a": torch.zeros(3), "b": torch.zeros(2)}, None, "'a': 3, 'b': 2"),
        ({"a": torch.zeros(3)}, 4, "'a': 3, 'n': 4"),
        ({"a": torch.zeros(0, 2)}, None, "0 rows"),
        ({}, 0, "0 rows"),
        ({}, -2, "-2 rows"),
    ):
        with pytest.raises(ValueError, match=words):
            batch_size(data, n)


@pytest.mark.parametrize("content", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_fill(content: float) -> None:
    x, mask = torch.randn(B, 2, 3), torch.rand(B, 2, 3) < 0.5
    shown = torch.where(mask, x, content)
    found = fill(shown, mask, torch.arange(3.0))
    assert torch.equal(found, torch.where(mask, x, torch.arange(3.0)))
    assert torch.equal(shown.isfinite(), mask | torch.tensor(content).isfinite())  # the input stays
    labels = fill(torch.tensor([4, -1]), torch.tensor([True, False]), torch.tensor(0.0))
    assert labels.tolist() == [4, 0] and labels.dtype == torch.int64


def test_set_operations() -> None:
    rows = [torch.tensor([n >> i & 1 for n in range(4)]).bool() for i in range(2)]
    shapes = {"a": (2,), "b": ()}
    p = normalize({"a": rows[0]}, shapes, 4)
    q = normalize({"a": rows[1], "b": rows[1]}, shapes, 4)
    both = intersect(p, q)
    assert torch.equal(both.rows["a"], rows[0] & rows[1]) and torch.equal(both["b"], rows[1])
    assert torch.equal(intersect(p, {"a": q["a"]})["b"], p["b"])  # a modality that b lacks stays
    rest = complement(both, p)
    assert torch.equal(rest.rows["a"], rows[0] & ~rows[1]) and torch.equal(rest["b"], ~rows[1])
    assert all(not (rest[m] & both[m]).any() and torch.equal(rest[m] | both[m], p[m]) for m in shapes)
    alone = restrict(q, ["b"])
    assert not alone["a"].any() and torch.equal(alone["b"], q["b"]) and alone["a"].shape == q["a"].shape
    assert torch.equal(q.rows["a"], rows[1])  # the argument stays


def test_restrict_keeps_known_indices() -> None:
    mask = some(label=torch.tensor([1, 0, 1, 0, 0]).bool())
    mask.index = {"label": torch.tensor([0, 2]), "image": torch.arange(5)}
    assert {m: x.tolist() for m, x in restrict(mask, {"label"}).index.items()} == {"label": [0, 2]}


def test_features_of_intersections() -> None:
    """Per-feature masks intersect feature by feature; a modality is observed if any feature is."""
    left, right = torch.rand(B, 4) < 0.5, torch.rand(B, 4) < 0.5
    both = intersect(some(vector=left), some(vector=right))
    assert torch.equal(both["vector"], left & right) and torch.equal(both.rows["vector"], (left & right).any(-1))
    rows = torch.tensor([1, 0, 1, 0, 1]).bool()
    assert torch.equal(intersect(some(vector=left), some(vector=rows))["vector"], left & rows.unsqueeze(-1))


def test_masks_of_whole_modalities_with_terms() -> None:
    rows = {m: torch.rand(3, B) < 0.5 for m in SHAPES}
    found = ObsMask.of_rows(rows, {m: len(s) for m, s in SHAPES.items()})
    assert found["image"].shape == (3, B, 1, 1) and found["label"].shape == (3, B)
    assert all(torch.equal(found.rows[m], rows[m]) for m in SHAPES)
    assert torch.equal(observed_rows(found["image"], 2), rows["image"])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_powerset(count: int) -> None:
    table = powerset(count)
    assert len(table) == 2**count - 1 and table.dtype == torch.bool
    assert len({tuple(row) for row in table.tolist()}) == len(table)
    sizes = table.sum(-1)
    assert (sizes.diff() >= 0).all() and sizes[0] == 1
    expected = [set(c) for k in (2, 3) for c in combinations(range(count), k)]
    found = powerset(count, min_size=2, max_size=3) if count >= 3 else None
    if found is not None:
        assert [set(row.nonzero().flatten().tolist()) for row in found] == expected
    assert torch.equal(singletons(count), powerset(count, max_size=1))
    assert powerset(count, min_size=0).sum(-1)[0] == 0


def test_random_subsets_are_uniform_and_different() -> None:
    """4 of the 10 subsets of 2 or 3 among 4 modalities: each turns up in 40 % of the draws."""
    generator, counts, draws = torch.Generator().manual_seed(3), {}, 4000
    for _ in range(draws):
        table = random_subsets(4, 4, generator=generator)
        rows = {tuple(row) for row in table.tolist()}
        assert len(rows) == 4 and all(2 <= sum(row) <= 3 for row in rows)
        for row in rows:
            counts[row] = counts.get(row, 0) + 1
    assert len(counts) == 10
    error = (0.4 * 0.6 / draws) ** 0.5
    assert all(abs(c / draws - 0.4) < 4.5 * error for c in counts.values())


def test_random_subsets_at_the_edges() -> None:
    assert random_subsets(0, 3).shape == (0, 3)
    assert len(random_subsets(4, 3, min_size=2, max_size=3)) == 4
    for k in (-1, 4):
        with pytest.raises(ValueError, match=rf"k = {k}, but 3 modalities have 3 subsets(.|\n)*Fix: 0 <= k <= 3"):
            random_subsets(k, 3)
    first = random_subsets(2, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, random_subsets(2, 4, generator=torch.Generator().manual_seed(1)))


def test_random_subsets_by_size_are_uniform_over_sizes() -> None:
    draws = torch.cat([random_subsets(1, 5, min_size=1, max_size=4, by_size=True) for _ in range(4000)])
    counts = draws.sum(-1).bincount(minlength=5)[1:].double() / 4000
    assert (counts - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5  # four standard errors
    assert len(random_subsets(6, 4, by_size=True).unique(dim=0)) == 6  # without replacement
