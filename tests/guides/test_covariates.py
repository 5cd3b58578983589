"""Guides whose encoders read covariates: exact where the networks are, row by row, on the rows that are observed."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.guides.encode import encode_rows
from pyro_mmvae.handlers.observe import dense_rows
from pyro_mmvae.nn.covariates import covariates_of
from tests.oracles import covariates as oracle

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

B = 12
NETWORKS: dict[str, Any] = {
    "library": lambda: (oracle.encoders(), oracle.decoders()),
    "by_name": lambda: (
        {m: oracle.NamedEncoder(m) for m in oracle.NAMES},
        {m: oracle.NamedDecoder(m) for m in oracle.NAMES},
    ),
}


def pair(networks: str) -> tuple[Any, Any]:
    encoders, decoders = NETWORKS[networks]()
    model = mm.observe(mm.stories.Shared(decoders, mm.stories.NormalPrior(oracle.L)), oracle.NAMES)
    return model, mm.guides.Product(model, {"z": encoders})


@pytest.mark.parametrize("networks", NETWORKS)
def test_posterior_and_evidence_are_the_closed_form_on_every_mask(networks: str) -> None:
    """Encoders, decoders and fusion are exact: no draw changes log p(x, z) - log q(z), so all estimates are exact."""
    (model, guide), (data, mask) = pair(networks), oracle.draw(B)
    clean = oracle.without_effects(data)
    evidence, (loc, cov) = oracle.truth().log_evidence(clean, mask), oracle.truth().posterior(clean, mask)
    q = mm.inference.posterior(model, guide, data, mask)
    torch.testing.assert_close(q.mean, loc)
    torch.testing.assert_close(q.variance, cov.diagonal(dim1=-2, dim2=-1))
    for objective in (mm.ELBO(num_particles=2, kl="sampled"), mm.IWAE(num_particles=3)):
        torch.testing.assert_close(objective.per_sample(model, guide, data, mask), evidence)
    assert Trace_ELBO().loss(model, guide, data, mask) == pytest.approx(-float(evidence.sum()))
    torch.testing.assert_close(mm.inference.log_likelihood(model, guide, data, mask, num_particles=5), evidence)


@pytest.mark.parametrize("networks", NETWORKS)
def test_a_shift_that_the_context_explains_leaves_the_posterior(networks: str) -> None:
    """The same samples measured at another site, at another age: other data, the same z."""
    (model, guide), (data, mask) = pair(networks), oracle.draw(B)
    moved = {"age": data["age"] + 7.0, "site": (data["site"] + 1) % oracle.SITES}
    clean = oracle.without_effects(data)
    moved |= {m: clean[m] + oracle.shift(m, moved) for m in oracle.NAMES}
    before, after = (mm.inference.posterior(model, guide, d, mask) for d in (data, moved))
    torch.testing.assert_close(after.mean, before.mean)
    torch.testing.assert_close(after.variance, before.variance)
    blamed = mm.inference.posterior(model, guide, moved | {"site": data["site"], "age": data["age"]}, mask)
    assert (blamed.mean - before.mean).abs()[mask["a"] | mask["b"]].max(-1).values.min() > 0.1  # the site did matter


@pytest.mark.parametrize("networks", NETWORKS)
def test_rows_are_permuted_with_their_covariates(networks: str) -> None:
    (model, guide), (data, mask) = pair(networks), oracle.draw(B)
    order = torch.randperm(B)
    mixed = {k: x[order] for k, x in data.items()}, {m: x[order] for m, x in mask.items()}
    q, p = mm.inference.posterior(model, guide, data, mask), mm.inference.posterior(model, guide, *mixed)
    torch.testing.assert_close(p.mean, q.mean[order])
    score = mm.ELBO(kl="sampled").per_sample(model, guide, data, mask)  # exact, whatever the draws
    torch.testing.assert_close(mm.ELBO(kl="sampled").per_sample(model, guide, *mixed), score[order])


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("particles", [1, 3])
def test_gathered_rows_equal_all_rows(networks: str, particles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under terms and particles, z of shape (K, J, B, L) and covariates of shape (B,); gradients too."""
    (model, guide), (data, mask) = pair(networks), oracle.draw(B)
    for module in (model, guide):
        for p in module.parameters():
            p.data += 0.1 * torch.randn_like(p)  # nothing is exact: what a row gets matters
    terms = mm.Terms([mm.objectives.Term(s, None) for s in (mm.objectives.Observed(), mm.objectives.Each())])
    elbo = mm.ELBO(terms, num_particles=particles)

    def run() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(0)
        value = elbo.per_sample(model, guide, data, mask)
        leaves = [p for p in (*model.parameters(), *guide.parameters()) if p.requires_grad]
        return value.detach(), [g for g in torch.autograd.grad(value.sum(), leaves, allow_unused=True) if g is not None]

    with dense_rows():
        dense = run()
    for module in ("handlers.observe", "guides.encode"):
        monkeypatch.setattr(importlib.import_module(f"pyro_mmvae.{module}"), "GATHER_WORK", 0)
    torch.testing.assert_close(run(), dense)


def test_encoders_see_the_covariates_of_the_observed_rows() -> None:
    encoder, (data, mask) = oracle.NamedEncoder("a"), oracle.draw(B)
    given = {name: data[name] for name in ("age", "site")}
    x = torch.where(mask["a"].unsqueeze(-1), data["a"], 0.0)
    seen = mask["a"].unsqueeze(-1)
    q = encode_rows(encoder, "a", x, seen, mask["a"], given, with_mask=True)
    assert encoder.rows == [int(mask["a"].sum())]
    expected = encoder(x, given["age"], seen.expand_as(x), given["site"])
    torch.testing.assert_close(q.mean[mask["a"]], expected.mean[mask["a"]])
    none = torch.zeros(B, dtype=torch.bool)
    assert encode_rows(encoder, "a", x, none.unsqueeze(-1), none, given, with_mask=True).batch_shape == (B,)


def test_an_encoder_may_read_what_the_story_does_not_take() -> None:
    """The story is blind to the site; the encoder is given it, the story is not."""

    class Story(nn.Module):
        def forward(self) -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1))

    class Encoder(nn.Module):
        def forward(self, x: Tensor, dose: Tensor, batch: Tensor | None = None) -> Any:
            return dist.Normal(x + dose, 1.0).to_event(1)  # a dose is a vector, (B, 1)

    model = mm.observe(Story(), ("x",))
    guide = mm.guides.Product(model, {"x": Encoder()}, prior_expert="never")
    x, dose = torch.randn(4, 1), torch.randn(4, 1)
    q = mm.inference.posterior(model, guide, {"x": x, "dose": dose})
    torch.testing.assert_close(q.mean, x + dose)
    assert model.covariates == () and mm.inference.generate(model, guide, 3)["x"].shape == (3, 1)
    with pytest.raises(ValueError, match=r"data\['dose'\] is missing: the encoder of 'x' reads the covariate 'dose'"):
        mm.inference.posterior(model, guide, {"x": x})
    with pytest.raises(ValueError, match=r"unknown keys.*'sex'"):
        mm.inference.posterior(model, guide, {"x": x, "dose": dose, "sex": dose})
    with pytest.raises(ValueError, match="covariate 'dose' has NaN"):
        mm.inference.posterior(model, guide, {"x": x, "dose": dose * torch.nan})
    with pytest.raises(ValueError, match="'dose' is a covariate"):
        mm.inference.posterior(model, guide, {"x": x, "dose": dose}, {"dose": torch.ones(4).bool()})


def test_a_covariate_of_an_encoder_is_no_modality() -> None:
    class Encoder(nn.Module):
        def forward(self, x: Tensor, b: Tensor) -> Any:
            return dist.Normal(x, 1.0).to_event(1)

    story = mm.stories.Shared({m: mm.nn.MLPDecoder(2, 2) for m in "ab"}, mm.stories.NormalPrior(2))
    with pytest.raises(ValueError, match=r"\['b'\] are modalities"):
        mm.guides.Product(mm.observe(story, ("a", "b")), {"z": {"a": Encoder()}})


@pytest.mark.parametrize("kind", [mm.nn.SumPoolingEncoder, mm.nn.JointEncoder, mm.nn.AttentionEncoder])
def test_encoders_of_sets_read_covariates_from_the_data(kind: Any) -> None:
    """Own networks by name, default ones by context; each row by its own; missing ones are named."""

    class Features(nn.Module):
        def forward(self, x: Tensor, site: Tensor) -> Tensor:
            return torch.cat([x, x * site.unsqueeze(-1)], -1)

    shapes = {"a": 2, "b": 2}
    encoder = kind(shapes, oracle.L, hidden=(8,), features=(4,), networks={"a": Features()}, context=oracle.CONTEXT)
    assert set(covariates_of(encoder)) == {"age", "site"}
    model = mm.observe(mm.stories.Shared(oracle.decoders(), mm.stories.NormalPrior(oracle.L)), oracle.NAMES)
    guide = mm.guides.Fused(model, {"z": {}}, fusion={"z": mm.fusion.Pooled(encoder)})
    data, mask = oracle.draw(B)
    q, order = mm.inference.posterior(model, guide, data, mask), torch.randperm(B)
    other = mm.inference.posterior(model, guide, *({k: x[order] for k, x in d.items()} for d in (data, mask)))
    torch.testing.assert_close(other.mean, q.mean[order])
    changed = mm.inference.posterior(model, guide, data | {"site": (data["site"] + 1) % 3}, mask)
    assert ((changed.mean - q.mean).abs().max(-1).values > 1e-6).tolist() == (mask["a"] | mask["b"]).tolist()
    with pytest.raises(ValueError, match=r"data\['site'\] is missing"):
        encoder.features({"a": torch.zeros(B, 2), "age": torch.zeros(B)})
    with pytest.raises(ValueError, match="networks of their own"):
        kind(shapes, 2, features=(4,), networks={m: Features() for m in shapes}, context=oracle.CONTEXT)


def flow(rule: Any) -> Any:
    network = pyro.nn.AutoRegressiveNN(oracle.L, [4])
    return mm.fusion.Flow(rule, [dist.transforms.AffineAutoregressive(network)])


RULES: dict[str, Any] = {
    "pooled": mm.fusion.Pooled,
    "flow": lambda encoder: flow(mm.fusion.Pooled(encoder)),
    "joint": mm.fusion.Joint,
    "stratified": lambda encoder: mm.fusion.Stratified(mm.fusion.Joint(encoder)),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_tell_the_covariates_of_their_encoders(name: str) -> None:
    """The story takes none: they reach the rule alone."""
    encoder = mm.nn.JointEncoder({"a": 2, "b": 2}, oracle.L, hidden=(8,), features=(4,), context=oracle.CONTEXT)
    rule = RULES[name](encoder)
    story = mm.stories.Shared({m: mm.nn.MLPDecoder(2, 2) for m in oracle.NAMES}, mm.stories.NormalPrior(2))
    model = mm.observe(story, oracle.NAMES)
    own = {m: mm.nn.MLPEncoder(2, 2) for m in oracle.NAMES}
    guide: Any = mm.guides.Fused(model, {"z": {} if name in ("pooled", "flow") else own}, fusion={"z": rule})
    assert set(rule.covariates) == {"age", "site"} == set(model.door.further)
    data, mask = oracle.draw(B)
    experts = guide.encode(*model.prepare(data, mask))["z"]
    torch.testing.assert_close(experts.features, encoder.features(model.prepare(data, mask)[0]))
    assert mm.fusion.Product().covariates == ()


def test_a_joint_encoder_may_be_all_that_reads_covariates() -> None:
    encoder = mm.nn.JointEncoder({"a": 2, "b": 2}, oracle.L, hidden=(8,), features=(4,), context=oracle.CONTEXT)
    own = {m: mm.nn.MLPEncoder(2, 2) for m in oracle.NAMES}
    jmvae = mm.JMVAE(own, {m: mm.nn.MLPDecoder(2, 2) for m in oracle.NAMES}, latent_dim=2, joint_encoder=encoder)
    data, mask = oracle.draw(B)
    q = copy.deepcopy(jmvae).posterior(data, mask)
    moved = jmvae.posterior(data | {"age": data["age"] + 20}, mask)
    assert ((q.mean - moved.mean).abs().max(-1).values > 0).tolist() == (mask["a"] & mask["b"]).tolist()


def test_a_story_may_declare_its_covariates() -> None:
    """By attribute, in place of the signature; those with a default may be absent."""

    class Program(nn.Module):
        covariates, required_covariates = ("dose", "batch"), ("dose",)

        def forward(self, **given: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + given["dose"] + given.get("batch", torch.zeros(())), 1.0))

    model, dose = mm.observe(Program(), ("x",)), torch.tensor([10.0, 20.0])
    assert model.covariates == ("dose", "batch") and model.story.required == ("dose",)
    for data, expected in (({"dose": dose}, dose), ({"dose": dose, "batch": dose}, 2 * dose)):
        mean = mm.inference.generate(model, None, 2, data=data, noise=False, prior=lambda n: torch.zeros(n))["x"]
        torch.testing.assert_close(mean, expected)
    with pytest.raises(ValueError, match=r"data\['dose'\] is missing: the story takes the covariate 'dose'"):
        model({"x": dose})
    with pytest.raises(TypeError, match="no fixed name"):
        mm.observe(lambda *rows: None, ("x",))


def test_a_decoder_s_argument_with_a_default_may_be_absent() -> None:
    class Decoder(nn.Module):
        def forward(self, z: Tensor, size: Tensor | None = None) -> Any:
            return dist.Normal(z if size is None else z * size.unsqueeze(-1), 1.0).to_event(1)

    story = mm.stories.Shared({"x": Decoder()}, mm.stories.NormalPrior(2))
    model = mm.observe(story, ("x",))
    z = torch.randn(3, 5, 2)
    assert model.covariates == ("size",) and model.story.required == ()
    torch.testing.assert_close(mm.inference.decode(model, z)["x"].mean, z)
    size = torch.arange(5.0)
    torch.testing.assert_close(mm.inference.decode(model, z, data={"size": size})["x"].mean, z * size.unsqueeze(-1))
