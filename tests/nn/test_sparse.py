"""Variational dropout experts: their formula, shared rates, the threshold, and what saving keeps of the sharing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

import pyro_mmvae as mm
from pyro_mmvae.distributions import LogUniform
from pyro_mmvae.nn import (
    ConvEncoder,
    DropoutRates,
    JointEncoder,
    MLPEncoder,
    NormalHead,
    VariationalDropoutHead,
    from_config,
    share_rates,
)
from pyro_mmvae.nn.heads import make_head

DIM = 5


def set_rates(rates: DropoutRates, values: list[float]) -> None:
    with torch.no_grad():
        rates.log_alpha.copy_(torch.tensor(values).logit())


def heads_of(module: nn.Module) -> list[VariationalDropoutHead]:
    return [part for part in module.modules() if isinstance(part, VariationalDropoutHead)]


def test_noise_is_proportional_to_the_location(float64: None) -> None:
    head, h = make_head("dropout", 4, DIM), torch.randn(3, 2, 4)
    assert isinstance(head, VariationalDropoutHead)
    set_rates(head.rates, [0.1, 0.3, 0.5, 0.7, 0.9])
    q = head(h)
    loc = h @ head.linear.weight.T + head.linear.bias
    alpha = torch.tensor([1 / 9, 3 / 7, 1.0, 7 / 3, 9.0])
    assert q.batch_shape == (3, 2) and q.event_shape == (DIM,)
    torch.testing.assert_close(q.mean, loc)
    torch.testing.assert_close(q.variance, alpha * loc**2, rtol=1e-5, atol=1e-12)  # the floor 1e-8 under |loc|
    torch.testing.assert_close(head.rates.rates, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))


def test_rates_start_at_a_half_with_little_noise() -> None:
    log_alpha = DropoutRates(4000).log_alpha
    assert log_alpha.requires_grad and log_alpha.shape == (4000,)
    assert abs(float(log_alpha.detach().std()) - 0.01) < 5 * 0.01 / 8000**0.5  # five standard errors
    assert abs(float(log_alpha.detach().mean())) < 5 * 0.01 / 4000**0.5


def test_divergence_from_the_log_uniform_prior_does_not_see_the_data(float64: None) -> None:
    head = VariationalDropoutHead(4, DIM)
    set_rates(head.rates, [0.1, 0.3, 0.5, 0.7, 0.9])
    prior = LogUniform(torch.zeros(DIM)).to_event(1)
    kl = kl_divergence(head(torch.randn(50, 4)), prior)
    torch.testing.assert_close(kl, kl[:1].expand(50))
    slopes = torch.autograd.grad(kl.sum(), [head.linear.weight, head.rates.log_alpha])
    assert slopes[0].abs().max() < 1e-6 < slopes[1].abs().min()  # 1/|loc| of both signs cancel to rounding


def test_a_location_of_zero_keeps_values_and_gradients_finite() -> None:
    head = VariationalDropoutHead(3, 2)
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.zero_()
        head.rates.log_alpha.copy_(torch.tensor([-200.0, 200.0]))
    q = head(torch.zeros(4, 3)).base_dist
    kl = kl_divergence(q, LogUniform(torch.zeros(2)))
    (kl + q.rsample() + 1 / q.scale.square()).sum().backward()
    assert kl.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("shared", [False, True])
def test_every_encoder_takes_the_family(shared: bool) -> None:
    rates = DropoutRates(DIM) if shared else None
    encoders = [
        MLPEncoder(4, DIM, hidden=(), family="dropout", rates=rates),
        ConvEncoder((1, 4, 4), DIM, channels=(2,), hidden=(3,), family="dropout", rates=rates),
        mm.nn.EmbeddingEncoder(3, DIM, family="dropout", rates=rates),
    ]
    found = [head.rates for encoder in encoders for head in heads_of(encoder)]
    assert len(found) == 3 and len({id(r) for r in found}) == (1 if shared else 3)
    assert (found[0] is rates) == shared
    assert len(heads_of(JointEncoder({"a": 4}, DIM, family="dropout"))) == 1


def test_shared_rates_learn_from_every_encoder() -> None:
    rates = DropoutRates(DIM)
    first, second = (MLPEncoder(4, DIM, hidden=(), family="dropout", rates=rates) for _ in range(2))
    x = torch.randn(6, 4)
    own = [torch.autograd.grad(e(x).variance.sum(), rates.log_alpha)[0] for e in (first, second)]
    both = torch.autograd.grad(first(x).variance.sum() + second(x).variance.sum(), rates.log_alpha)[0]
    torch.testing.assert_close(both, own[0] + own[1])
    assert all((slope != 0).all() for slope in own)


def test_threshold_switches_dimensions_off_in_evaluation_only() -> None:
    rates = DropoutRates(DIM, threshold=0.2)
    set_rates(rates, [0.1, 0.19, 0.21, 0.5, 0.9])
    enc, x = MLPEncoder(4, DIM, hidden=(), family="dropout", rates=rates), torch.randn(6, 4)
    assert rates.dropped.tolist() == [False, False, True, True, True]
    train, test = enc(x), enc.eval()(x)
    assert (train.mean != 0).all()
    assert torch.equal(test.mean[:, :2], train.mean[:, :2]) and torch.equal(test.variance[:, :2], train.variance[:, :2])
    assert (test.mean[:, 2:] == 0).all() and (test.rsample()[:, 2:].abs() < 1e-5).all()
    prior = LogUniform(torch.zeros(3))
    off = kl_divergence(torch.distributions.Normal(test.mean[:, 2:], test.stddev[:, 2:]), prior)
    assert (off < 1e-3).all()  # as noise alone, not as a sharp belief in 0


def test_without_a_threshold_nothing_is_off() -> None:
    rates = DropoutRates(2)
    set_rates(rates, [0.999999, 0.5])
    enc = MLPEncoder(4, 2, hidden=(), family="dropout", rates=rates).eval()
    assert not rates.dropped.any() and (enc(torch.randn(3, 4)).mean != 0).all()


def test_no_hidden_layers_make_linear_maps(float64: None) -> None:
    enc = MLPEncoder(4, DIM, hidden=(), family="dropout")
    dec = mm.nn.MLPDecoder(DIM, 4, hidden=(), likelihood="normal_learned")
    x, y, z, w = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, DIM), torch.randn(3, DIM)
    for f, a, b in ((lambda v: enc(v).mean, x, y), (lambda v: dec(v).mean, z, w)):
        torch.testing.assert_close(f(0.3 * a + 0.7 * b), 0.3 * f(a) + 0.7 * f(b))  # affine
    assert dec(z).dense().base_dist.scale.shape[-1:] == (4,) and len(dec.likelihood.scale.log) == 4


def vae_of(threshold: float | None = None) -> mm.MVAE:
    rates = DropoutRates(DIM, threshold=threshold)
    encoders = {m: MLPEncoder(4, DIM, hidden=(), family="dropout", rates=rates) for m in ("a", "b")}
    decoders = {m: mm.nn.MLPDecoder(DIM, 4, hidden=(), likelihood="normal_learned") for m in ("a", "b")}
    return mm.MVAE(encoders, decoders, latent_dim=DIM)


def test_a_loaded_model_shares_one_parameter_and_the_threshold(tmp_path) -> None:
    vae, data = vae_of(0.2), {m: torch.randn(3, 4) for m in ("a", "b")}
    set_rates(heads_of(vae)[0].rates, [0.1, 0.19, 0.21, 0.5, 0.9])
    vae.save(tmp_path / "vae")
    again = mm.load(tmp_path / "vae")
    heads = heads_of(again)
    assert len(heads) == 2 and heads[0].rates.log_alpha is heads[1].rates.log_alpha
    assert [head.rates.threshold for head in heads] == [0.2, 0.2]
    assert torch.equal(again.posterior(data).mean, vae.posterior(data).mean)
    assert (again.posterior(data).mean[:, 2:] == 0).all()


def test_a_config_alone_makes_separate_rates_that_can_be_joined() -> None:
    fresh = from_config(vae_of(0.2).config)
    first, second = heads_of(fresh)
    assert first.rates.log_alpha is not second.rates.log_alpha
    assert share_rates([fresh]) is first.rates is second.rates
    assert sum("log_alpha" in name for name, _ in fresh.named_parameters()) == 1
    assert share_rates([NormalHead(3, 2)]) is None


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"rates are of 3 dimensions, the encoder's latent has 5\. Fix: DropoutRates"):
        MLPEncoder(4, DIM, family="dropout", rates=DropoutRates(3))
    with pytest.raises(ValueError, match=r"rates: only the family 'dropout' has dropout rates, got family='normal'"):
        MLPEncoder(4, DIM, rates=DropoutRates(DIM))
    with pytest.raises(ValueError, match=r"Unknown expert family 'drop'\. Known: .*'dropout'"):
        MLPEncoder(4, DIM, family="drop")
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"threshold: expected None or a dropout rate in \(0, 1\]"):
            DropoutRates(3, threshold=threshold)
    with pytest.raises(ValueError, match="latent_dim must be a positive integer, got 0"):
        DropoutRates(0)
    heads = [VariationalDropoutHead(3, 2, rates=DropoutRates(2, threshold=t)) for t in (None, 0.2)]
    with pytest.raises(ValueError, match=r"to be shared differ.*threshold None and 0\.2"):
        share_rates(heads)
