"""Expert families, against their formulas."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import softmax, softplus

from pyro_mmvae.nn import LaplaceHead, MLPEncoder, NormalHead, from_config
from pyro_mmvae.nn.heads import make_head

SCALES = {
    "normal": (dist.Normal, lambda raw: raw.exp()),
    "normal_softplus": (dist.Normal, lambda raw: softplus(raw) + 1e-6),
    "laplace": (dist.Laplace, lambda raw: softplus(raw) + 1e-6),
    "laplace_softmax": (dist.Laplace, lambda raw: 3 * softmax(raw, -1) + 1e-6),
}


@pytest.mark.parametrize("family", SCALES)
def test_families_follow_their_formula(family, float64):
    head, h = make_head(family, 5, 3), torch.randn(4, 2, 5)
    weight, bias = head.linear.weight, head.linear.bias
    loc, raw = h @ weight[:3].T + bias[:3], h @ weight[3:].T + bias[3:]
    q = head(h)
    kind, scale = SCALES[family]
    assert isinstance(q, dist.Independent) and type(q.base_dist) is kind
    assert q.batch_shape == (4, 2) and q.event_shape == (3,)
    torch.testing.assert_close(q.base_dist.loc, loc)
    torch.testing.assert_close(q.base_dist.scale, scale(raw))


def test_softmax_scales_share_a_budget():
    q = make_head("laplace_softmax", 5, 7)(torch.randn(4, 5))
    torch.testing.assert_close(q.base_dist.scale.mean(-1), torch.ones(4))


def test_own_families():
    class Studentt(nn.Module):
        def __init__(self, features, latent_dim):
            super().__init__()
            self.loc = nn.Linear(features, latent_dim)

        def forward(self, h):
            return dist.StudentT(5.0, self.loc(h), 1.0).to_event(1)

    enc = MLPEncoder(4, 2, family=Studentt)
    assert isinstance(enc(torch.zeros(3, 4)).base_dist, dist.StudentT)
    with pytest.raises(ValueError, match=r"config\.family was"):
        from_config(enc.config)
    enc = MLPEncoder(4, 2, family=LaplaceHead)
    assert isinstance(from_config(enc.config).head, LaplaceHead)


def test_errors():
    with pytest.raises(ValueError, match=r"Unknown expert family 'gauss'. Known: \['laplace'"):
        make_head("gauss", 5, 3)
    with pytest.raises(ValueError, match="latent_dim must be a positive integer, got 0"):
        make_head("normal", 5, 0)
    for family in (nn.Linear(5, 3), 3):
        with pytest.raises(TypeError, match=r"family: expected a name or \(features, latent_dim\)"):
            make_head(family, 5, 3)
    with pytest.raises(TypeError, match=r"must make an nn\.Module"):
        make_head(lambda features, latent_dim: None, 5, 3)


def test_a_scale_beyond_float32_keeps_gradients_finite() -> None:
    head = NormalHead(3, 2)
    with torch.no_grad():
        head.linear.bias[2:] = torch.tensor([200.0, -200.0])  # knows nothing, knows too much
    q = head(torch.zeros(4, 3)).base_dist
    tau = 1 / (q.scale * q.scale)
    ((tau * q.loc).sum() / (1 + tau.sum())).backward()
    assert q.scale.isfinite().all() and tau.isfinite().all() and (tau > 0).all()
    assert all(p.grad.isfinite().all() for p in head.parameters())
