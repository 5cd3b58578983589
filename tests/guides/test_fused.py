"""Guides that re-run the story and fuse experts with each site's own prior."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.guides import components
from tests.oracles.products import product_of_experts

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

B, L, D = 5, 2, 3
NAMES = ("a", "b")
SEEN = {"a": torch.tensor([1, 1, 0, 0, 1]).bool(), "b": torch.tensor([1, 0, 1, 0, 0]).bool()}


class Expert(nn.Module):
    """A linear expert that remembers which rows it saw, and whether it got the mask."""

    def __init__(self, latent: int = L, size: int = D) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(size, latent), nn.Parameter(0.3 + torch.rand(latent))
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Any:
        self.rows.append(len(x))
        loc = self.linear(x)
        return dist.Normal(loc, self.scale.expand(loc.shape)).to_event(1)


PRIORS: dict[str, Any] = {
    "normal": lambda: dist.Normal(torch.tensor([0.4, -1.0]), torch.tensor([1.5, 0.6])).to_event(1),
    "laplace": lambda: dist.Laplace(torch.tensor([0.4, -1.0]), torch.tensor([1.5, 0.6])).to_event(1),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])),
        dist.Normal(torch.tensor([[2.0, 1.0], [-1.0, 0.0]]), 0.5).to_event(1),
    ),
}


def story_of(prior: Any, calls: list[int]) -> Any:
    def decode(z: Tensor) -> Any:
        calls.append(len(z))
        return dist.Normal(z.sum(-1, keepdim=True) * torch.ones(D), 1.0).to_event(1)

    def story() -> None:
        z = pyro.sample("z", prior())
        for m in NAMES:
            real = dist.constraints.independent(dist.constraints.real, 1)
            pyro.sample(m, mm.distributions.Lazy(decode, z, event_shape=(D,), support=real))

    return story


def batch() -> dict[str, Tensor]:
    return {m: torch.where(seen.unsqueeze(-1), torch.randn(B, D), torch.nan) for m, seen in SEEN.items()}


def own(experts: dict[str, Expert], data: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    filled = {m: torch.where(seen.unsqueeze(-1), data[m], 0.0) for m, seen in SEEN.items()}
    return {m: (q.mean.detach(), q.stddev.detach()) for m, q in ((m, experts[m](filled[m])) for m in NAMES)}


@pytest.mark.parametrize("name", PRIORS)
def test_product_with_any_prior(name: str) -> None:
    prior, calls, experts, data = PRIORS[name], [], {m: Expert() for m in NAMES}, batch()
    model = mm.observe(story_of(prior, calls), NAMES)
    guide = mm.guides.Product(model, experts)
    q = poutine.trace(guide).get_trace(data, SEEN).nodes["z"]["fn"]
    assert calls == []  # likelihoods are not run
    p = prior()
    moments = (p.mean.expand(L), p.variance.sqrt().expand(L))
    loc, scale = product_of_experts(own(experts, data), SEEN, moments)
    z = torch.randn(B, L)
    expected = dist.Normal(loc, scale).to_event(1).log_prob(z)
    nothing = ~(SEEN["a"] | SEEN["b"])
    torch.testing.assert_close(q.log_prob(z), torch.where(nothing, p.log_prob(z), expected))


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
@pytest.mark.parametrize("name", PRIORS)
def test_rows_with_nothing_observed_cost_nothing(name: str, elbo: Any) -> None:
    model = mm.observe(story_of(PRIORS[name], []), NAMES)
    guide = mm.guides.Product(model, {m: Expert() for m in NAMES})
    none = {m: torch.zeros(B).bool() for m in NAMES}
    assert abs(elbo.loss(model, guide, batch(), none)) < 1e-12
    assert (mm.ELBO(num_particles=2).per_sample(model, guide, batch(), none) == 0).all()


def test_masks_with_terms_equal_the_loop() -> None:
    model, data = mm.observe(story_of(PRIORS["laplace"], []), NAMES), batch()
    guide = mm.guides.Product(model, {m: Expert() for m in NAMES})
    prepared, inside = model.prepare(data, SEEN)
    sources = torch.rand(4, B, 2) < 0.6
    rows = {m: sources[..., i] & SEEN[m] for i, m in enumerate(NAMES)}
    wide = mm.masks.ObsMask.of_rows(rows, inside.event_dims)
    experts = guide.encode(prepared, inside)
    with pyro.plate("terms", 4, dim=-2), poutine.trace() as t:
        guide(prepared, wide, experts=experts)
    z = torch.randn(B, L)
    for j in range(4):
        single = poutine.trace(guide).get_trace(data, {m: r[j] for m, r in rows.items()}).nodes["z"]["fn"]
        torch.testing.assert_close(t.trace.nodes["z"]["fn"].log_prob(z)[j], single.log_prob(z))


def test_an_encoder_shared_by_sites_runs_once() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            return dist.Normal(x[:, :L], 1.0).to_event(1)

    def story() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
        pyro.sample("w", dist.Normal(z, 1.0).to_event(1))
        for m in NAMES:
            pyro.sample(m, dist.Normal(torch.zeros(D), 1.0).to_event(1))

    shared = Both()
    model = mm.observe(story, NAMES)
    guide = mm.guides.Product(model, {"z": {"a": shared}, "w": {"a": shared}})
    guide(batch(), SEEN)
    assert shared.calls == 1


class Masked(nn.Module):
    """An encoder that asks for the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        self.masks.append(mask)
        return dist.Normal((x * mask).sum(-1, keepdim=True).expand(len(x), L), 1.0).to_event(1)


def test_encoders_may_take_the_mask() -> None:
    encoder, features = Masked(), torch.rand(B, D) < 0.5
    model = mm.observe(story_of(PRIORS["normal"], []), NAMES)
    guide = mm.guides.Product(model, {"a": encoder})
    guide({"a": torch.where(features, 1.0, torch.nan)}, {"a": features})
    (mask,) = encoder.masks
    assert torch.equal(mask, features if len(mask) == B else features[features.any(-1)])


def test_mixtures_give_single_components_when_asked() -> None:
    model, experts, data = mm.observe(story_of(PRIORS["normal"], []), NAMES), {m: Expert() for m in NAMES}, batch()
    guide = mm.guides.Fused(model, experts, fusion=mm.fusion.Mixture())
    whole = poutine.trace(guide).get_trace(data, SEEN).nodes["z"]["fn"]
    only = {"a": SEEN["a"], "b": torch.zeros(B).bool()}
    with components():
        one = poutine.trace(guide).get_trace(data, only).nodes["z"]["fn"]
    z = torch.randn(B, L)
    parts = {m: dist.Normal(*q).to_event(1).log_prob(z) for m, q in own(experts, data).items()}
    torch.testing.assert_close(one.log_prob(z)[SEEN["a"]], parts["a"][SEEN["a"]])
    both = torch.logaddexp(parts["a"], parts["b"])[0] - math.log(2)
    torch.testing.assert_close(whole.log_prob(z)[0], both)


def test_factors_of_the_story_stay_with_the_model() -> None:
    """A factor before the last latent is met by the guide, but belongs to the model: it must not cancel."""

    def story() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
        pyro.factor("soft", torch.tensor(-3.0).expand(z.shape[:-1]))
        pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(z.sum(-1, keepdim=True) * torch.ones(D), 1.0).to_event(1))

    model = mm.observe(story, ("a",))
    guide = mm.guides.Product(model, {"z": {"a": Expert()}})
    none = {"a": torch.zeros(B).bool()}
    assert abs(Trace_ELBO().loss(model, guide, {"a": torch.zeros(B, D)}, none) - 3 * B) < 1e-10


def test_latents_of_other_shapes() -> None:
    def story() -> None:
        s = pyro.sample("s", dist.Normal(0.0, 2.0))
        m = pyro.sample("m", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        pyro.sample("a", dist.Normal(s.unsqueeze(-1) + m.sum((-1, -2)).unsqueeze(-1) * torch.ones(D), 1.0).to_event(1))

    model = mm.observe(story, ("a",))
    guide = mm.guides.Product(model, {"s": {"a": Expert(1)}, "m": {"a": Expert(6)}})
    trace = poutine.trace(guide).get_trace({"a": torch.randn(B, D)})
    assert trace.nodes["s"]["value"].shape == (B,) and trace.nodes["m"]["value"].shape == (B, 2, 3)
    expert = guide.encoders["m"]["a"](torch.zeros(B, D))
    q = poutine.trace(guide).get_trace({"a": torch.zeros(B, D)}).nodes["m"]["fn"]
    tau = 1 + expert.stddev**-2
    torch.testing.assert_close(q.mean, (expert.mean * expert.stddev**-2 / tau).reshape(B, 2, 3))


def test_a_story_in_place_of_a_model() -> None:
    story = story_of(PRIORS["normal"], [])
    guide = mm.guides.Product(story, {m: Expert() for m in NAMES})
    assert guide.observed.modalities == NAMES
    assert poutine.trace(guide).get_trace(batch(), SEEN).nodes["z"]["value"].shape == (B, L)
    assert not [name for name, _ in guide.named_parameters() if "encoders" not in name]


def two_latents() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
    pyro.sample("w", dist.Normal(torch.zeros(L), 1.0).to_event(1))
    for m in NAMES:
        pyro.sample(m, dist.Normal(z.sum(-1, keepdim=True) * torch.ones(D), 1.0).to_event(1))


def with_covariate(age: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
    pyro.sample("a", dist.Normal(z.sum(-1, keepdim=True) * torch.ones(D), 1.0).to_event(1))


AT_Z = {"z": {"a": Expert()}}
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no encoders": (two_latents, {}, "encoders: expected a non-empty mapping"),
    "unknown modality": (two_latents, {"z": {"text": Expert()}}, r"unknown modalities \['text'\]; .* \['a', 'b'\]"),
    "unknown site": (two_latents, {"q": {"a": Expert()}}, r"unknown latent sites \['q'\]; .* are \['z', 'w'\]"),
    "no site named": (two_latents, {"a": Expert()}, r"2 shared latents, \['z', 'w'\]\. Fix: name them"),
    "covariates": (with_covariate, {"a": Expert()}, r"takes covariates(.|\n)*Fix: name the site"),
    "private": (two_latents, {**AT_Z, "w": {"a": Expert()}}, r"'w' is private to 'b', but has encoders of \['a'\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    story, encoders, words = REFUSED[name]
    modalities = NAMES if story is two_latents else ("a",)
    model = mm.observe(story, modalities, private={"w": "b"} if name == "private" else None)
    with pytest.raises(ValueError, match=words):
        mm.guides.Product(model, encoders)


class Returns(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor) -> Any:
        return self.result


WRONG = r"encoder of 'a': expected batch shape \(5,\)(.|\n)*\.to_event\(1\)"
RESULTS = {
    "tensor": (torch.zeros(B, L), TypeError, r"encoder of 'a': expected a Distribution over z, got Tensor\. Fix"),
    "no event": (dist.Normal(torch.zeros(B, L), 1.0), ValueError, WRONG),
    "rows": (dist.Normal(torch.zeros(2, L), 1.0).to_event(1), ValueError, WRONG),
    "size": (dist.Normal(torch.zeros(B, 7), 1.0).to_event(1), ValueError, r"'z': its size is 2(.|\n)*latent_dim=2"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_what_encoders_return(name: str) -> None:
    result, kind, words = RESULTS[name]
    model = mm.observe(story_of(PRIORS["normal"], []), NAMES)
    guide = mm.guides.Product(model, {"a": Returns(result)})
    with pytest.raises(kind, match=words):
        guide({"a": torch.zeros(B, D)})
