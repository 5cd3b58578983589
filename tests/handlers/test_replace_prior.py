"""Another prior at a latent site, the rest of the story as it was."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

import pyro_mmvae as mm
from pyro_mmvae.handlers import replace_prior


def story() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("w", dist.Normal(z.sum(-1), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1))


def test_a_distribution_or_a_function_of_the_own_one() -> None:
    new = dist.Normal(torch.ones(2), 0.5).to_event(1)
    z = torch.randn(3, 2)
    for prior in (new, lambda own: dist.Normal(own.mean + 1, own.stddev / 2).to_event(1)):
        with poutine.trace() as t, replace_prior({"z": prior}), pyro.plate("data", 3), poutine.condition(data={"z": z}):
            story()
        t.trace.compute_log_prob()
        observed = t.trace.nodes["z"]
        assert observed["is_observed"]  # conditioned inside: the handler leaves observed sites alone
        torch.testing.assert_close(observed["fn"].mean, torch.zeros(3, 2))
        with poutine.trace() as t, poutine.condition(data={"z": z}), pyro.plate("data", 3), replace_prior({"z": prior}):
            story()
        t.trace.compute_log_prob()
        torch.testing.assert_close(t.trace.nodes["z"]["log_prob"], new.log_prob(z))
        torch.testing.assert_close(t.trace.nodes["w"]["fn"].mean, z.sum(-1))


def test_generation_from_another_prior() -> None:
    model = mm.observe(story, ("x",))
    far = dist.Normal(torch.full((2,), 50.0), 1e-3).to_event(1)
    with replace_prior({"z": far}):
        draws = Predictive(model, num_samples=20)(n=4)
    assert (draws["x"] > 40).all() and (draws["w"] > 90).all()


def test_the_space_must_be_the_same() -> None:
    with pytest.raises(ValueError, match=r"site 'z' has event shape \(2,\), the new prior \(\)(.|\n)*Fix"):
        with replace_prior({"z": dist.Normal(0.0, 1.0)}):
            story()
