"""A mask that depends on the missing values: ``draw`` gives the later site a reparametrized draw, unscored."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.handlers import noise

pytestmark = pytest.mark.usefixtures("float64")

B, L, D, K = 5, 2, 4, 6


class NotAtRandom(nn.Module):
    """z -> a -> a_seen, as in not-MIWAE."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.slope, self.middle = (nn.Parameter(torch.randn(s)) for s in ((D, L), (D,), (D,)))

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
        a = pyro.sample("a", dist.Normal(z @ self.weight.T, 0.5).to_event(1))
        pyro.sample("a_seen", dist.Bernoulli(logits=(a - self.middle) * self.slope).to_event(1))


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(B, L))

    def forward(self, data: Any, obs_mask: Any) -> None:
        with pyro.plate("data", B):
            pyro.sample("z", dist.Normal(self.loc, 0.6).to_event(1))


def problem() -> tuple[NotAtRandom, Fixed, dict[str, Tensor], dict[str, Tensor]]:
    seen = torch.rand(B, D) < 0.6
    data = {"a": torch.where(seen, torch.randn(B, D), torch.nan), "a_seen": seen.double()}
    return NotAtRandom(), Fixed(), data, {"a": seen}


def bound(story: NotAtRandom, guide: Fixed, data: Any, seen: Tensor, eps: Tensor, own: Tensor) -> Tensor:
    """log 1/K sum_k p(x_obs | z) p(mask | x_obs, x_drawn) p(z) / q(z), written out."""
    z = guide.loc + 0.6 * eps  # (K, B, L)
    loc = z @ story.weight.T
    filled = torch.where(seen, torch.where(seen, data["a"], 0.0), loc + 0.5 * own)
    score = torch.where(seen, dist.Normal(loc, 0.5).log_prob(filled), 0.0).sum(-1)
    logits = (filled - story.middle) * story.slope
    score = score + dist.Bernoulli(logits=logits).log_prob(data["a_seen"]).sum(-1)
    weight = score + dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - dist.Normal(guide.loc, 0.6).log_prob(z).sum(-1)
    return weight.logsumexp(0) - math.log(K)


def test_bound_and_gradients() -> None:
    story, guide, data, obs_mask = problem()
    model = mm.observe(story, ("a", "a_seen"), draw=("a",))
    eps = torch.randn(K, B, L)
    with noise({"z": eps.unsqueeze(1)}):
        torch.manual_seed(5)
        ours = mm.IWAE(num_particles=K).per_sample(model, guide, data, obs_mask)
    torch.manual_seed(5)
    own = torch.randn(K, 1, B, D).squeeze(1)
    expected = bound(story, guide, data, obs_mask["a"], eps, own)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    parameters = [*story.parameters(), guide.loc]
    gradients = [torch.autograd.grad(value.sum(), parameters) for value in (ours, expected)]
    for g, e in zip(*gradients, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-10)


def test_a_constant_in_place_of_the_draw_is_another_objective() -> None:
    """Positive control: without ``draw`` the mask would be explained by the fill constant."""
    story, guide, data, obs_mask = problem()
    eps = torch.randn(K, 1, B, L)
    values = []
    for draw in ((), ("a",)):
        with noise({"z": eps}):
            model = mm.observe(story, ("a", "a_seen"), draw=draw)
            values.append(mm.IWAE(num_particles=K).per_sample(model, guide, data, obs_mask))
    assert (values[0] - values[1]).abs().max() > 0.05


def test_draws_need_a_reparametrized_likelihood() -> None:
    def story() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
        count = pyro.sample("count", dist.Poisson(z.exp()).to_event(1))
        pyro.sample("b", dist.Normal(count, 1.0).to_event(1))

    model = mm.observe(story, ("count", "b"), draw=("count",))
    with pytest.raises(NotImplementedError, match=r"draw: 'count' has no reparametrized draws\. Fix"):
        model({"b": torch.zeros(B, L)})


def test_draw_names_modalities() -> None:
    with pytest.raises(ValueError, match=r"draw: \['z'\] are no modalities; known are \['a', 'a_seen'\]"):
        mm.observe(NotAtRandom(), ("a", "a_seen"), draw=("z",))
