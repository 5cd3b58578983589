"""Bad input at the door: the kind of error, what its message says, and that the caller's objects stay as they are."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_mmvae as mm

B = 4


def story(age: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("image", dist.Normal(z.sum(-1)[..., None, None] * torch.ones(2, 3), 1.0).to_event(2))
    pyro.sample("pixels", dist.Bernoulli(logits=z).to_event(1))
    pyro.sample("counts", dist.Poisson(z.exp()).to_event(1))
    pyro.sample("digit", dist.Categorical(logits=age[..., None] * torch.ones(10)))
    pyro.sample("hot", dist.OneHotCategorical(logits=age[..., None] * torch.ones(3)))
    pyro.sample("joint", dist.MultivariateNormal(z, torch.eye(2)))


MODALITIES = ("image", "pixels", "counts", "digit", "hot", "joint")


IMAGE = torch.randn(B, 2, 3, generator=torch.Generator().manual_seed(0))


def good() -> dict[str, Tensor]:
    return {
        "age": torch.linspace(0.0, 1.0, B),
        "image": IMAGE.clone(),
        "pixels": torch.ones(B, 2),
        "counts": torch.full((B, 2), 3.0),
        "digit": torch.tensor([0, 9, 3, 1]),
        "hot": torch.eye(3)[[0, 1, 2, 0]],
        "joint": IMAGE[:, 0, :2].clone(),
    }


def at(x: Tensor, row: int, value: float) -> Tensor:
    x = x.clone()
    x.reshape(B, -1)[row, -1] = value
    return x


SEEN = torch.ones(B, dtype=torch.bool)

def changed(name: str, row: int, value: float) -> dict[str, Tensor]:
    return {name: at(good()[name], row, value)}


V, T = ValueError, TypeError
WAYS_OUT = ("threshold", "continuous_bernoulli", "relaxed_bernoulli")

# data changes, mask changes, kind of error, what the message must say
CASES: dict[str, tuple[Any, Any, type[Exception], tuple[str, ...]]] = {
    "unknown key in data": ({"text": torch.zeros(B)}, {}, V, ("'text'", "'image'", "age", "Fix")),
    "unknown key in mask": ({}, {"text": SEEN}, V, ("'text'", "'image'", "Fix")),
    "no mapping": ({}, [SEEN], T, ("obs_mask", "mapping", "list", "Fix")),
    "no tensor": ({"image": [[0.0]]}, {}, T, ("'image'", "Tensor", "list", "torch.as_tensor")),
    "numpy": ({"image": torch.zeros(B, 2, 3).numpy()}, {}, T, ("'image'", "Tensor", "ndarray", "Fix")),
    "scalar": ({"image": torch.zeros(())}, {}, V, ("'image'", "(B, *event)", "scalar", "Fix")),
    "wrong event shape": ({"image": torch.zeros(B, 3, 2)}, {}, V, ("'image'", "(B, 2, 3)", "(4, 3, 2)", "Fix")),
    "flat event": ({"pixels": torch.zeros(B)}, {}, V, ("'pixels'", "(B, 2)", "(4,)", "Fix")),
    "event too many": ({"digit": torch.zeros(B, 1).long()}, {}, V, ("'digit'", "(B,)", "(4, 1)", "Fix")),
    "ragged": ({"image": torch.zeros(3, 2, 3)}, {}, V, ("Ragged", "'image': 3", "'pixels': 4", "Fix")),
    "covariate missing": ({"age": None}, {}, V, ("'age'", "covariate", "Fix")),
    "covariate masked": ({}, {"age": SEEN}, V, ("'age'", "covariate", "always complete", "Fix")),
    "covariate NaN": (changed("age", 1, torch.nan), {}, V, ("'age'", "NaN", "always complete", "Fix")),
    "float mask": ({}, {"image": SEEN.float()}, T, ("'image'", "bool", "float32", "Fix")),
    "integer mask": ({}, {"image": SEEN.int()}, T, ("'image'", "bool", "int32", "Fix")),
    "list mask": ({}, {"image": [True] * B}, T, ("'image'", "bool", "list", "Fix")),
    "mask longer": ({}, {"image": torch.ones(5).bool()}, V, ("'image'", "(4,)", "(5,)", "Fix")),
    "mask of a part": ({}, {"image": torch.ones(B, 2).bool()}, V, ("'image'", "(4, 2, 3)", "(4, 2)", "Fix")),
    "mask with ones": ({}, {"pixels": torch.ones(B, 1).bool()}, V, ("'pixels'", "(4, 2)", "(4, 1)", "Fix")),
    "observed NaN": (changed("image", 2, torch.nan), {}, V, ("'image'", "row 2", "nan", "obs_mask", "Fix")),
    "observed inf": (changed("image", 2, torch.inf), {}, V, ("'image'", "row 2", "inf", "obs_mask", "Fix")),
    "half a pixel": (changed("pixels", 1, 0.5), {}, V, ("'pixels'", "row 1", "0.5", "Bernoulli", *WAYS_OUT)),
    "negative count": (changed("counts", 3, -1), {}, V, ("'counts'", "row 3", "-1.0", "Poisson", "Fix")),
    "class 10 of 10": (changed("digit", 1, 10), {}, V, ("'digit'", "row 1", "10", "Categorical", "Fix")),
    "class -1": (changed("digit", 1, -1), {}, V, ("'digit'", "row 1", "-1", "Categorical", "Fix")),
    "two hot": ({"hot": torch.ones(B, 3)}, {}, V, ("'hot'", "row 0", "OneHotCategorical", "Fix")),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str) -> None:
    data, obs_mask, kind, words = CASES[name]
    model = mm.observe(story, MODALITIES)
    data = {**good(), **data}
    before = copy.deepcopy((data, obs_mask))
    with pytest.raises(kind) as caught:
        model(data, obs_mask)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert unchanged(before, (data, obs_mask))


def unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return list(before) == list(after) and all(unchanged(b, after[k]) for k, b in before.items())
    if isinstance(before, tuple | list):
        return len(before) == len(after) and all(map(unchanged, before, after))
    if isinstance(before, Tensor):
        return before.dtype == after.dtype and torch.equal(before.isnan(), after.isnan()) and bool(
            (before.isnan() | (before == after)).all()
        )
    return bool((before == after).all()) if hasattr(before, "all") else before == after


def test_data_that_is_no_mapping() -> None:
    with pytest.raises(TypeError, match="data: expected a mapping from modality to Tensor, got Tensor"):
        mm.observe(story, MODALITIES)(torch.zeros(3))


@pytest.mark.parametrize("rows", [0, -1])
def test_no_rows(rows: int) -> None:
    model = mm.observe(lambda: story(torch.zeros(())), MODALITIES)
    with pytest.raises(ValueError, match=r"rows(.|\n)*Fix"):
        model(n=rows)
    with pytest.raises(ValueError, match="0 rows"):
        model({"counts": torch.zeros(0, 2)})


def test_empty_data_needs_the_number_of_rows() -> None:
    model = mm.observe(lambda: story(torch.zeros(())), MODALITIES)
    with pytest.raises(ValueError, match=r"number of rows is unknown: data is empty\. Fix: pass n="):
        model({})
    with pytest.raises(ValueError, match=r"Ragged.*'counts': 4, 'n': 5"):
        model({"counts": torch.zeros(B, 2)}, n=5)


@pytest.mark.parametrize("name", ["joint", "hot"])
def test_per_feature_masks_need_independent_features(name: str) -> None:
    mask = torch.ones(B, good()[name].shape[1], dtype=torch.bool)
    mask[1, 0] = False
    with pytest.raises(ValueError) as caught:
        mm.observe(story, MODALITIES)(good(), {name: mask})
    for word in (name, "factorizes", "per-feature", "(B,)", ".to_event"):
        assert word in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, -7.0, 0.5])
def test_what_is_masked_may_hold_anything(value: float) -> None:
    model, data = mm.observe(story, MODALITIES), good()
    data = {m: x if m in ("age", "digit") else at(x, 1, value) for m, x in data.items()}
    data["digit"] = torch.tensor([0, -5, 3, 1])
    masks = {m: torch.tensor([1, 0, 1, 1]).bool() for m in MODALITIES}
    masks["image"] = torch.ones(B, 2, 3).bool()
    masks["image"][1, -1, -1] = False
    prepared, inside = model.prepare(data, masks)
    clean, _ = model.prepare(good(), masks)
    for m in MODALITIES:
        assert torch.equal(prepared[m][1], clean[m][1])
        assert prepared[m].dtype == data[m].dtype
    assert inside["image"].shape == (B, 2, 3) and inside["pixels"].shape == (B, 1) and inside["digit"].shape == (B,)
    assert inside.rows["image"].all() and inside.rows["digit"].tolist() == [True, False, True, True]


def test_what_passed_passes_again() -> None:
    model = mm.observe(story, MODALITIES)
    data, masks = model.prepare(good(), None)
    again = model.prepare(data, masks)
    assert again[0] is data and again[1] is masks
    assert all(m.all() for m in masks.values()) and data.size == B and data.filled


def test_absent_modalities_are_missing_for_all_rows() -> None:
    model = mm.observe(story, MODALITIES)
    data, masks = model.prepare({"age": torch.zeros(B), "counts": None, "pixels": torch.ones(B, 2)})
    assert {m: bool(x.any()) for m, x in masks.items()} == {m: m == "pixels" for m in MODALITIES}
    assert data["hot"].tolist() == [[1.0, 0.0, 0.0]] * B and data["image"].shape == (B, 2, 3)


def test_bounds_that_a_covariate_or_a_latent_moves_are_not_judged_by_one_row() -> None:
    def trials(most: Tensor) -> None:
        pyro.sample("x", dist.Binomial(most, logits=torch.zeros(())))

    mm.observe(trials, ("x",)).prepare({"most": torch.tensor([5.0, 20.0]), "x": torch.tensor([3.0, 15.0])})

    def near() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 5.0))
        pyro.sample("x", dist.Uniform(z, z + 1))

    mm.observe(near, ("x",)).prepare({"x": torch.tensor([3.0, 90.0])})


@pytest.mark.parametrize("most", [16, torch.tensor([16.0, 16.0, 4.0])])
def test_bounds_that_do_not_move_are(most: Any) -> None:
    def grey() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Binomial(most, logits=z).to_event(1))

    model = mm.observe(grey, ("x",))
    model.prepare({"x": torch.tensor([[16.0, 0.0, 4.0]])})
    with pytest.raises(ValueError, match=r"'x'\] row 1: value (.|\n)*17(.|\n)* outside the support of Binomial"):
        model.prepare({"x": torch.tensor([[0.0, 0.0, 0.0], [0.0, 17.0, 4.0]])})


NAMES: dict[str, tuple[tuple[str, ...], type[Exception], str]] = {
    "reserved": (("data",), ValueError, "'data'.*reserved.*Fix"),
    "reserved terms": (("terms",), ValueError, "'terms'.*reserved.*Fix"),
    "reserved particles": (("particles",), ValueError, "'particles'.*reserved.*Fix"),
    "empty": ((), ValueError, "modalities is empty. Fix"),
    "no name": (("",), TypeError, "non-empty strings"),
    "repeated": (("image", "image"), ValueError, r"names repeat in \['image', 'image'\]"),
    "covariate": (("age",), ValueError, r"'age'.*covariates"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_modalities(name: str) -> None:
    modalities, kind, message = NAMES[name]
    with pytest.raises(kind, match=message):
        mm.observe(story, modalities)


def test_a_modality_that_is_no_site() -> None:
    with pytest.raises(ValueError, match=r"\['text'\] are no sample sites of the story; its sites are .*'image'.*Fix"):
        mm.observe(story, ("image", "text"))({"age": torch.zeros(B)})


@pytest.mark.parametrize("site", ["data", "terms", "particles"])
def test_latents_may_not_take_reserved_names(site: str) -> None:
    def clashing() -> None:
        z = pyro.sample(site, dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0))

    with pytest.raises(ValueError, match=f"'{site}' names a latent site and is taken. Fix: rename"):
        mm.observe(clashing, ("x",))({"x": torch.zeros(B)})


def test_private_names_modalities() -> None:
    with pytest.raises(ValueError, match=r"private: \['text'\] are no modalities; known are \['image'\]"):
        mm.observe(story, ("image",), private={"z": "text"})
