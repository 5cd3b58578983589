"""Linear networks with dropout."""

from __future__ import annotations

import pytest
import torch

from pyro_mmvae.columns import Column
from pyro_mmvae.nn import DropoutFamily, DropoutNormalHead, MLPEncoder, SmallDecoder, from_config


def test_head_is_linear_in_evaluation_and_its_mean_over_dropout_is_the_same():
    head = DropoutNormalHead(6, 2)
    h = torch.randn(6)
    exact = h @ head.loc.weight.T + head.loc.bias
    head.eval()
    torch.testing.assert_close(head(h).mean, exact)
    head.train()
    draws = head(h.expand(20_000, 6)).mean
    error = draws.std(0) / 20_000**0.5
    assert (error > 0).all() and ((draws.mean(0) - exact).abs() < 5 * error).all()  # five standard errors


def test_no_cell_moves_the_scale_of_an_expert_by_more_than_a_factor_e():
    head = DropoutNormalHead(4, 3).eval()
    scale = head(1e6 * torch.randn(50, 4)).base_dist.scale
    assert (scale.log().abs() <= 1.0 + 1e-6).all()


def test_decoder_drops_coordinates_of_z_in_training_and_no_covariate():
    age = Column("age", "normal", loc=0.0, scale=1.0)
    decoder = SmallDecoder(2, 1, likelihood="normal_learned", context=[age])
    with torch.no_grad():
        decoder.net[-1].weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
        decoder.net[-1].bias.zero_()
    z, given = torch.ones(200, 2), torch.ones(200)
    rate = 0.4 * 2 / 6
    kept = torch.tensor([0.0, 1.0, 10.0, 11.0]) / (1 - rate) + 100.0
    means = decoder(z, age=given).mean.flatten()
    gaps = (means[:, None] - kept.to(means)).abs()
    assert (gaps.min(-1).values < 1e-4).all() and len(set(gaps.argmin(-1).tolist())) == 4
    torch.testing.assert_close(decoder.eval()(z, age=given).mean, torch.full((200, 1), 111.0).to(means))


@pytest.mark.parametrize("decay", [-1.0, float("nan"), float("inf")])
def test_weight_decay_is_a_number_from_0_on(decay):
    with pytest.raises(ValueError, match="weight_decay: expected a number from 0 on"):
        SmallDecoder(2, 3, weight_decay=decay)


def test_strength_multiplies_the_rates_of_dropout():
    assert DropoutNormalHead(60, 2, strength=0.2).dropout.p == pytest.approx(0.2 * 60 / 160)
    assert SmallDecoder(4, 3, likelihood="normal_learned", strength=0.5).net[0].dropout.p == pytest.approx(0.1)
    h, z = torch.randn(5, 60), torch.randn(5, 4)
    head, decoder = DropoutFamily(0.0)(60, 2).train(), SmallDecoder(4, 3, strength=0.0).train()
    for network, given in ((head, h), (decoder, z)):  # no dropout at all: as in evaluation mode
        assert torch.equal(network(given).mean, network.eval()(given).mean)


def test_an_encoder_rebuilt_from_its_config_keeps_the_strength():
    encoder = MLPEncoder(60, 2, hidden=(), family=DropoutFamily(0.2))
    assert from_config(encoder.config).head.dropout.p == encoder.head.dropout.p == pytest.approx(0.2 * 60 / 160)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_is_a_number_from_0_to_1(strength):
    makers = (DropoutFamily, lambda s: DropoutNormalHead(4, 2, strength=s), lambda s: SmallDecoder(2, 3, strength=s))
    for make in makers:
        with pytest.raises(ValueError, match="strength: expected a number from 0 to 1"):
            make(strength)
