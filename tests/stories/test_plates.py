"""A story with a plate of its own, and global sites with priors, under tables of terms and several particles."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.objectives import Each, Observed, Only
from pyro_mmvae.stories import data_plate

pytestmark = pytest.mark.usefixtures("float64")

B, K, R, J = 5, 3, 4, 3
NAMES = ("a", "b")
RATE = torch.linspace(0.5, 1.5, R, dtype=torch.float64).unsqueeze(-1)  # one per element of the story's plate


def story() -> None:
    z = pyro.sample("z", dist.Normal(0.3, 1.1))
    with pyro.plate("parts", R, dim=-2):
        r = pyro.sample("r", dist.Normal(RATE * z, 0.7))
    pyro.sample("a", dist.Normal(r.sum(-2, keepdim=True), 0.9))
    pyro.sample("b", dist.Normal(z, 0.5))


class Scalar(nn.Module):
    """x -> N(A x + c, s) for events of shape ()."""

    def __init__(self, slope: float, offset: float, scale: float) -> None:
        super().__init__()
        self.slope, self.offset, self.scale = nn.Parameter(torch.tensor(slope)), offset, scale

    def forward(self, x: Tensor) -> Any:
        return dist.Normal((self.slope * x + self.offset).unsqueeze(-1), self.scale).to_event(1)


EXPERTS = {"z": {"a": (0.2, 0.1, 0.8), "b": (0.9, -0.2, 0.6)}, "r": {"a": (0.3, 0.4, 0.5)}}


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return (
        {"a": torch.randn(B), "b": torch.randn(B)},
        {"a": torch.tensor([1, 0, 1, 0, 1]).bool(), "b": torch.tensor([1, 1, 0, 0, 1]).bool()},
    )


def pooled(prior: tuple[Tensor, Tensor], experts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Product of a prior and the observed experts, each (loc, scale, whether it counts)."""
    tau = prior[1] ** -2 + sum(seen * scale**-2 for _, scale, seen in experts)
    first = prior[0] * prior[1] ** -2 + sum(seen * loc * scale**-2 for loc, scale, seen in experts)
    return first / tau, tau**-0.5


def term(source: Any, data: Any, obs_mask: Any, eps_z: Tensor, eps_r: Tensor) -> Tensor:  # (B,), (R, B) -> (B,)
    """One draw of T(S -> O || p), every density written out."""
    seen = {m: obs_mask[m] & (m in source) for m in NAMES}

    def expert(site: str, m: str) -> tuple[Tensor, Tensor, Tensor]:
        slope, offset, scale = EXPERTS[site][m]
        return slope * data[m] + offset, torch.tensor(scale), seen[m].double()

    loc, scale = pooled((torch.tensor(0.3), torch.tensor(1.1)), [expert("z", m) for m in NAMES])
    z = loc + scale * eps_z
    value = dist.Normal(0.3, 1.1).log_prob(z) - dist.Normal(loc, scale).log_prob(z)
    loc, scale = pooled((RATE * z, torch.tensor(0.7)), [expert("r", "a")])
    r = loc + scale * eps_r
    value = value + (dist.Normal(RATE * z, 0.7).log_prob(r) - dist.Normal(loc, scale).log_prob(r)).sum(0)
    value = value + torch.where(obs_mask["a"], dist.Normal(r.sum(0), 0.9).log_prob(data["a"]), 0.0)
    value = value + torch.where(obs_mask["b"], dist.Normal(z, 0.5).log_prob(data["b"]), 0.0)
    return torch.where(seen["a"] | seen["b"], value, 0.0)


def programs(size: int | None = None) -> tuple[Any, Any]:
    model = mm.observe(story, NAMES, size=size)
    encoders = {site: {m: Scalar(*p) for m, p in own.items()} for site, own in EXPERTS.items()}
    return model, mm.guides.Product(model, encoders)


SOURCES = (("a",), ("b",), NAMES)
TABLE = mm.Terms([mm.Term(Each(), weight=0.4), mm.Term(Observed(), weight=1.7)])
WEIGHTS = (0.4, 0.4, 1.7)


@pytest.mark.parametrize("iwae", [False, True])
def test_a_plate_inside_the_story(iwae: bool) -> None:
    (data, obs_mask), (model, guide) = batch(), programs()
    eps_z, eps_r = torch.randn(K, J, 1, B), torch.randn(K, J, R, B)
    objective = mm.IWAE(TABLE, num_particles=K) if iwae else mm.ELBO(TABLE, num_particles=K, kl="sampled")
    with mm.handlers.noise({"z": eps_z, "r": eps_r}):
        value = objective.per_sample(model, guide, data, obs_mask)
    expected = 0.0
    for j, (source, weight) in enumerate(zip(SOURCES, WEIGHTS, strict=True)):
        draws = torch.stack([term(source, data, obs_mask, eps_z[k, j, 0], eps_r[k, j]) for k in range(K)])
        each = draws.logsumexp(0) - torch.tensor(float(K)).log() if iwae else draws.mean(0)
        seen = torch.stack([obs_mask[m] & (m in source) for m in NAMES]).any(0)
        expected = expected + weight * torch.where(seen, each, 0.0)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)


def test_a_plate_inside_the_story_with_stock_elbos() -> None:
    (data, obs_mask), (model, guide) = batch(), programs()
    eps_z, eps_r = torch.randn(B), torch.randn(R, B)
    everything = torch.stack([term(NAMES, data, obs_mask, eps_z, eps_r)]).sum()
    with mm.handlers.unregistered(), mm.handlers.noise({"z": eps_z, "r": eps_r}):
        loss = pyro.infer.Trace_ELBO(max_plate_nesting=2).loss(model, guide, data, obs_mask)
    torch.testing.assert_close(torch.tensor(-loss), everything, rtol=1e-11, atol=1e-11)


class Global(nn.Module):
    """A guide by hand with a global site g; ``vectorized`` answers masks with leading dimensions."""

    def __init__(self, *, vectorized: bool, size: int | None) -> None:
        super().__init__()
        self.vectorized, self.size = vectorized, size
        self.loc = nn.Parameter(torch.tensor(0.4))
        self.calls = 0

    def forward(self, data: Any, obs_mask: Any) -> None:
        self.calls += 1
        pyro.sample("g", dist.Normal(self.loc, 0.2))
        rows = getattr(obs_mask, "rows", obs_mask)
        with data_plate(B, self.size):
            count = rows["a"].double() + 2 * rows["b"].double()
            pyro.sample("z", dist.Normal(0.1 * count, 0.9))


def global_model(size: int | None) -> Any:
    def model(data: Any, obs_mask: Any) -> None:
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with data_plate(B, size), mm.handlers.observe(data, obs_mask, NAMES):
            z = pyro.sample("z", dist.Normal(g, 1.0))
            pyro.sample("a", dist.Normal(g * z, 0.8))
            pyro.sample("b", dist.Normal(z, 0.5))

    return model


def global_reference(data: Any, obs_mask: Any, g: Tensor, eps: Tensor, size: int) -> Tensor:
    """Terms times N/B, the global site once."""
    total = torch.zeros(())
    for j, (source, weight) in enumerate(zip(SOURCES, WEIGHTS, strict=True)):
        seen = {m: obs_mask[m] & (m in source) for m in NAMES}
        loc = 0.1 * (seen["a"].double() + 2 * seen["b"].double())
        for k in range(K):
            z = loc + 0.9 * eps[k, j]
            value = dist.Normal(g, 1.0).log_prob(z) - dist.Normal(loc, 0.9).log_prob(z)
            value = value + torch.where(obs_mask["a"], dist.Normal(g * z, 0.8).log_prob(data["a"]), 0.0)
            value = value + torch.where(obs_mask["b"], dist.Normal(z, 0.5).log_prob(data["b"]), 0.0)
            total = total + weight * torch.where(seen["a"] | seen["b"], value, 0.0).sum() / K
    return total * size / B + dist.Normal(0.0, 1.0).log_prob(g) - dist.Normal(0.4, 0.2).log_prob(g)


@pytest.mark.parametrize("size", [None, 10 * B])
@pytest.mark.parametrize("vectorized", [True, False])
def test_a_global_site_counts_once(vectorized: bool, size: int | None) -> None:
    data, obs_mask = batch()
    guide, model = Global(vectorized=vectorized, size=size), global_model(size)
    eps, at = torch.randn(K, J, B), torch.tensor(0.7)

    class PerTerm:
        """Noise for all terms at once, or for one after the other where the guide is called per term."""

        def __call__(self, fn: Any) -> Tensor:
            return eps if vectorized else eps[:, guide.calls - 1].unsqueeze(1)

    objective = mm.ELBO(TABLE, num_particles=K, kl="sampled")
    with mm.handlers.noise({"g": at, "z": PerTerm()}):
        loss = objective.differentiable_loss(model, guide, data, obs_mask)
    expected = global_reference(data, obs_mask, 0.4 + 0.2 * at, eps, B if size is None else size)
    torch.testing.assert_close(-loss, expected, rtol=1e-11, atol=1e-11)


def test_a_term_that_is_nowhere_valid_still_leaves_the_global_site() -> None:
    data, _ = batch()
    none = {m: torch.zeros(B, dtype=torch.bool) for m in NAMES}
    guide = Global(vectorized=True, size=None)
    with mm.handlers.noise({"g": torch.tensor(0.7)}):
        loss = mm.ELBO(mm.Terms([mm.Term(Only(("a",)))])).differentiable_loss(global_model(None), guide, data, none)
    g = torch.tensor(0.4 + 0.2 * 0.7)
    expected = dist.Normal(0.0, 1.0).log_prob(g) - dist.Normal(0.4, 0.2).log_prob(g)
    torch.testing.assert_close(-loss, expected, rtol=1e-12, atol=1e-12)
