"""Every fusion rule in every story under every table it fits: parts compose without knowing each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae import fusion
from pyro_mmvae.objectives import Bernoulli, Complement, Each, Observed, Powerset
from tests.conformance.evaluate import gradients

LATENT, DIMS, ROWS = 3, {"a": 4, "b": 5}, 6
SEEN = {"a": torch.tensor([0, 1, 0, 1, 1, 1]).bool(), "b": torch.tensor([0, 0, 1, 1, 1, 1]).bool()}


class Counts(nn.Module):
    """Counts whose rate is proportional to a depth that is known, beside a real vector."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.rate = nn.Linear(LATENT, DIMS["a"]), nn.Linear(LATENT, DIMS["b"])

    def forward(self, depth: Tensor) -> None:
        zero = self.loc.weight.new_zeros(LATENT)
        z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
        pyro.sample("a", dist.Normal(self.loc(z), 1.0).to_event(1))
        pyro.sample("b", dist.Poisson(depth.unsqueeze(-1) * self.rate(z).clamp(max=3.0).exp()).to_event(1))


class Levels(nn.Module):
    """A latent whose prior depends on another."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.decoders = nn.Linear(2, LATENT), mm.nn.NamedModules(decoders(LATENT))

    def forward(self) -> None:
        t = pyro.sample("t", dist.Normal(self.top.weight.new_zeros(2), 1.0).to_event(1))
        z = pyro.sample("z", dist.Normal(self.top(t), 0.7).to_event(1))
        for m in self.decoders:
            pyro.sample(m, self.decoders[m](z))


def encoder(m: str, latent_dim: int = LATENT) -> nn.Module:
    return mm.nn.MLPEncoder(DIMS[m], latent_dim, hidden=())


def decoders(latent_dim: int) -> dict[str, nn.Module]:
    return {m: mm.nn.MLPDecoder(latent_dim, size, hidden=()) for m, size in DIMS.items()}


def prior() -> nn.Module:
    return mm.stories.NormalPrior(LATENT, learn=True)


STORIES: dict[str, Callable[[], nn.Module]] = {
    "shared": lambda: mm.stories.Shared(decoders(LATENT), prior()),
    "private": lambda: mm.stories.SharedPrivate(decoders(LATENT + 2), prior(), dict.fromkeys(DIMS, 2)),
    "counts": Counts,
    "levels": Levels,
}


def spline() -> Any:
    return dist.transforms.spline(LATENT, count_bins=4)


def pooled() -> fusion.Pooled:
    return fusion.Pooled(mm.nn.SumPoolingEncoder(DIMS, LATENT, features=(8,), hidden=()))


FUSIONS: dict[str, Callable[[], fusion.Fusion]] = {
    "product": fusion.Product,
    "product alone": lambda: fusion.Product(prior_expert="never"),
    "generalized product": lambda: fusion.GeneralizedProduct(len(DIMS), LATENT),
    "geometric mean": fusion.GeometricMean,
    "mixture": fusion.Mixture,
    "mixture with prior": lambda: fusion.Mixture(prior_weight=0.5),
    "mixture of products": fusion.MixtureOfProducts,
    "consensus": fusion.ConsensusOfDependentExperts,
    "hoelder moment dim": lambda: fusion.Hoelder("moment", "dim"),
    "hoelder moment joint": lambda: fusion.Hoelder("moment", "joint"),
    "hoelder mixture dim": lambda: fusion.Hoelder("mixture", "dim"),
    "hoelder mixture joint": lambda: fusion.Hoelder("mixture", "joint"),
    "barycenter": fusion.WassersteinBarycenter,
    "mean": fusion.MeanOfParameters,
    "flow of product": lambda: fusion.Flow(fusion.Product(), [spline()]),
    "flow of mixture": lambda: fusion.Flow(fusion.Mixture(), [spline()]),
    "pooled": pooled,
}
SINGLE = {"mixture", "mixture with prior", "flow of mixture"}  # in terms they ask for one expert at a time

EVERY = mm.Term(Each(), Observed(), weight=1 / len(DIMS), renormalize=True)
PARTS = mm.Term(Powerset(), Observed(), weight=1 / 3, renormalize=True, subsets="contained")
REST = mm.Term(Observed(), Complement(Bernoulli()), prior=Bernoulli(), empty=True)
TABLES: dict[str, Callable[[], Any]] = {
    "elbo": mm.ELBO,
    "elbo and each": lambda: mm.ELBO(mm.Terms([mm.Term(), mm.Term(Each(), None)])),
    "subsets": lambda: mm.ELBO(mm.Terms([PARTS])),
    "masked": lambda: mm.ELBO(mm.Terms([mm.Term(Bernoulli(), None), REST]), gradient="stl"),
    "iwae": lambda: mm.IWAE(num_particles=2),
    "each": lambda: mm.ELBO(mm.Terms([EVERY])),
    "mixture": lambda: mm.IWAE(mm.Terms([EVERY]), num_particles=2, density="mixture"),
    "mixture dreg": lambda: mm.IWAE(mm.Terms([EVERY]), num_particles=2, density="mixture", gradient="dreg"),
}
MIXED = {"each", "mixture", "mixture dreg"}  # tables of single experts


def pairs() -> Iterator[tuple[str, str]]:
    """Rules with the tables they fit."""
    for rule, table in product(FUSIONS, TABLES):
        if (table in MIXED) == (rule in SINGLE):
            yield rule, table


@dataclass(frozen=True)
class Problem:
    """A story with a guide, and data: row 0 has nothing, rows 1 to 5 every set, the last one with gaps within "a"."""

    story: str
    rule: str

    def vae(self, objective: Any = None) -> mm.MultimodalVAE:
        """Fresh networks, always the same."""
        torch.manual_seed(1)
        rule, own = FUSIONS[self.rule](), {m: encoder(m) for m in DIMS}
        private = {f"z_{m}": m for m in DIMS} if self.story == "private" else {}
        model = mm.observe(STORIES[self.story](), tuple(DIMS), private=private or None)
        sites: dict[str, Any] = {"z": {} if rule.modalities is not None else own}
        sites |= {site: {m: encoder(m, 2)} for site, m in private.items()}
        rules: dict[str, fusion.Fusion] = {"z": rule, **{site: fusion.Single() for site in private}}
        if self.story == "levels":
            sites["t"], rules["t"] = {m: encoder(m, 2) for m in DIMS}, fusion.Product()
        guide = mm.guides.Fused(model, sites, fusion=rules)
        return mm.MultimodalVAE(model, guide, mm.ELBO() if objective is None else objective)

    def masks(self) -> dict[str, Tensor]:
        """Of features for "a", of rows for "b"."""
        per_feature = SEEN["a"].unsqueeze(-1).repeat(1, DIMS["a"])
        per_feature[-1, 1:3] = False
        return {"a": per_feature, "b": SEEN["b"]}

    def data(self, content: float = 0.0) -> dict[str, Tensor]:
        """Random values, and one content wherever something is masked."""
        generator = torch.Generator().manual_seed(2)
        made = {m: torch.randn(ROWS, size, generator=generator) for m, size in DIMS.items()}
        if self.story == "counts":
            made["b"] = torch.poisson(made["b"].exp(), generator=generator)
        seen = {m: a if a.dim() == 2 else a.unsqueeze(-1) for m, a in self.masks().items()}
        made = {m: torch.where(seen[m], x, content) for m, x in made.items()}
        return {**made, "depth": torch.linspace(0.5, 2.0, ROWS)} if self.story == "counts" else made


STORY = pytest.mark.parametrize("story", STORIES)
RULE = pytest.mark.parametrize("rule", FUSIONS)
PAIR = pytest.mark.parametrize(("rule", "table"), list(pairs()))


def terms_and_gradients(
    vae: mm.MultimodalVAE, data: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective per sample and the gradient of its sum, at one random state."""
    torch.manual_seed(3)
    each = vae.objective.per_sample(vae.model, vae.guide, data, masks)
    return each.detach(), gradients(vae, each.sum())


@STORY
@PAIR
def test_terms(rule: str, table: str, story: str) -> None:
    """Finite, blind to what is masked, nothing for nothing; a step moves every parameter."""
    p = Problem(story, rule)
    vae, masks = p.vae(TABLES[table]()), p.masks()
    each, found = terms_and_gradients(vae, p.data(float("nan")), masks)
    assert each[0] == 0
    assert each.isfinite().all()
    assert (each[1:] != 0).all()
    assert all(g.isfinite().all() for g in found.values())
    other, same = terms_and_gradients(vae, p.data(1e30), masks)
    assert torch.equal(other, each)
    assert all(torch.equal(same[name], g) for name, g in found.items())
    none, zero = terms_and_gradients(vae, *({m: x[:1] for m, x in d.items()} for d in (p.data(), masks)))
    assert none == 0
    assert all((g == 0).all() for g in zero.values())

    before = {name: w.detach().clone() for name, w in vae.named_parameters()}
    vae.objective.differentiable_loss(vae.model, vae.guide, p.data(), masks).backward()
    torch.optim.Adam(vae.parameters(), lr=1e-3).step()
    assert [name for name, w in vae.named_parameters() if torch.equal(w, before[name])] == []


@STORY
@RULE
def test_verbs(rule: str, story: str) -> None:
    p = Problem(story, rule)
    vae, data, masks = p.vae(), p.data(float("nan")), p.masks()
    q = vae.posterior(data, masks, latents="z")
    z = q.sample((5,))
    assert z.shape == (5, ROWS, LATENT)
    assert q.log_prob(z).shape == (5, ROWS)
    assert q.log_prob(z).isfinite().all()
    own = {"shared": prior(), "private": prior()}.get(story, lambda: dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
    if story != "levels":  # nothing observed: the story's prior
        torch.testing.assert_close(q.log_prob(z)[:, 0], own().log_prob(z[:, 0]))
    full = vae.impute(data, masks, num_samples=2)
    for m in DIMS:
        seen = masks[m] if masks[m].dim() == 2 else masks[m].unsqueeze(-1).expand(-1, DIMS[m])
        assert full[m].isfinite().all()
        assert torch.equal(full[m][:, seen], data[m][seen].expand(2, -1))
        assert (full[m][0] != full[m][1])[~seen].any()
    found = vae.log_likelihood(data, masks, num_particles=8)
    assert found[0] == 0
    assert found.isfinite().all()
    given = vae.log_likelihood(data, masks, target={"b"}, given={"a"}, num_particles=8)
    assert given.isfinite().all()


@pytest.mark.parametrize("lead", [(3,), (3, 1)], ids=["draws", "draws and terms"])
@pytest.mark.parametrize("single", [False, True], ids=["posterior", "component"])
@RULE
def test_a_prior_of_every_draw_of_its_parents(
    rule: str, single: bool, lead: tuple[int, ...]
) -> None:
    """Three draws and three subsets: a dimension taken for the other does not show by its size."""
    p = Problem("shared", rule)
    guide = p.vae().guide
    batch, masks = guide.observed.prepare(p.data(), p.masks(), None)
    experts, own = guide.encode(batch, masks)["z"], guide.fusion["z"]
    mask = torch.stack([SEEN[m] for m in DIMS])
    ask = own.component if single else own
    loc = torch.randn(*lead, ROWS, LATENT)
    together = ask(dist.Normal(loc, 0.7).to_event(1), experts, mask)
    value = torch.randn(*lead, ROWS, LATENT)
    found = together.log_prob(value)
    assert found.shape == (*lead, ROWS)
    for k in range(3):
        alone = ask(dist.Normal(loc[k].reshape(ROWS, LATENT), 0.7).to_event(1), experts, mask)
        wanted = alone.log_prob(value[k].reshape(ROWS, LATENT))
        torch.testing.assert_close(found[k].reshape(ROWS), wanted, rtol=1e-5, atol=1e-5)
