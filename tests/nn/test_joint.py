"""The masked joint encoder, against its formula."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from pyro_mmvae.nn import JointEncoder, from_config

SHAPES = {"image": (2, 3), "rna.x": 4, "class": ()}


def make(**options) -> JointEncoder:
    options = {"hidden": (8,), "features": (7, 5), "num_classes": {"class": 6}} | options
    return JointEncoder(SHAPES, 3, **options)


def data(rows: int = 5) -> dict[str, torch.Tensor]:
    return {"image": torch.randn(rows, 2, 3), "rna.x": torch.randn(rows, 4), "class": torch.arange(rows) % 6}


def test_features_once_head_for_many_subsets():
    enc, x = make(), data()
    masks = torch.rand(4, 5, 3) < 0.5
    features = enc.features(x)
    assert features.shape == (5, 3, 5)
    q = enc.head(features, masks)
    assert q.batch_shape == (4, 5) and q.event_shape == (3,)
    for mask, loc in zip(masks, q.base_dist.loc, strict=True):
        torch.testing.assert_close(enc(x, mask).base_dist.loc, loc)


def test_formula(float64):
    enc, x = make(), data()
    mask = torch.rand(5, 3) < 0.5
    parts = [enc.networks[name].net(x[name].reshape(5, -1)) for name in ("image", "rna.x")]
    parts.append(enc.networks["class"].net(torch.eye(6)[x["class"]]))
    h = torch.cat([part * mask[:, [m]] for m, part in enumerate(parts)] + [mask.double()], -1)
    torch.testing.assert_close(enc(x, mask).base_dist.loc, enc.expert.linear(enc.net(h))[:, :3])


def test_what_is_outside_the_subset_never_matters():
    enc, x = make(), data()
    mask = torch.tensor([True, False, False]).expand(5, 3)
    base = enc(x, mask).base_dist.loc
    other = x | {"rna.x": torch.full((5, 4), 1e30), "class": 5 - x["class"]}
    assert torch.equal(enc(other, mask).base_dist.loc, base)
    assert torch.equal(enc({"image": x["image"], "class": None}, mask).base_dist.loc, base)
    assert not torch.equal(enc(x, ~mask).base_dist.loc, base)


def test_the_mask_tells_an_absent_modality_from_zero_features():
    enc, x = make(), data()
    features = torch.zeros_like(enc.features(x))
    seen, unseen = torch.ones(5, 3, dtype=torch.bool), torch.zeros(5, 3, dtype=torch.bool)
    assert not torch.equal(enc.head(features, seen).base_dist.loc, enc.head(features, unseen).base_dist.loc)


def test_own_feature_networks():
    own = nn.Sequential(nn.Flatten(), nn.Linear(6, 5))
    enc = make(networks={"image": own})
    assert enc.networks["image"] is own and enc.features(data()).shape == (5, 3, 5)
    with pytest.raises(ValueError, match=r"image: expected features of shape \(5, 5\), got \(5, 6\)"):
        make(networks={"image": nn.Flatten()}).features(data())
    with pytest.raises(ValueError, match=r"networks\.image was"):
        from_config(enc.config)


def test_config_and_state_rebuild_the_same_function():
    enc = make(family="laplace")
    again = from_config(json.loads(json.dumps(enc.config)))
    again.load_state_dict(enc.state_dict())
    x, mask = data(), torch.rand(5, 3) < 0.5
    assert again.modalities == tuple(SHAPES)
    assert torch.equal(again(x, mask).base_dist.loc, enc(x, mask).base_dist.loc)


def test_errors():
    with pytest.raises(ValueError, match=r"unknown: \['text'\]"):
        make(num_classes={"text": 3})
    for shapes, features in (({}, (4,)), (SHAPES, ())):
        with pytest.raises(ValueError, match="must not be empty"):
            JointEncoder(shapes, 3, features=features)
    with pytest.raises(ValueError, match="none of"):
        make().features({"text": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"expected a mask \(\*lead, B, 3\), got \(5, 2\)"):
        make().head(torch.zeros(5, 3, 5), torch.ones(5, 2, dtype=torch.bool))
