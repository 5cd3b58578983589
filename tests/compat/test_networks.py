"""The adapters of networks; multivae itself is not needed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import softmax, softplus

import pyro_mmvae as mm
from pyro_mmvae.compat.multivae import decoder, encoder, joint_encoder


class Outputs(nn.Module):
    """All outputs that multivae knows, each a linear map of its own."""

    def __init__(self, features: int = 3, latent: int = 2, style: int = 1) -> None:
        super().__init__()
        sizes = {"embedding": latent, "log_covariance": latent, "style_embedding": style, "style_log_covariance": style}
        self.maps = nn.ModuleDict({name: nn.Linear(features, size) for name, size in sizes.items()})

    def forward(self, x):
        return {name: layer(x.flatten(1)).squeeze(0) for name, layer in self.maps.items()}


class Reconstruction(nn.Linear):
    """One output, of any event shape, of a flat batch alone."""

    def __init__(self, latent: int, shape: tuple[int, ...]) -> None:
        super().__init__(latent, torch.Size(shape).numel())
        self.shape, self.rows = shape, []

    def forward(self, z):
        self.rows.append(len(z))
        return {"reconstruction": super().forward(z.reshape(len(z), self.in_features)).reshape(-1, *self.shape)}


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("private", [False, True])
def test_families(rows, private):
    net, x = Outputs().double(), torch.randn(rows, 3, dtype=torch.float64)
    kind = "style_" if private else ""
    loc, raw = net.maps[f"{kind}embedding"](x), net.maps[f"{kind}log_covariance"](x)
    scales = {
        "normal": (raw / 2).exp(),
        "normal_softplus": softplus(raw) + 1e-6,
        "laplace_softmax": loc.shape[-1] * softmax(raw, -1) + 1e-6,
    }
    for family, scale in scales.items():
        expert = encoder(net, family=family, private=private)(x)
        assert (expert.batch_shape, expert.event_shape) == ((rows,), loc.shape[-1:])
        torch.testing.assert_close(expert.base_dist.loc, loc)
        torch.testing.assert_close(expert.base_dist.scale, scale)
        assert isinstance(expert.base_dist, torch.distributions.Laplace) == (family == "laplace_softmax")


def test_two_heads_share_the_network():
    net = Outputs()
    both = nn.ModuleList([encoder(net), encoder(net, private=True)])
    assert len(list(both.parameters())) == len(list(net.parameters()))


@pytest.mark.parametrize("shape", [None, (2, 3)], ids=["eager", "lazy"])
@pytest.mark.parametrize("lead", [(), (5,), (4, 5)], ids=str)
def test_likelihoods(shape, lead):
    net, z = Reconstruction(2, (2, 3)).double(), torch.randn(*lead, 2, dtype=torch.float64)
    raw = (z @ net.weight.T + net.bias).reshape(*lead, 2, 3)
    x = torch.randn(2, 3, dtype=torch.float64)
    bits, one_hot = (x > 0).double(), torch.eye(3, dtype=torch.float64)[[2, 0]]
    wanted = {
        "normal": (x, torch.distributions.Normal(raw, 0.7).log_prob(x).sum((-2, -1))),
        "laplace": (x, torch.distributions.Laplace(raw, 0.7).log_prob(x).sum((-2, -1))),
        "bernoulli": (bits, torch.distributions.Bernoulli(logits=raw).log_prob(bits).sum((-2, -1))),
        "categorical": (one_hot, (one_hot * raw.log_softmax(-1)).sum((-2, -1))),
    }
    for name, (value, density) in wanted.items():
        p = decoder(net, name, 0.7, shape=shape)(z)
        assert (p.batch_shape, p.event_shape) == (lead, (2, 3))
        torch.testing.assert_close(p.log_prob(value), density)


def test_a_known_shape_spares_rows():
    net = Reconstruction(2, (3,))
    p = decoder(net, shape=(3,))(torch.randn(6, 2))
    assert net.rows == []
    p.score(torch.randn(6, 3), torch.tensor([True, False, False, True, False, False]))
    assert net.rows == [2]


def test_the_joint_encoder_answers_whole_samples():
    class Net(nn.Linear):
        def forward(self, x):
            loc, raw = super().forward(torch.cat([x["b"], x["a"]], -1)).chunk(2, -1)
            return {"embedding": loc, "log_covariance": raw}

    net, data = Net(5, 4), {"a": torch.randn(7, 2), "b": torch.randn(7, 3)}
    joint = joint_encoder(net, ("a", "b"))
    out = net(data)
    q = joint.head(joint.features(data), torch.ones(3, 7, 2, dtype=torch.bool))
    assert q.batch_shape == (3, 7)
    torch.testing.assert_close(q.mean, out["embedding"].expand(3, 7, 2))
    torch.testing.assert_close(q.stddev, (out["log_covariance"] / 2).exp().expand(3, 7, 2))
    assert joint.features({"a": data["a"]}).shape[:2] == (7, 2)


def test_a_method_of_adapters_trains_on_masks():
    enc = {m: encoder(Outputs()) for m in "ab"}
    dec = {m: decoder(Reconstruction(2, (3,)), "laplace", 0.75, shape=(3,)) for m in "ab"}
    vae = mm.MVAE(enc, dec, latent_dim=2)
    data = {m: torch.randn(5, 3) for m in "ab"}
    mask = {"a": torch.tensor([True, False, True, False, True])}
    before = [p.clone() for p in vae.parameters()]
    mm.fit(vae, mm.MultimodalDataset(data, mask), epochs=1, batch_size=5, lr=0.1, progress=False)
    moved = [not torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True)]
    names = [name for name, _ in vae.named_parameters()]
    assert [name for name, m in zip(names, moved, strict=True) if m == ("style" in name)] == []


def test_errors():
    with pytest.raises(ValueError, match=r"family: expected one of .*got 'laplace'"):
        encoder(Outputs(), family="laplace")
    with pytest.raises(ValueError, match=r"dist: expected 'normal', 'laplace', .*, got 'beta'"):
        decoder(Outputs(), "beta")
    with pytest.raises(ValueError, match="scale must be a positive number"):
        decoder(Outputs(), "normal", 0.0)
    with pytest.raises(ValueError, match=r"Outputs: expected an output 'reconstruction', got .'embedding'"):
        decoder(Outputs(2))(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"Reconstruction: expected an output 'embedding', got .'reconstruction'"):
        encoder(Reconstruction(3, (2,)))(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="Linear: expected an output 'embedding', got Tensor"):
        encoder(nn.Linear(3, 2))(torch.zeros(3, 3))


@pytest.mark.parametrize("gradient", ["path", "dreg"])
def test_a_network_with_two_heads_stays_trainable(gradient):
    """One module reached by two paths must come out of a step as it went in."""
    nets = {m: Outputs() for m in "ab"}
    heads = [{m: encoder(net, family="laplace_softmax", private=own) for m, net in nets.items()} for own in (0, 1)]
    dec = {m: decoder(Reconstruction(3, (3,)), shape=(3,)) for m in "ab"}
    options = {"private_encoders": heads[1], "private_dims": {"a": 1, "b": 1}}
    vae = mm.MMVAEPlus(heads[0], dec, latent_dim=2, num_particles=2, gradient=gradient, **options)
    before = dict(vae.named_parameters())
    mm.fit(vae, mm.MultimodalDataset({m: torch.randn(8, 3) for m in "ab"}), epochs=2, batch_size=4, progress=False)
    assert dict(vae.named_parameters()).keys() == before.keys()
    assert all(p is before[name] for name, p in vae.named_parameters())
