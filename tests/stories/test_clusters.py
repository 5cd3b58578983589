"""MixturePrior: the sum over clusters in closed form, its gradients, clusters that are switched off."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.nn import from_config
from pyro_mmvae.stories import MixturePrior

pytestmark = pytest.mark.usefixtures("float64")

FAMILIES = ["laplace", "normal"]


def uneven(family: str, clusters: int = 4, size: int = 3) -> MixturePrior:
    """A prior with weights and locations of no symmetry."""
    prior = MixturePrior(size, clusters, family=family, init_range=2.0)
    with torch.no_grad():
        prior.logits.copy_(torch.linspace(-1.0, 1.5, clusters))
    return prior


def spelled_out(prior: MixturePrior, z: Tensor) -> Tensor:
    """The published sum over clusters, q(c | z) and all, from torch's own densities."""
    kind = {"laplace": torch.distributions.Laplace, "normal": torch.distributions.Normal}[prior.family]
    log_pi = prior.logits - prior.logits.logsumexp(-1)
    log_p = torch.stack([kind(m, 1.0).log_prob(z).sum(-1) + w for m, w in zip(prior.loc, log_pi, strict=True)], -1)
    q = log_p.exp() / log_p.exp().sum(-1, keepdim=True)
    return (q * (log_p - q.log())).sum(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_published_objective_is_the_density(family):
    """Value and gradients in pi, m_c and z; both are sums of a few terms of order ten: 1e-12 is their rounding."""
    prior = uneven(family)
    z = torch.randn(7, 3, requires_grad=True)
    found, wanted = prior().log_prob(z), spelled_out(prior, z)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    weight = torch.randn(7)  # so that no gradient vanishes by symmetry
    leaves = [prior.logits, prior.loc, z]
    ours = torch.autograd.grad((weight * found).sum(), leaves)
    theirs = torch.autograd.grad((weight * wanted).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert a.abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_log_joint(family):
    prior, z = uneven(family), torch.randn(2, 5, 3)
    joint = prior.log_joint(z)
    assert joint.shape == (2, 5, 4)
    torch.testing.assert_close(joint.logsumexp(-1), prior().log_prob(z))
    torch.testing.assert_close(joint - prior.log_components(z), prior.log_weights().expand(2, 5, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_distribution(family):
    prior = uneven(family)
    kind = {"laplace": dist.Laplace, "normal": dist.Normal}[family]
    oracle = dist.MixtureSameFamily(dist.Categorical(logits=prior.logits), kind(prior.loc, 1.0).to_event(1))
    fn = prior()
    assert (fn.batch_shape, fn.event_shape) == ((), (3,))
    torch.testing.assert_close(fn.mean, oracle.mean)
    torch.testing.assert_close(fn.variance, oracle.variance)
    z = fn.sample((20_000,))
    error = (z.mean(0) - oracle.mean).abs()
    assert (error < 4 * (oracle.variance / 20_000).sqrt()).all()  # standard errors
    with pyro.plate("data", 5):
        assert pyro.sample("z", prior()).shape == (5, 3)


def test_inactive_clusters_are_gone():
    """The prior of the active clusters alone: density, gradients, draws; exactly no gradient for the others."""
    prior = uneven("normal")
    z = torch.randn(6, 3)
    prior.active.copy_(torch.tensor([True, False, True, False]))
    small = MixturePrior(3, 2, family="normal")
    with torch.no_grad():
        small.loc.copy_(prior.loc[prior.active])
        small.logits.copy_(prior.logits[prior.active])
    torch.testing.assert_close(prior().log_prob(z), small().log_prob(z), rtol=0, atol=1e-12)
    ours = torch.autograd.grad(prior().log_prob(z).sum(), [prior.logits, prior.loc])
    theirs = torch.autograd.grad(small().log_prob(z).sum(), [small.logits, small.loc])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[prior.active], b, rtol=0, atol=1e-12)
        assert (a[~prior.active] == 0).all()
    assert (prior.log_weights().exp()[~prior.active] == 0).all()
    assert prior.log_weights(torch.ones(4, dtype=torch.bool)).exp().min() > 0.01  # asked for another set
    with torch.no_grad():
        prior.loc[~prior.active] = 1e6
    assert prior().sample((500,)).abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_inactive_clusters_in_low_precision(dtype):
    prior = uneven("normal").to(dtype)
    prior.active[1:] = False
    assert prior.log_weights().exp().tolist() == [1.0, 0.0, 0.0, 0.0]


def test_what_is_learned():
    torch.manual_seed(0)
    prior = MixturePrior(50, 20, init_range=0.5)
    assert {name for name, _ in prior.named_parameters()} == {"loc", "logits"}
    assert prior.loc.abs().max() <= 0.5 and prior.loc.max() > 0.49 and prior.loc.min() < -0.49  # 1000 uniform draws
    assert (prior.logits == 0).all() and prior.active.all() and prior.num_clusters == 20
    fixed = MixturePrior(2, 3, learn_weights=False)
    assert {name for name, _ in fixed.named_parameters()} == {"loc"}
    torch.testing.assert_close(fixed.log_weights().exp(), torch.full((3,), 1 / 3))


def test_config_and_state():
    prior = uneven("normal")
    prior.active[2] = False
    copy = from_config(prior.config)
    copy.load_state_dict(prior.state_dict())
    z = torch.randn(4, 3)
    assert copy.family == "normal" and torch.equal(copy.active, prior.active)
    assert torch.equal(copy().log_prob(z), prior().log_prob(z))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim"),
        ({"num_clusters": 0}, "num_clusters"),
        ({"family": "cauchy"}, "family: expected 'laplace' or 'normal', got 'cauchy'"),
        ({"init_range": 0.0}, "init_range"),
        ({"init_range": float("nan")}, "init_range"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        MixturePrior(**{"latent_dim": 2, **options})


@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_method(family):
    """Everything of the prior is trained; a row with nothing observed adds exactly nothing."""
    encoders = {m: mm.nn.MLPEncoder(4, 2, hidden=(), family=family) for m in ("a", "b")}
    decoders = {m: mm.nn.MLPDecoder(2, 4, hidden=()) for m in ("a", "b")}
    vae = mm.MMVAE(encoders, decoders, latent_dim=2, num_particles=2, prior=MixturePrior(2, 5, family=family))
    data = {m: torch.randn(3, 4) for m in ("a", "b")}
    vae.objective.differentiable_loss(vae.model, vae.guide, data).backward()
    prior = vae.model.story.program.prior
    assert (prior.logits.grad != 0).all() and (prior.loc.grad != 0).all()
    nothing = dict.fromkeys(data, torch.zeros(3, dtype=torch.bool))
    assert vae.objective.differentiable_loss(vae.model, vae.guide, data, nothing).item() == 0.0


def test_another_default_device_changes_nothing():
    prior, z = uneven("laplace"), torch.randn(4, 3)
    wanted = prior().log_prob(z)
    try:
        torch.set_default_device("meta")  # a tensor created without a device would have no content
        assert torch.equal(prior().log_prob(z), wanted) and torch.equal(prior.log_joint(z).logsumexp(-1), wanted)
    finally:
        torch.set_default_device(None)
