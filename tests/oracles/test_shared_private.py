"""The model with private latents against a direct marginal covariance."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from .shared_private import SharedPrivate, random_shared_private

EXACT = {"rtol": 0.0, "atol": 1e-10}  # closed forms in float64


def test_evidence_and_posterior_equal_the_model_with_private_latents_as_noise() -> None:
    model = random_shared_private({"a": 2, "b": 3}, 2, 1)
    _, data = model.joint.sample(3, torch.Generator().manual_seed(0))
    loc, scale = model.prior
    own = model.slices[None]
    w = torch.cat([model.joint.weights[m][:, own] for m in data])
    blocks, centers = [], []
    for name in data:
        v = model.joint.weights[name][:, model.slices[name]]
        private_loc, private_scale = model.private_prior[name]
        blocks.append(v @ torch.diag(private_scale**2) @ v.T + torch.diag(model.joint.noise[name] ** 2))
        centers.append(v @ private_loc + model.joint.bias[name])
    noise, center, x = torch.block_diag(*blocks), torch.cat(centers), torch.cat(list(data.values()), -1)
    prior_cov = torch.diag(scale**2)
    marginal = MultivariateNormal(w @ loc + center, w @ prior_cov @ w.T + noise)
    torch.testing.assert_close(model.log_evidence(data), marginal.log_prob(x), **EXACT)
    gain = prior_cov @ w.T @ torch.linalg.inv(w @ prior_cov @ w.T + noise)
    mean, cov = model.posterior(data)
    torch.testing.assert_close(mean, loc + (x - w @ loc - center) @ gain.T, **EXACT)
    torch.testing.assert_close(cov[0], prior_cov - gain @ w @ prior_cov, **EXACT)


def test_conditional_evidence_follows_the_quotient_rule() -> None:
    model = random_shared_private({"a": 2, "b": 3}, 1, 2)
    _, data = model.joint.sample(3, torch.Generator().manual_seed(0))
    yes, no = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    only_a, only_b = {"a": yes, "b": no}, {"a": no, "b": yes}
    value = model.conditional_log_evidence(data, only_a, only_b)
    torch.testing.assert_close(value, model.log_evidence(data) - model.log_evidence(data, only_b), **EXACT)
    assert ((value - model.log_evidence(data, only_a)).abs() > 1e-3).all()


@pytest.mark.parametrize("owner", ["a", "b"])
def test_a_modality_may_have_no_private_latent(owner: str) -> None:
    one = {m: torch.ones(1, 1) for m in "ab"}
    zero = {m: torch.zeros(1) for m in "ab"}
    model = SharedPrivate(one, {owner: one[owner]}, zero, dict.fromkeys("ab", 1.0), torch.zeros(1), torch.ones(1))
    assert model.joint.latent_dim == 2
    data = {m: torch.zeros(1, 1) for m in "ab"}
    for name in "ab":
        mask = {m: torch.tensor([m == name]) for m in "ab"}
        variance = torch.tensor(3.0 if name == owner else 2.0, dtype=torch.float64)
        expected = -0.5 * (2 * torch.pi * variance).log()
        torch.testing.assert_close(model.log_evidence(data, mask)[0], expected, **EXACT)


def test_stack_falls_back_to_the_prior() -> None:
    model = random_shared_private({"a": 2, "b": 3}, 2, 1)
    shared = (torch.zeros(4, 2), torch.ones(4, 2))
    loc, scale = model.stack(shared, {"b": (torch.full((4, 1), 9.0), torch.full((4, 1), 8.0))})
    torch.testing.assert_close(loc[:, model.slices["a"]], model.private_prior["a"][0].expand(4, 1), **EXACT)
    assert (loc[:, model.slices["b"]] == 9).all()
    assert (scale[:, model.slices["b"]] == 8).all()
