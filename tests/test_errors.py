"""Bad data and options, through the public names: each error says where, what was expected, what came, what to do.

Nothing of the caller's is changed on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.training import fit
from tests.error_cases import DOORS, INF, NAN, SHAPES, TRUE, B, good, networks


@pytest.fixture(scope="module")
def vae() -> mm.MultimodalVAE:
    return mm.MVAE(*networks(), latent_dim=2)


def changed(name: str, index: Any, value: float) -> dict[str, Any]:
    data = good()
    data[name][index] = value
    return data


# data, obs_mask, error, parts of its message
BATCHES: dict[str, tuple[Any, Any, type[Exception], list[str]]] = {
    "unknown key in data": (
        good() | {"imgae": torch.zeros(B)},
        None,
        ValueError,
        ["imgae", "modalities are", "image", "Fix: drop or rename"],
    ),
    "unknown key in obs_mask": (
        good(),
        {"imgae": TRUE},
        ValueError,
        ["obs_mask", "imgae", "modalities are", "'image'"],
    ),
    "data is no mapping": ([torch.zeros(B, 3)], None, TypeError, ["data", "expected a mapping", "got list"]),
    "data is no tensor": (
        good() | {"image": [[1.0]]},
        None,
        TypeError,
        ["data['image']", "expected a Tensor", "got list", "torch.as_tensor"],
    ),
    "obs_mask is no mapping": (good(), TRUE, TypeError, ["obs_mask", "expected a mapping", "got Tensor"]),
    "mask is a list": (
        good(),
        {"image": [True] * B},
        TypeError,
        ["obs_mask['image']", "bool Tensor", "got list", "Fix"],
    ),
    "float mask": (
        good(),
        {"image": torch.ones(B)},
        TypeError,
        ["obs_mask['image']", "dtype bool", "got torch.float32", "mask.bool()"],
    ),
    "integer mask": (
        good(),
        {"bits": torch.ones(B, 4, dtype=torch.long)},
        TypeError,
        ["obs_mask['bits']", "dtype bool", "got torch.int64", "mask == 0"],
    ),
    "mask longer than data": (
        good(),
        {"image": torch.ones(B + 1, dtype=torch.bool)},
        ValueError,
        ["obs_mask['image']", "(4,)", "(4, 2, 3)", "got (5,)", "Fix: one entry per row"],
    ),
    "mask of another shape": (
        good(),
        {"image": torch.ones(B, 3, dtype=torch.bool)},
        ValueError,
        ["obs_mask['image']", "(4, 2, 3)", "got (4, 3)"],
    ),
    "per-feature mask on a joint likelihood": (
        good(),
        {"vector": torch.tensor([[True, False, True]]).repeat(B, 1)},
        ValueError,
        ["vector", "per-feature obs_mask", "MultivariateNormal is joint", "Fix: mask whole samples", "(B,)"],
    ),
    "wrong event shape": (
        good() | {"image": torch.zeros(B, 3, 2)},
        None,
        ValueError,
        ["data['image']", "expected shape (B, 2, 3)", "got (4, 3, 2)", "Fix: reshape"],
    ),
    "flat event": (
        good() | {"image": torch.zeros(B, 6)},
        None,
        ValueError,
        ["data['image']", "(B, 2, 3)", "got (4, 6)"],
    ),
    "no row dimension": (
        good() | {"label": torch.tensor(3)},
        None,
        ValueError,
        ["data['label']", "expected shape (B", "scalar"],
    ),
    "ragged": (
        good() | {"count": torch.zeros(B + 1, 2)},
        None,
        ValueError,
        ["'image': 4", "'count': 5", "Fix: every entry of data needs the same first dimension", "obs_mask"],
    ),
    "no rows": ({"image": torch.zeros(0, 2, 3)}, None, ValueError, ["0 rows", "Fix: pass at least one sample"]),
    "nothing at all": ({}, None, ValueError, ["number of rows", "Fix"]),
    "observed NaN": (
        changed("image", (2, 1, 1), NAN),
        None,
        ValueError,
        ["data['image'] row 2", "value nan", "Fix: mark it as missing"],
    ),
    "observed infinity": (
        changed("image", (0, 0, 0), -INF),
        {"image": TRUE},
        ValueError,
        ["data['image'] row 0", "value -inf"],
    ),
    "NaN in an observed feature": (
        changed("bits", (1, 3), NAN),
        {"bits": torch.tensor([[False, True, True, True]]).repeat(B, 1)},
        ValueError,
        ["data['bits'] row 1", "value nan"],
    ),
    "0.5 for a Bernoulli": (
        changed("bits", (3, 2), 0.5),
        None,
        ValueError,
        [
            "data['bits'] row 3",
            "value 0.5",
            "Bernoulli",
            "threshold it",
            "'continuous_bernoulli'",
            "'relaxed_bernoulli'",
        ],
    ),
    "-1 for a count": (
        changed("count", (1, 0), -1.0),
        None,
        ValueError,
        ["data['count'] row 1", "value -1.0", "Poisson", "Fix"],
    ),
    "half a count": (changed("count", (1, 1), 2.5), None, ValueError, ["data['count'] row 1", "value 2.5"]),
    "class 10 of 10": (
        changed("label", 2, 10),
        None,
        ValueError,
        ["data['label'] row 2", "value 10", "Categorical", "Fix"],
    ),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", BATCHES)
def test_a_bad_batch_is_refused_by_name(vae, name, door):
    data, obs_mask, kind, parts = BATCHES[name]
    before, weights = copy.deepcopy((data, obs_mask)), copy.deepcopy(vae.state_dict())
    modes = [part.training for part in vae.modules()]
    with pytest.raises(kind) as error:
        DOORS[door](vae, data, obs_mask)
    for part in parts:
        assert part in str(error.value)
    assert same((data, obs_mask), before) and same(dict(vae.state_dict()), dict(weights))
    assert [part.training for part in vae.modules()] == modes
    pyro.clear_param_store()  # stock losses register parameters


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_the_same_values_pass_where_they_are_masked(vae):
    data = good()
    data["image"][2], data["bits"][3, 2], data["label"][2] = NAN, 0.5, 10
    seen = {"image": TRUE.clone(), "bits": torch.ones(B, 4, dtype=torch.bool), "label": TRUE.clone()}
    seen["image"][2] = seen["bits"][3, 2] = seen["label"][2] = False
    assert vae.objective.differentiable_loss(vae.model, vae.guide, data, seen).isfinite()


def test_features_of_a_joint_draw_may_be_missing_together(vae):
    """A mask over all features that is the same within each sample is one of whole samples."""
    data, rows = good(), torch.tensor([True, False, True, False])
    whole = vae.posterior(data, {"vector": rows}).mean
    assert torch.equal(vae.posterior(data, {"vector": rows.unsqueeze(-1).repeat(1, 3)}).mean, whole)


# --- options of the verbs ---------------------------------------------------------------------------------------------

KNOWN = list(SHAPES)
VERBS: dict[str, tuple[Callable[..., Any], type[Exception], list[str]]] = {
    "given": (lambda v: v.posterior(good(), given={"sound"}), ValueError, ["given", "sound", "known are", *KNOWN]),
    "given of predict": (lambda v: v.predict(good(), given={"sound"}), ValueError, ["given", "sound", *KNOWN]),
    "target": (lambda v: v.predict(good(), target={"sound"}), ValueError, ["target", "sound", *KNOWN]),
    "target of impute": (lambda v: v.impute(good(), target={"sound"}), ValueError, ["target", "sound", *KNOWN]),
    "target of decode": (lambda v: v.decode(torch.zeros(1, 2), target={"sound"}), ValueError, ["sound", *KNOWN]),
    "target of generate": (lambda v: v.generate(1, target={"sound"}), ValueError, ["sound", *KNOWN]),
    "target of likelihood": (lambda v: v.log_likelihood(good(), target={"sound"}), ValueError, ["sound", *KNOWN]),
    "a string for a set": (lambda v: v.predict(good(), target="image"), TypeError, ["target", "'image'", "Fix"]),
    "given and target": (
        lambda v: v.log_likelihood(good(), given={"bits"}, target={"bits"}),
        ValueError,
        ["bits", "both given and target"],
    ),
    "no samples": (lambda v: v.predict(good(), num_samples=0), ValueError, ["num_samples", "at least 1", "got 0"]),
    "no samples to impute": (lambda v: v.impute(good(), num_samples=0), ValueError, ["num_samples", "got 0"]),
    "no draws": (lambda v: v.to_inference_data(good(), num_samples=0), ValueError, ["num_samples", "got 0"]),
    "no particles": (lambda v: v.log_likelihood(good(), num_particles=0), ValueError, ["num_particles", "got 0"]),
    "nothing generated": (lambda v: v.generate(0), ValueError, ["n: ", "at least 1", "got 0"]),
    "batch size": (lambda v: v.predict(good(), batch_size=0), ValueError, ["batch_size", "at least 1", "got 0"]),
    "unknown option": (lambda v: v.predict(good(), samples=3), TypeError, ["samples"]),
    "wrong latent": (lambda v: v.decode(torch.zeros(1, 3)), ValueError, ["z", "(1, 3)"]),
    "a mask beside a dataset": (
        lambda v: v.predict(mm.datasets.MultimodalDataset(good()), {"image": TRUE}),
        TypeError,
        ["obs_mask", "Fix"],
    ),
}


@pytest.mark.parametrize("name", VERBS)
def test_options_of_verbs(vae, name):
    call, kind, parts = VERBS[name]
    with pytest.raises(kind) as error:
        call(vae)
    for part in parts:
        assert part in str(error.value)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"epochs": -1}, {"lr": -1.0}])
def test_fit_names_the_option(vae, bad):
    weights = copy.deepcopy(vae.state_dict())
    ds = mm.datasets.MultimodalDataset(good())
    with pytest.raises(ValueError, match=next(iter(bad))):
        fit(vae, ds, progress=False, **bad)
    assert same(dict(vae.state_dict()), dict(weights))


@pytest.mark.parametrize("value", [0.5, 2.0])
def test_fit_refuses_what_the_model_refuses(vae, value):
    ds = mm.datasets.MultimodalDataset(changed("bits", (1, 0), value))
    with pytest.raises(ValueError, match=rf"data\['bits'\] row 1: value {value}.*Fix"):
        fit(vae, ds, epochs=1, progress=False)


# --- nothing observed is no error -------------------------------------------------------------------------------------


def test_a_sample_with_nothing_observed_keeps_the_prior(vae):
    data = good()
    seen = {m: TRUE.clone() for m in SHAPES}
    for mask in seen.values():
        mask[1] = False
    assert vae.objective.per_sample(vae.model, vae.guide, data, seen)[1].item() == 0.0
    posterior = vae.posterior(data, seen)
    assert posterior.mean[1].tolist() == [0.0, 0.0] and posterior.stddev[1].tolist() == [1.0, 1.0]
    assert vae.log_likelihood(data, seen, num_particles=3)[1].item() == 0.0
    draws = vae.impute(data, seen, num_samples=2000)
    for m in ("image", "vector"):  # the same mixture of likelihoods over the prior as generate draws from
        new = vae.generate(2000)[m]
        # 5 standard errors of a difference of two means of 2000 draws each
        error = 5 * ((draws[m][:, 1].var(0) + new.var(0)) / 2000).sqrt()
        assert ((draws[m][:, 1].mean(0) - new.mean(0)).abs() < error).all()


def test_all_rows_without_anything(vae):
    nothing = {m: ~TRUE for m in SHAPES}
    for batch in ((None, None, B), (good(), nothing), ({m: None for m in SHAPES}, None, B)):
        assert vae.objective.loss(vae.model, vae.guide, *batch) == 0.0
    assert vae.posterior(good(), nothing).mean.abs().max() == 0.0
