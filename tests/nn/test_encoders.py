"""Encoders: shapes, masks, precision, rebuilding."""

from __future__ import annotations

import json

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_mmvae.nn import ConvEncoder, EmbeddingEncoder, MLPEncoder, from_config

FLOATS = {
    "vector": lambda **o: MLPEncoder(5, 3, hidden=(8,), **o),
    "matrix": lambda **o: MLPEncoder((4, 2), 3, hidden=(8, 8), **o),
    "scalar": lambda **o: MLPEncoder((), 3, hidden=(8,), **o),
    "linear": lambda **o: MLPEncoder((4, 2), 3, hidden=(), **o),
    "image": lambda **o: ConvEncoder((2, 9, 6), 3, channels=(4, 8), hidden=(8,), **o),
    "pixel": lambda **o: ConvEncoder((1, 1, 1), 3, channels=(4, 8), hidden=(), **o),
    "one_hot": lambda **o: EmbeddingEncoder(6, 3, one_hot=True, hidden=(8,), **o),
    "one_hot_grid": lambda **o: EmbeddingEncoder(6, 3, shape=4, one_hot=True, hidden=(), **o),
}
INTEGERS = {
    "label": lambda **o: EmbeddingEncoder(6, 3, hidden=(8,), **o),
    "grid": lambda **o: EmbeddingEncoder(6, 3, shape=(4,), hidden=(), **o),
}
ALL = {**FLOATS, **INTEGERS}


def data(name: str, enc: nn.Module, batch: tuple[int, ...]) -> torch.Tensor:
    shape = batch + tuple(enc.event_shape)
    return torch.randint(0, 6, shape) if name in INTEGERS else torch.randn(shape)


@pytest.mark.parametrize("name", ALL)
def test_expert_is_a_pyro_distribution_for_any_leading_dimensions(name):
    enc = ALL[name]()
    x = data(name, enc, (7, 2, 5))
    q = enc(x)
    assert isinstance(q, dist.Independent) and q.batch_shape == (7, 2, 5) and q.event_shape == (3,)
    torch.testing.assert_close(enc(x[1, 0]).base_dist.loc, q.base_dist.loc[1, 0])
    torch.testing.assert_close(enc(x[1, 0, 3]).base_dist.scale, q.base_dist.scale[1, 0, 3])


@pytest.mark.parametrize("name", ALL)
def test_no_rows(name):
    enc = ALL[name](family=lambda features, latent_dim: nn.Linear(features, latent_dim))
    assert enc(data(name, enc, (0,))).shape == (0, 3)  # torch's Independent refuses zero rows, the network does not


@pytest.mark.parametrize("name", ALL)
def test_config_and_state_rebuild_the_same_function(name):
    enc = ALL[name](family="laplace", dropout=0.2).eval()
    again = from_config(json.loads(json.dumps(enc.config))).eval()
    again.load_state_dict(enc.state_dict())
    x = data(name, enc, (5,))
    assert torch.equal(again(x).base_dist.loc, enc(x).base_dist.loc)
    assert torch.equal(again(x).base_dist.scale, enc(x).base_dist.scale)


@pytest.mark.parametrize("name", ALL)
def test_mask_is_seen_if_asked_for_and_masked_content_is_not(name):
    enc = ALL[name](mask=True)
    x = data(name, enc, (5,))
    seen = torch.rand(x.shape) < 0.5
    seen[0], seen[1] = True, False
    if name.startswith("one_hot"):
        seen = seen[..., :1].expand(x.shape)
    base = enc(x, seen).base_dist.loc
    other = torch.where(seen, x, torch.ones_like(x))
    assert torch.equal(enc(other, seen).base_dist.loc, base)
    assert torch.equal(enc(x).base_dist.loc[0], base[0])  # no mask: all observed
    assert not torch.equal(enc(torch.zeros_like(x), seen).base_dist.loc[1], enc(torch.zeros_like(x)).base_dist.loc[1])


@pytest.mark.parametrize("name", ["vector", "image", "grid"])
def test_mask_broadcasts_to_the_event_and_is_ignored_without_the_option(name):
    enc = ALL[name](mask=True)
    x = data(name, enc, (5,))
    rows = (torch.arange(5) < 3).reshape(5, *([1] * (x.dim() - 1)))
    assert torch.equal(enc(x, rows).base_dist.loc, enc(x, rows.expand(x.shape)).base_dist.loc)
    plain = ALL[name]()
    assert torch.equal(plain(x, rows).base_dist.loc, plain(x).base_dist.loc)


def test_mlp_formula_and_transform(float64):
    enc = MLPEncoder((2, 2), 3, hidden=(4,), activation=nn.Tanh, transform=torch.log1p)
    x = torch.rand(5, 2, 2)
    h = torch.tanh(x.log1p().reshape(5, 4) @ enc.net[0].weight.T + enc.net[0].bias)
    torch.testing.assert_close(enc(x).base_dist.loc, enc.head.linear(h)[:, :3])
    assert from_config(enc.config).transform is torch.log1p


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float64])
def test_any_number_is_read_in_the_precision_of_the_parameters(dtype):
    x = torch.ones(5, 4, dtype=dtype)
    assert MLPEncoder(4, 3)(x).base_dist.loc.dtype == torch.float32
    assert MLPEncoder(4, 3).double()(x).base_dist.loc.dtype == torch.float64


def test_inputs_are_left_alone():
    x, seen = torch.randn(5, 4), torch.rand(5, 4) < 0.5
    before = x.clone()
    MLPEncoder(4, 3, mask=True)(x, seen).rsample().sum().backward()
    assert torch.equal(x, before)


def test_one_hot_gives_what_the_class_number_gives():
    numbers, floats = EmbeddingEncoder(6, 3, shape=4), EmbeddingEncoder(6, 3, shape=4, one_hot=True)
    floats.load_state_dict(numbers.state_dict())
    x = torch.randint(0, 6, (5, 4))
    torch.testing.assert_close(
        floats(torch.nn.functional.one_hot(x, 6).float()).base_dist.loc, numbers(x).base_dist.loc
    )


def test_class_numbers_may_come_as_floats():
    encoder = EmbeddingEncoder(6, 3)
    labels = torch.randint(0, 6, (5,))
    assert encoder(labels.float()).base_dist.loc.equal(encoder(labels).base_dist.loc)


def test_errors():
    with pytest.raises(ValueError, match="latent_dim must be a positive integer, got 0"):
        MLPEncoder(4, 0)
    with pytest.raises(ValueError, match=r"MLPEncoder expected data of shape \(\*batch, 4\), got \(5, 3\)"):
        MLPEncoder(4, 3)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"\(C, H, W\), got \(28, 28\). Fix: add the channel"):
        ConvEncoder((28, 28), 3)
    with pytest.raises(ValueError, match="channels"):
        ConvEncoder((1, 28, 28), 3, channels=(4, 0))
    with pytest.raises(ValueError, match="num_classes"):
        EmbeddingEncoder(0, 3)
