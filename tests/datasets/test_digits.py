"""The embedded digits, against scikit-learn's own arrays."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from pyro_mmvae.datasets import digits


def test_halves_make_the_image_again() -> None:
    ds, source = digits(), load_digits()
    image = torch.cat([ds.data["top"], ds.data["bottom"]], 1)
    assert torch.equal(image, torch.from_numpy(source.images).float())
    assert ds.data["label"].tolist() == ds.labels.tolist() == source.target.tolist()
    assert image.shape == (1797, 8, 8) and image.min() == 0 and image.max() == 16
    assert ds.data["label"].dtype == torch.int64 and ds.modalities == ("top", "bottom", "label")
    assert all(mask.all() and mask.shape == (1797,) for mask in ds.obs_mask.values())


def test_standard_split() -> None:
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1438, 359)
    parts = digits().split(0.8, seed=0)
    assert all(torch.equal(a.data["top"], b.data["top"]) for a, b in zip((train, test), parts, strict=True))
    assert set(test.labels.tolist()) == set(range(10))
    with pytest.raises(ValueError, match="'train', 'test' or None, got 'valid'"):
        digits("valid")  # type: ignore[arg-type]


def test_hiding_the_label_leaves_it_for_plots() -> None:
    hidden = digits("test").hide(0.5)
    gone = ~hidden.obs_mask["label"]
    assert gone.any() and (hidden.data["label"][gone] == 0).all()
    assert torch.equal(hidden.labels, digits("test").labels)
