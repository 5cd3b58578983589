"""Tables whose columns are not those of the model: refused, with the column and the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae.inference.schema import check_columns

from_frames = mm.MultimodalDataset.from_frames
FIX = r"Fix: from_frames\(frames, like=the training data\)"
Tables = dict[str, Any]


def tables() -> Tables:
    rng = np.random.default_rng(0)
    index = pd.Index([f"p{i}" for i in range(20)])
    lab = pd.DataFrame(rng.normal(size=(20, 3)), index, ["a", "b", "c"])
    clinic = pd.DataFrame(
        {"n": rng.poisson(5, 20), "stage": pd.Categorical(["I", "II"] * 10, ordered=True)}, index=index
    )
    context = pd.DataFrame({"age": rng.normal(size=20), "site": pd.Categorical(["A", "B"] * 10)}, index=index)
    return {"lab": lab, "clinic": clinic, "context": context}


def dataset(parts: Tables) -> mm.MultimodalDataset:
    frames = {m: frame for m, frame in parts.items() if m != "context"}
    return from_frames(frames, context=parts.get("context"))


def changed(name: str, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> mm.MultimodalDataset:
    parts = tables()
    parts[name] = change(parts[name])
    return dataset({name: part for name, part in parts.items() if part is not None})


CASES = {
    "order": (changed("lab", lambda f: f[["b", "a", "c"]]), f"lab, column 0.*'a'.*'b'; the order differs. {FIX}"),
    "renamed": (changed("lab", lambda f: f.rename(columns={"c": "d"})), f"lab, column 2.*'c'.*'d'. {FIX}"),
    "fewer": (changed("lab", lambda f: f[["a", "b"]]), rf"lab: .* 3 columns, the data 2; the data lack \['c'\]. {FIX}"),
    "more": (changed("lab", lambda f: f.assign(d=0.5)), rf"3 columns, the data 4; the model has no \['d'\]. {FIX}"),
    "likelihood": (changed("clinic", lambda f: f.assign(n=f["n"] + 0.5)), f"'n': .* the likelihood .*'normal'. {FIX}"),
    "levels": (
        changed("clinic", lambda f: f.assign(stage=f["stage"].cat.add_categories("III"))),
        f"clinic, column 'stage': the model has the levels .*'III'.*{FIX}",
    ),
    "site": (
        changed("context", lambda f: f.assign(site=f["site"].cat.reorder_categories(["B", "A"]))),
        rf"context, column 'site': the model has the levels \('A', 'B'\), the data \('B', 'A'\). {FIX}",
    ),
    "no age": (changed("context", lambda f: f[["site"]]), r"column 'age', the data have \['site'\]. Fix: .*context="),
    "no context": (changed("context", lambda f: None), r"reads the column 'age', the data have \[\]. Fix: .*context="),
    "another table": (dataset(tables() | {"more": tables()["lab"]}), r"no modality \['more'\]; .*Fix: leave"),
}


@pytest.fixture(scope="module")
def vae() -> mm.MultimodalVAE:
    torch.manual_seed(0)
    return mm.MVAE.for_data(dataset(tables()), latent_dim=2)


@pytest.mark.parametrize("case", CASES)
def test_other_columns_are_refused(vae: mm.MultimodalVAE, case: str) -> None:
    ds, message = CASES[case]
    for verb in (vae.impute, vae.predict, vae.posterior, vae.log_likelihood, vae.to_inference_data):
        with pytest.raises(ValueError, match=message):
            verb(ds)


def test_an_absent_table(vae: mm.MultimodalVAE) -> None:
    ds = changed("clinic", lambda f: None)
    with pytest.raises(ValueError, match=r"no table for the modality \['clinic'\].*like=.*target=\{'lab'\}"):
        vae.impute(ds)
    assert list(vae.impute(ds, target={"lab"}, num_samples=2).mean) == ["lab"]
    assert len(vae.posterior(ds).to_frame()) == len(vae.log_likelihood(ds, num_particles=2)) == 20  # it is missing
    train, parts = dataset(tables()), tables()
    whole = from_frames({"lab": parts["lab"]}, context=parts["context"], like=train)
    assert set(vae.impute(whole, num_samples=2).mean) == {"lab", "clinic"}


def test_what_passes(vae: mm.MultimodalVAE) -> None:
    ds = dataset(tables())
    check_columns(vae.model, ds, vae.guide, whole=True)
    check_columns(vae.model, ds[3:5], vae.guide, whole=True)
    other = changed("lab", lambda f: f * 3.0 + 1.0)  # another scale is no other column
    check_columns(vae.model, other, vae.guide, whole=True)
    check_columns(vae.model, {"lab": torch.zeros(2, 3)})
    check_columns(vae.model, mm.MultimodalDataset({"lab": torch.zeros(2, 3)}))
    check_columns(lambda data, obs_mask: None, ds)  # a native model knows no columns


def test_covariates_of_the_guide_alone(vae: mm.MultimodalVAE) -> None:
    ds = changed("context", lambda f: f.assign(site=f["site"].cat.reorder_categories(["B", "A"])))
    with pytest.raises(ValueError, match="context, column 'site'"):
        check_columns(lambda data, obs_mask: None, ds, vae.guide)


def test_fit_refuses_other_columns():
    """Tables of equal width in another order would train silently."""
    frame = pd.DataFrame({"a": [1.0, 2.5, 0.5, 1.5], "b": [0.5, 1.0, 2.0, 3.0]})
    ds, other = (mm.MultimodalDataset.from_frames({"x": f}) for f in (frame, frame[["b", "a"]]))
    vae = mm.MVAE.for_data(ds, latent_dim=1)
    with pytest.raises(ValueError, match="x, column 0: the model has 'a', the data 'b'"):
        mm.fit(vae, other, epochs=1, progress=False)
    with pytest.raises(ValueError, match="column 0"):
        mm.fit(vae, ds, epochs=1, progress=False, validation=other)
