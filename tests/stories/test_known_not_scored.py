"""A story in which one modality feeds another: what is known is given to it, also where it is not scored."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.objectives import Only
from tests.oracles.products import product_of_experts
from tests.oracles.terms import kl_diag
from tests.stories.linear import LinearExpert, masks_of, subsets

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

L, B = 2, 5
NAMES = ("a", "b")
SETS = subsets(NAMES)
PAIRS = [(s, a) for s in SETS for a in SETS]
PRIOR = (torch.zeros(L, dtype=torch.float64), torch.ones(L, dtype=torch.float64))


class Problem:
    """z -> a -> b, and z -> b; each row of a batch observes another set."""

    def __init__(self) -> None:
        self.w, self.u = torch.randn(4, L), torch.randn(3, 4)
        self.calls: list[int] = []
        complete = {"a": 3 * torch.randn(B, 4), "b": torch.randn(B, 3)}
        self.obs_mask = {"a": torch.tensor([1, 0, 1, 0, 1]).bool(), "b": torch.tensor([1, 1, 0, 0, 1]).bool()}
        self.data = {m: torch.where(self.obs_mask[m].unsqueeze(-1), x, torch.nan) for m, x in complete.items()}
        self.encoders = {
            "a": LinearExpert(torch.randn(L, 4), torch.randn(L), torch.tensor([0.6, 0.9])),
            "b": LinearExpert(torch.randn(L, 3), torch.randn(L), torch.tensor([1.2, 0.7])),
        }
        self.model = mm.observe(self.story, NAMES)
        self.guide = mm.guides.Product(self.model, self.encoders)

    def likelihood_b(self, h: Tensor) -> Any:
        self.calls.append(h.numel() // h.shape[-1])
        return dist.Normal(h[..., :4] @ self.u.T + h[..., 4:].sum(-1, keepdim=True), 0.5).to_event(1)

    def story(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
        a = pyro.sample("a", dist.Normal(z @ self.w.T, 1.0).to_event(1))
        h = torch.cat([a.expand((*z.shape[:-1], 4)), z], -1)
        real = dist.constraints.real_vector
        pyro.sample("b", mm.distributions.Lazy(self.likelihood_b, h, event_shape=(3,), support=real))

    def filled(self) -> dict[str, Tensor]:
        return {m: torch.where(self.obs_mask[m].unsqueeze(-1), x, 0.0) for m, x in self.data.items()}

    def term(self, source: tuple[str, ...], target: tuple[str, ...], eps: Tensor) -> Tensor:  # shape: (B,)
        """T(S & O -> A & O || p) at one draw, written out; a is 0 where it is unknown."""
        x, seen = self.filled(), masks_of(source, self.obs_mask)
        own = {m: (q.mean, q.stddev) for m, q in ((m, self.encoders[m](x[m])) for m in NAMES)}
        loc, scale = product_of_experts(own, seen, PRIOR)
        z = loc + scale * eps
        value = -kl_diag((loc, scale), PRIOR)
        if "a" in target:
            score = dist.Normal(z @ self.w.T, 1.0).log_prob(x["a"]).sum(-1)
            value = value + torch.where(self.obs_mask["a"], score, 0.0)
        if "b" in target:
            mean = x["a"] @ self.u.T + z.sum(-1, keepdim=True)
            score = dist.Normal(mean, 0.5).log_prob(x["b"]).sum(-1)
            value = value + torch.where(self.obs_mask["b"], score, 0.0)
        return torch.where(seen["a"] | seen["b"], value, 0.0)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_each_term(source: tuple[str, ...], target: tuple[str, ...]) -> None:
    problem, eps = Problem(), torch.randn(B, L)
    objective = mm.ELBO(mm.Terms([mm.Term(Only(source), Only(target))]))
    with mm.handlers.noise({"z": eps}):
        value = objective.per_sample(problem.model, problem.guide, problem.data, problem.obs_mask)
    torch.testing.assert_close(value, problem.term(source, target, eps), rtol=1e-11, atol=1e-11)


def test_all_terms_in_one_table_with_particles() -> None:
    problem, weights = Problem(), torch.rand(len(PAIRS)).tolist()
    rows = [mm.Term(Only(s), Only(a), weight=w) for (s, a), w in zip(PAIRS, weights, strict=True)]
    eps = torch.randn(3, len(SETS), B, L)  # terms with one source share their draws
    with mm.handlers.noise({"z": eps}):
        objective = mm.ELBO(mm.Terms(rows), num_particles=3)
        value = objective.per_sample(problem.model, problem.guide, problem.data, problem.obs_mask)
    expected = sum(
        w * problem.term(s, a, eps[k, SETS.index(s)]) / 3
        for (s, a), w in zip(PAIRS, weights, strict=True)
        for k in range(3)
    )
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)


def test_hiding_the_unscored_modality_would_give_another_value() -> None:
    """Positive control: leaving ``a`` out of the data where it is not scored changes log p(b | z, a)."""
    problem, eps = Problem(), torch.zeros(B, L)
    objective = mm.ELBO(mm.Terms([mm.Term(Only(("b",)), Only(("b",)))]))
    hidden = {"a": torch.zeros(B, dtype=torch.bool), "b": problem.obs_mask["b"]}
    with mm.handlers.noise({"z": eps}):
        known = objective.per_sample(problem.model, problem.guide, problem.data, problem.obs_mask)
        unknown = objective.per_sample(problem.model, problem.guide, problem.data, hidden)
    assert (known - unknown).abs()[problem.obs_mask["a"] & problem.obs_mask["b"]].min() > 1


def test_the_handler_scores_under_a_plate_of_terms_and_runs_scored_rows_only() -> None:
    problem, z = Problem(), torch.randn(3, B, L)
    target = {"a": torch.tensor([1, 0, 0]).bool(), "b": torch.tensor([1, 1, 0]).bool()}
    conditioned = poutine.condition(problem.model, {"z": z})
    with mm.handlers.score({m: t.unsqueeze(-1).expand(3, B) for m, t in target.items()}):
        trace = poutine.trace(pyro.plate("terms", 3, dim=-2)(conditioned)).get_trace(problem.data, problem.obs_mask)
    trace.compute_log_prob()
    x = problem.filled()
    score = dist.Normal(x["a"] @ problem.u.T + z.sum(-1, keepdim=True), 0.5).log_prob(x["b"]).sum(-1)
    scored = target["b"].unsqueeze(-1) & problem.obs_mask["b"]
    expected = torch.where(scored, score, 0.0)
    torch.testing.assert_close(trace.nodes["b"]["log_prob"], expected, rtol=1e-11, atol=1e-11)
    assert problem.calls == [int(scored.sum())]
    score = dist.Normal(z @ problem.w.T, 1.0).log_prob(x["a"]).sum(-1)
    expected = torch.where(target["a"].unsqueeze(-1) & problem.obs_mask["a"], score, 0.0)
    torch.testing.assert_close(trace.nodes["a"]["log_prob"], expected, rtol=1e-11, atol=1e-11)


def test_a_latent_after_a_modality_sees_what_the_guide_may_see() -> None:
    """The prior of w is N(2 a, 1): the guide takes the known a, and the fill constant where a is not in S."""

    def story() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        a = pyro.sample("a", dist.Normal(z, 1.0))
        w = pyro.sample("w", dist.Normal(2 * a, 1.0))
        pyro.sample("b", dist.Normal(w, 1.0))

    model = mm.observe(story, NAMES)
    narrow = LinearExpert(torch.ones(1, 1), torch.zeros(1), torch.ones(1))
    guide = mm.guides.Product(model, {"z": {"a": Unsqueezed(narrow)}})
    data, seen = {"a": torch.tensor([1.0, 5.0]), "b": torch.zeros(2)}, {"a": torch.tensor([True, False])}
    trace = poutine.trace(guide).get_trace(data, seen)
    assert trace.nodes["w"]["fn"].mean.tolist() == [2.0, 0.0]


class Unsqueezed(torch.nn.Module):
    """An encoder for events of shape ()."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x.unsqueeze(-1))
