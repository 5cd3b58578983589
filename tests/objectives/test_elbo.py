"""The objective as a Pyro loss: looped guides, sites that one program lacks, the clock, arguments."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.objectives import Annealed, Each, Nothing, Observed, Only
from tests.oracles.cases import make_case
from tests.stories.linear import experts, linear_story

pytestmark = pytest.mark.usefixtures("float64")

K, L = 3, 2


class Looped(nn.Module):
    """A library guide behind a plain signature: masks as at the door, one set per call."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, data: Any, obs_mask: Any) -> None:
        assert all(mask.dim() == 1 or mask.shape == data[m].shape for m, mask in obs_mask.items())
        self.calls += 1
        self.inner(data, obs_mask)


TABLES = {
    "joint and single": mm.Terms([mm.Term(), mm.Term(Each(), None, weight=0.3, beta=1.4, rescale={"b": 0.6})]),
    "other posteriors": mm.Terms([mm.Term(weight=0.5), mm.Term(Observed(), Nothing(), prior=Each(), beta=0.7)]),
    "conditional": mm.Terms([mm.Term(Observed(), Only(("b",)), prior=Only(("a", "c"))), mm.Term(Each(), weight=0.2)]),
    "gates": mm.Terms([mm.Term(), mm.Term(Each(), detach=frozenset({"decoder", "z"}))]),
}


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("name", TABLES)
def test_looped_equals_vectorized(name: str, kl: Any, per_feature: bool) -> None:
    case = make_case(3, latent_dim=L, per_feature=per_feature)
    model = mm.observe(linear_story(case.model), case.model.modalities)
    guide = mm.guides.Product(model, experts(case.model))
    looped, rows = Looped(guide), len(case.sets)
    objective = mm.ELBO(TABLES[name], num_particles=K, kl=kl)
    eps = torch.randn(K, 5, rows, L)
    found = []
    for program in (guide, looped):
        draws = iter(range(5))

        def supplied(fn: Any, program: Any = program, draws: Any = draws) -> Tensor:
            count = fn.batch_shape[-2]
            first = next(draws) if program is looped or name == "gates" else 0
            return eps[:, first : first + count]

        with mm.handlers.noise({"z": supplied}):
            value = objective.per_sample(model, program, case.data, case.obs_mask)
        gradients = torch.autograd.grad(value.square().sum(), list(guide.parameters()), allow_unused=True)
        found.append((value.detach(), *(g if g is not None else torch.zeros(()) for g in gradients)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
    assert looped.calls > 1 and (found[0][0][1:] != 0).all() and found[0][0][0] == 0


class Partial(nn.Module):
    """A guide over z alone."""

    def __init__(self, name: str = "z") -> None:
        super().__init__()
        self.loc, self.name = nn.Parameter(torch.tensor([0.3, -0.5, 1.0])), name

    def forward(self, data: Any, obs_mask: Any) -> None:
        with pyro.plate("data", 3):
            pyro.sample(self.name, dist.Normal(self.loc, 0.6))


def two_levels() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    w = pyro.sample("w", dist.Normal(2 * z, 0.5))
    pyro.sample("x", dist.Normal(w, 1.0))


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_latents_that_the_guide_lacks_come_from_the_story(kl: Any) -> None:
    """w is drawn from p(w | z), and its density is on neither side."""
    x, eps = torch.randn(3), {"z": torch.randn(3), "w": torch.randn(3)}
    guide = Partial()
    with mm.handlers.noise(eps):
        value = mm.ELBO(kl=kl).per_sample(mm.observe(two_levels, ("x",)), guide, {"x": x})
    q, p = dist.Normal(guide.loc, 0.6), dist.Normal(0.0, 1.0)
    z = guide.loc + 0.6 * eps["z"]
    divergence = torch.distributions.kl_divergence(q, p) if kl == "analytic" else q.log_prob(z) - p.log_prob(z)
    expected = dist.Normal(2 * z + 0.5 * eps["w"], 1.0).log_prob(x) - divergence
    torch.testing.assert_close(value, expected)


def test_sites_that_the_model_lacks_are_refused() -> None:
    model = mm.observe(two_levels, ("x",))
    with pytest.raises(ValueError, match=r"guide site 'u' is no latent of the model; its latents are \['z', 'w'\]"):
        mm.ELBO().per_sample(model, Partial("u"), {"x": torch.zeros(3)})


def test_discrete_latents_that_the_guide_lacks_are_refused() -> None:
    def discrete() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + c, 1.0))

    with pytest.raises(NotImplementedError, match=r"'c' is discrete and not in the guide(.|\n)*TraceEnum_ELBO"):
        mm.ELBO().per_sample(mm.observe(discrete, ("x",)), Partial(), {"x": torch.zeros(3)})


def pair() -> tuple[Any, Any, dict[str, Tensor]]:
    return mm.observe(two_levels, ("x",)), Partial(), {"x": torch.tensor([0.3, 1.0, -2.0])}


def test_loss_is_minus_the_sum() -> None:
    model, guide, data = pair()
    eps = {"z": torch.randn(3), "w": torch.randn(3)}
    objective = mm.ELBO()
    with mm.handlers.noise(eps):
        value = objective.per_sample(model, guide, data)
        torch.testing.assert_close(objective.differentiable_loss(model, guide, data), -value.sum())
        assert objective.loss(model, guide, data) == pytest.approx(-value.sum().item())
        torch.testing.assert_close(objective(model, guide)(data), -value.sum())  # as pyro.infer.ELBO gives modules


@pytest.mark.param_store
def test_the_clock_counts_training_steps_only() -> None:
    model, guide, data = pair()
    objective = mm.ELBO(mm.Terms([mm.Term(beta=Annealed(1.0, 10))]))
    assert (objective.step, objective.annealing_steps) == (0, 10)
    svi = SVI(model, lambda *args: guide(data, None), pyro.optim.Adam({"lr": 0.1}), objective)
    before = guide.loc.detach().clone()
    for _ in range(3):
        svi.step(data)
    assert objective.step == 3 and (guide.loc == before).all()  # a lambda hides its parameters from the store
    objective.loss(model, guide, data)
    objective.differentiable_loss(model, guide, data)
    assert objective.step == 3
    objective.advance(4)
    other = mm.ELBO(objective.terms)
    other.load_state_dict(objective.state_dict())
    assert other.step == 7 and other.terms is objective.terms


def test_annealing_changes_the_value() -> None:
    model, guide, data = pair()
    objective, eps = mm.ELBO(mm.Terms([mm.Term(beta=Annealed(1.0, 4))])), {"z": torch.randn(3), "w": torch.randn(3)}
    values = []
    for _ in range(5):
        with mm.handlers.noise(eps):
            values.append(objective.per_sample(model, guide, data))
        objective.advance()
    kl = torch.distributions.kl_divergence(dist.Normal(guide.loc, 0.6), dist.Normal(0.0, 1.0))
    for t in range(3):
        torch.testing.assert_close(values[t] - values[t + 1], 0.25 * kl)
    torch.testing.assert_close(values[3], values[4])


def test_arguments() -> None:
    model, guide, data = pair()
    torch.manual_seed(0)
    first = mm.ELBO().loss(model, guide, data, None)
    torch.manual_seed(0)
    assert mm.ELBO().loss(model, guide, data=data, obs_mask=None) == first
    for args, kwargs in (((data, None, None, 3), {}), ((data,), {"mask": None})):
        with pytest.raises(TypeError, match="expected data, obs_mask and n"):
            mm.ELBO().loss(model, guide, *args, **kwargs)
    for options, words in (
        ({"num_particles": 0}, "num_particles: expected at least 1, got 0"),
        ({"kl": "exact"}, "kl: expected 'analytic' or 'sampled', got 'exact'"),
        ({"gradient": "dreg"}, "gradient: expected 'path' or 'stl', got 'dreg'"),
    ):
        with pytest.raises(ValueError, match=words):
            mm.ELBO(**options)
    with pytest.raises(ValueError, match=r"dreg_mixture' needs bound='looser' and density='mixture'\. Fix"):
        mm.IWAE(gradient="dreg_mixture")
