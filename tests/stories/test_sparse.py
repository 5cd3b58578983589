"""The log-uniform prior in a story: terms by hand, samples with nothing observed, what cannot be done and says so."""

from __future__ import annotations

import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import pyro_mmvae as mm
from pyro_mmvae.distributions import LogUniform, stand_ins
from pyro_mmvae.nn import DropoutRates, MLPDecoder, MLPEncoder, from_config
from pyro_mmvae.stories import LogUniformPrior

DIM = 3
NAMES = ("a", "b")


def data_and_mask(n: int = 6) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    mask = {"a": torch.arange(n) % 3 != 0, "b": torch.arange(n) % 2 != 0}  # row 0 observes nothing
    return {m: torch.randn(n, 4) for m in NAMES}, mask


def build(fusion: mm.fusion.Fusion, objective: mm.Terms) -> mm.MultimodalVAE:
    rates = DropoutRates(DIM)
    encoders = {m: MLPEncoder(4, DIM, hidden=(), family="dropout", rates=rates) for m in NAMES}
    decoders = {m: MLPDecoder(DIM, 4, hidden=(), likelihood="normal_learned") for m in NAMES}
    with stand_ins():
        model = mm.observe(mm.stories.Shared(decoders, LogUniformPrior(DIM)), NAMES)
        model.door.outline()
        return mm.MultimodalVAE(model, mm.guides.Fused(model, {"z": encoders}, fusion=fusion), objective)


def joint_model() -> mm.MultimodalVAE:
    return build(mm.fusion.Product(prior_expert="never"), mm.ELBO())


def test_prior_as_a_module() -> None:
    prior = LogUniformPrior(DIM).double()
    assert isinstance(prior().base_dist, LogUniform) and prior().event_shape == (DIM,)
    assert prior().mean.dtype == torch.float64 and not prior.state_dict()
    assert from_config(prior.config)().event_shape == (DIM,)
    with pytest.raises(ValueError, match="latent_dim must be a positive integer"):
        LogUniformPrior(0)


def test_loss_by_hand(float64: None) -> None:
    vae = joint_model()
    data, mask = data_and_mask()
    torch.manual_seed(1)
    draws = 4000
    vae.objective = mm.ELBO(num_particles=draws)
    loss = vae.objective.differentiable_loss(vae.model, vae.guide, data, mask)
    tau, first = torch.zeros(6, DIM), torch.zeros(6, DIM)
    for m in NAMES:
        q = vae.guide.encoders["z"][m](data[m])
        own = mask[m].unsqueeze(-1) / q.variance
        tau, first = tau + own, first + own * q.mean
    rows = mask["a"] | mask["b"]
    q = Normal((first / tau)[rows], tau[rows].rsqrt())
    kl = kl_divergence(q, LogUniform(torch.zeros(DIM))).sum(-1)
    z = q.rsample((draws,))
    lik = [vae.model.story.program.decoders[m].dense(z).log_prob(data[m][rows]) * mask[m][rows] for m in NAMES]
    value = kl - sum(lik)
    spread = float(value.sum(-1).detach().std()) * (2 / draws) ** 0.5
    assert abs(float(loss.detach()) - float(value.sum(-1).mean().detach())) < 5 * spread  # five standard errors


def test_samples_with_nothing_observed_break_nothing() -> None:
    vae = joint_model()
    data, mask = data_and_mask()
    loss = vae.objective.differentiable_loss(vae.model, vae.guide, data, mask)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    nothing = {m: torch.zeros(6, dtype=torch.bool) for m in NAMES}
    assert float(vae.objective.differentiable_loss(vae.model, vae.guide, data, nothing).detach()) == 0
    with stand_ins():
        q = vae.posterior(data, mask)
        drawn = vae.predict(data, mask, num_samples=3)
    assert (q.mean[0] == 0).all() and (q.mean[1:] != 0).all() and (q.sample()[0] == 0).all()
    assert all(drawn[m].isfinite().all() for m in NAMES)


@pytest.mark.param_store
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_stock_bounds_train(elbo: type) -> None:
    vae = joint_model()
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), elbo())
    before = [p.detach().clone() for p in vae.parameters()]
    assert abs(svi.step(*data_and_mask())) < float("inf")
    assert all(p.isfinite().all() and not torch.equal(p, old) for p, old in zip(vae.parameters(), before, strict=True))


def test_nothing_is_generated_from_it() -> None:
    vae = joint_model()
    with stand_ins():
        vae.predict(*data_and_mask(), num_samples=1)
    with pytest.raises(NotImplementedError, match=r"(?s)LogUniform is improper.*generate\(n, prior="):
        vae.generate(3)
    assert vae.generate(3, prior=lambda n: torch.randn(n, DIM))["a"].shape == (3, 4)


@pytest.mark.param_store
def test_stock_prediction_uses_the_guide() -> None:
    vae = joint_model()
    data, mask = data_and_mask()
    with stand_ins():
        drawn = Predictive(vae.model, guide=vae.guide, num_samples=4, return_sites=("z", *NAMES))(data, mask)
    assert (drawn["z"][:, 0] == 0).all() and (drawn["z"][:, 1:] != 0).all()
    assert drawn["a"].shape == (4, 6, 4) and torch.equal(
        drawn["a"][:, mask["a"]], data["a"][mask["a"]].expand(4, -1, -1)
    )
