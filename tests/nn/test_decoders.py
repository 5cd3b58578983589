"""Decoders: laziness, shapes, cost, rebuilding."""

from __future__ import annotations

import json

import pyro
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyro_mmvae.distributions import Lazy
from pyro_mmvae.nn import Binomial, Categorical, ConvDecoder, LinearDecoder, MLPDecoder, Normal, expected, from_config

DECODERS = {
    "vector": lambda **o: MLPDecoder(3, 5, hidden=(8,), **o),
    "matrix": lambda **o: MLPDecoder(3, (4, 2), likelihood="normal_predicted", **o),
    "scalar": lambda **o: MLPDecoder(3, (), likelihood="laplace_learned", hidden=(8,), **o),
    "linear": lambda **o: LinearDecoder(3, (4, 2), **o),
    "label": lambda **o: MLPDecoder(3, (), likelihood=Categorical(6), hidden=(8,), **o),
    "image": lambda **o: ConvDecoder(3, (2, 28, 21), channels=(8, 4), hidden=(8,), **o),
    "image_predicted": lambda **o: ConvDecoder(3, (2, 5, 4), likelihood="normal_predicted", channels=(8, 4), **o),
    "image_grid": lambda **o: ConvDecoder(3, (1, 5, 4), likelihood=Categorical(6), channels=(8,), hidden=(), **o),
    "pixel": lambda **o: ConvDecoder(3, (1, 1, 1), channels=(4, 4), **o),
}
each = pytest.mark.parametrize("name", DECODERS)


@each
def test_likelihood_is_lazy_for_any_leading_dimensions(name):
    dec = DECODERS[name]()
    z = torch.randn(7, 2, 5, 3)
    p = dec(z)
    assert isinstance(p, Lazy) and p.batch_shape == (7, 2, 5) and p.event_shape == dec.event_shape
    assert p.support.event_dim == len(dec.event_shape)
    x = p.sample()
    assert x.shape == (7, 2, 5, *dec.event_shape)
    torch.testing.assert_close(dec(z[3, 1]).log_prob(x[3, 1]), p.log_prob(x)[3, 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dec.dense(z).log_prob(x), p.log_prob(x))


@each
def test_network_runs_only_when_asked(name):
    dec, calls = DECODERS[name](), []
    dec.net.register_forward_hook(lambda *args: calls.append(1))
    p = dec(torch.randn(5, 3))
    assert (p.batch_shape, p.event_shape, bool(p.support), calls) == ((5,), dec.event_shape, True, [])
    expected(p)
    assert calls == [1]


@each
def test_no_rows(name):
    dec = DECODERS[name]()
    with pyro.validation_enabled(False):  # which torch's vector constraints cannot do without rows
        p = dec.dense(torch.zeros(0, 3))
    assert p.batch_shape == (0,) and p.event_shape == dec.event_shape


@each
def test_config_and_state_rebuild_the_same_function(name):
    dec = DECODERS[name]()
    again = from_config(json.loads(json.dumps(dec.config)))
    again.load_state_dict(dec.state_dict())
    z = torch.randn(5, 3)
    assert torch.equal(expected(again(z)), expected(dec(z)))


@each
def test_cost_counts_the_multiply_adds(name):
    dec = DECODERS[name]()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        dec.dense(torch.zeros(10, 3))
    # a multiply-add is two operations
    assert counter.get_total_flops() == 2 * 10 * dec.cost == 20 * dec(torch.zeros(1, 3)).cost


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (16, 17), (28, 28), (31, 32), (64, 33)])
@pytest.mark.parametrize("channels", [(4,), (4, 4), (4, 4, 4)])
def test_images_of_any_size(size, channels):
    dec = ConvDecoder(2, (3, *size), channels=channels, hidden=())
    assert dec.dense(torch.zeros(2, 2)).event_shape == (3, *size)


def test_several_raw_numbers_per_pixel_stay_with_their_pixel():
    dec = ConvDecoder(2, (2, 4, 4), likelihood="normal_predicted", channels=(4,), hidden=())
    out = dec.ups[-1]
    nn.init.zeros_(out.weight)
    out.bias.data = torch.tensor([1.0, -5.0, 2.0, 5.0])  # loc and raw scale of channel 0, then of channel 1
    fn = dec.dense(torch.randn(3, 2)).base_dist
    torch.testing.assert_close(fn.loc[:, 0], torch.ones(3, 4, 4))
    torch.testing.assert_close(fn.loc[:, 1], 2 * torch.ones(3, 4, 4))
    assert (fn.scale[:, 0] < 0.02).all() and (fn.scale[:, 1] > 4.9).all()


@pytest.mark.parametrize("make", [MLPDecoder, ConvDecoder])
def test_nothing_squashes_the_outputs(make):
    dec = make(3, (1, 4, 4))
    mean = expected(dec(200 * torch.randn(50, 3)))
    assert mean.min() < -1 and mean.max() > 2


def test_linear_decoder_is_linear(float64):
    dec = LinearDecoder(3, (4, 2), likelihood=Normal(0.5))
    z = torch.randn(5, 3)
    torch.testing.assert_close(dec(z).mean, (z @ dec.net[0].weight.T + dec.net[0].bias).reshape(5, 4, 2))
    assert isinstance(dec, MLPDecoder)


def test_all_parameters_get_gradients_and_follow_the_dtype():
    dec = MLPDecoder(3, (4,), likelihood="normal_learned").double()
    dec(torch.randn(5, 3, dtype=torch.float64)).log_prob(torch.zeros(5, 4, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 and p.dtype == torch.float64 for p in dec.parameters())


def test_learned_scales_are_not_shared_by_two_decoders_of_other_shapes():
    lik = Normal("learned")
    first = MLPDecoder(3, 4, likelihood=lik)
    assert MLPDecoder(3, 4, likelihood=lik).likelihood is first.likelihood  # shared on purpose
    with pytest.raises(ValueError, match="one likelihood object per decoder"):
        MLPDecoder(3, 5, likelihood=lik)


def test_scoring_some_rows_equals_scoring_all():
    dec = MLPDecoder(3, 4, likelihood=Binomial(16))
    z, x, rows = torch.randn(2, 6, 3), torch.randint(0, 17, (6, 4)), torch.rand(6) < 0.5
    torch.testing.assert_close(dec(z).score(x, rows), dec(z).log_prob(x) * rows)


def test_errors():
    for make in (MLPDecoder, ConvDecoder):
        with pytest.raises(ValueError, match="latent_dim must be a positive integer, got 0"):
            make(0, (1, 4, 4))
        with pytest.raises(ValueError, match=r"expected a latent \(\*batch, 3\), got shape \(5, 4\)"):
            make(3, (1, 4, 4))(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="channels is empty"):
        ConvDecoder(3, (1, 4, 4), channels=())
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        ConvDecoder(3, (4, 4))
    with pytest.raises(ValueError, match="width in hidden"):
        MLPDecoder(3, 4, hidden=(0,))
