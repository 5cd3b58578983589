"""Likelihoods from a callable."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from pyro_mmvae.distributions import factorized_dims
from pyro_mmvae.nn import FromCallable, MLPDecoder, from_config


@pytest.mark.parametrize("declared", [0, 1])
def test_event_dimensions_may_be_declared_or_not(declared):
    lik = FromCallable(lambda raw: dist.Gumbel(raw[..., 0], raw[..., 1].exp()).to_event(declared), 2).build((4, 3))
    raw, x = torch.randn(5, 4, 3, 2), torch.randn(5, 4, 3)
    fn = lik(raw)
    assert fn.event_shape == (4, 3) and factorized_dims(fn) == 2 and lik.raw_shape() == (4, 3, 2)
    torch.testing.assert_close(fn.log_prob(x), dist.Gumbel(raw[..., 0], raw[..., 1].exp()).log_prob(x).sum((-1, -2)))


def test_joint_distributions():
    cov = 2.0 * torch.eye(3)
    lik = FromCallable(
        lambda raw: dist.MultivariateNormal(raw, cov), support=constraints.real_vector, joint_dims=1
    ).build((2, 3))
    fn = lik(torch.zeros(5, 2, 3))
    assert factorized_dims(fn) == 1 and not lik.factorizes and lik.support().event_dim == 2


def test_module_is_trained_and_saved():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(3))

        def forward(self, raw):
            return dist.Normal(raw, self.log_scale.exp())

    dec = MLPDecoder(2, 3, likelihood=FromCallable(Mine()))
    assert "likelihood.fn.log_scale" in dec.state_dict()
    with pytest.raises(ValueError, match=r"config.likelihood.fn was Mine.*load its state_dict"):
        from_config(dec.config)


def test_what_is_returned_is_checked():
    with pytest.raises(TypeError, match=r"pyro.distributions instead of torch.distributions"):
        FromCallable(lambda raw: torch.distributions.Normal(raw, 1.0)).build(2)(torch.zeros(2))
    with pytest.raises(ValueError, match=r"expected a distribution of shape \(5, 3\)"):
        FromCallable(lambda raw: dist.Normal(raw[..., :2], 1.0)).build(3)(torch.zeros(5, 3))
    with pytest.raises(TypeError, match="callable"):
        FromCallable(3)
