"""Private latents with S != A against closed forms: inferred where their source says so, neutral elsewhere.

Noise at sigma points makes the mean over particles exact, for sampled divergences too.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.objectives import Only
from tests.oracles.products import product_of_experts
from tests.oracles.shared_private import SharedPrivate, random_shared_private
from tests.oracles.terms import private_term_value
from tests.stories.linear import LinearExpert, masks_of, sigma_points, subsets

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]  # stock ELBOs register parameters

DIMS = {"a": 2, "b": 3}
NAMES = tuple(DIMS)
L, P, B = 2, 1, 4
PAIRS = [(s, a) for s in subsets(NAMES) if s for a in subsets(NAMES)]
SITES = {"z": L, "z_a": P, "z_b": P}


class Decoder(nn.Module):
    """[z, w_m] -> N(W z + V w + b, s)."""

    def __init__(self, oracle: SharedPrivate, name: str) -> None:
        super().__init__()
        own = [slice(0, L), oracle.slices[name]]
        stacked = oracle.joint.weights[name]
        self.weight = nn.Parameter(torch.cat([stacked[:, s] for s in own], -1))
        self.bias, self.noise = oracle.joint.bias[name], oracle.joint.noise[name]

    def forward(self, h: Tensor) -> Any:
        return dist.Normal(h @ self.weight.T + self.bias, self.noise).to_event(1)


class Story(nn.Module):
    """z, one private latent per modality, the modalities."""

    def __init__(self, oracle: SharedPrivate) -> None:
        super().__init__()
        self.oracle, self.decoders = oracle, nn.ModuleDict({m: Decoder(oracle, m) for m in NAMES})

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(*self.oracle.prior).to_event(1))
        for m in NAMES:
            w = pyro.sample(f"z_{m}", dist.Normal(*self.oracle.private_prior[m]).to_event(1))
            pyro.sample(m, self.decoders[m](torch.cat([z, w], -1)))


class Problem:
    """A random model, a guide with experts of no special value, rows that observe both, one and none."""

    def __init__(self) -> None:
        self.oracle = random_shared_private(DIMS, L, P)
        _, complete = self.oracle.joint.sample(B, torch.Generator().manual_seed(1))
        self.obs_mask = {"a": torch.tensor([1, 1, 0, 0]).bool(), "b": torch.tensor([1, 0, 1, 0]).bool()}
        self.complete = complete
        self.data = {m: torch.where(self.obs_mask[m].unsqueeze(-1), x, torch.nan) for m, x in complete.items()}
        self.shared = {m: self.expert(d, L) for m, d in DIMS.items()}
        self.private = {m: self.expert(d, P) for m, d in DIMS.items()}
        encoders = {"z": self.shared, **{f"z_{m}": {m: e} for m, e in self.private.items()}}
        rules = {"z": mm.fusion.Product(), **{f"z_{m}": mm.fusion.Single() for m in NAMES}}
        self.model = mm.observe(Story(self.oracle), NAMES, private={f"z_{m}": m for m in NAMES})
        self.guide = mm.guides.Fused(self.model, encoders, fusion=rules)

    @staticmethod
    def expert(size: int, latent: int) -> LinearExpert:
        return LinearExpert(torch.randn(latent, size), torch.randn(latent), 0.5 + torch.rand(latent))

    def exact(
        self,
        source: tuple[str, ...],
        target: tuple[str, ...],
        inferred: tuple[str, ...],
        *,
        empty_rows: bool = False,
        **weights: Any,
    ) -> Tensor:  # shape: (B,)
        """The closed form; rows whose source is empty are no term."""
        seen = masks_of(source, self.obs_mask)

        def experts(networks: dict[str, LinearExpert]) -> dict[str, tuple[Tensor, Tensor]]:
            found = {m: networks[m](self.complete[m]) for m in NAMES}
            return {m: (q.mean.detach(), q.stddev.detach()) for m, q in found.items()}

        q = product_of_experts(experts(self.shared), seen, self.oracle.prior)
        value = private_term_value(
            self.oracle,
            q,
            experts(self.private),
            masks_of(inferred, self.obs_mask),
            self.complete,
            masks_of(target, self.obs_mask),
            **weights,
        )
        return value if empty_rows else torch.where(seen["a"] | seen["b"], value, 0.0)


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("private", ["observed", "source"])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_each_term(source: tuple[str, ...], target: tuple[str, ...], private: Any, kl: Any) -> None:
    problem = Problem()
    beta = {"": 1.3, "z_a": 0.6, "z_b": 0.6}
    term = mm.Term(Only(source), Only(target), beta=beta, rescale={"a": 2.0, "b": 0.7}, private=private)
    eps = sigma_points(SITES, middle=2)
    objective = mm.ELBO(mm.Terms([term]), num_particles=len(eps["z"]), kl=kl)
    with mm.handlers.noise(eps):
        value = objective.per_sample(problem.model, problem.guide, problem.data, problem.obs_mask)
    inferred = NAMES if private == "observed" else source
    expected = problem.exact(source, target, inferred, beta=1.3, beta_private=0.6, rescale={"a": 2.0, "b": 0.7})
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("private", ["observed", "source"])
def test_a_table_of_all_terms(private: Any) -> None:
    problem, weights = Problem(), torch.rand(len(PAIRS)).tolist()
    rows = [mm.Term(Only(s), Only(a), weight=w, private=private) for (s, a), w in zip(PAIRS, weights, strict=True)]
    eps = sigma_points(SITES, middle=2)
    objective = mm.ELBO(mm.Terms(rows), num_particles=len(eps["z"]))
    with mm.handlers.noise(eps):
        value = objective.per_sample(problem.model, problem.guide, problem.data, problem.obs_mask)
    expected = sum(
        w * problem.exact(s, a, NAMES if private == "observed" else s) for (s, a), w in zip(PAIRS, weights, strict=True)
    )
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_the_choices_of_source_differ() -> None:
    problem = Problem()
    observed, source = (problem.exact(("a",), ("b",), i)[0] for i in (NAMES, ("a",)))
    assert abs(observed - source) > 0.1


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_stock_forms(elbo: Any, source: tuple[str, ...], target: tuple[str, ...]) -> None:
    problem, eps = Problem(), sigma_points(SITES)
    stock = elbo(num_particles=len(eps["z"]), vectorize_particles=True, max_plate_nesting=1)

    def guide(data: Any, obs_mask: Any) -> None:
        problem.guide(data, masks_of(source, obs_mask))

    def model(data: Any, obs_mask: Any) -> None:
        with mm.handlers.score(set(target)):
            problem.model(data, obs_mask)

    with mm.handlers.noise(eps):
        loss = stock.loss(model, guide, problem.data, problem.obs_mask)
    # rows whose source is empty are no terms in our tables; a stock ELBO scores them under the prior
    expected = problem.exact(source, target, source, empty_rows=True).sum()
    torch.testing.assert_close(torch.tensor(-loss), expected, rtol=1e-10, atol=1e-10)
