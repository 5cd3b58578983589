"""Pooled: the laws of fusion, latents of any prior, shape and support, and guides without encoders per modality.

Test layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae import fusion
from pyro_mmvae.fusion import Experts, posterior_at
from pyro_mmvae.masks import Data, ObsMask
from pyro_mmvae.nn import AttentionEncoder, JointEncoder, SumPoolingEncoder
from pyro_mmvae.objectives import Complement, Observed, Random, Term, Terms, known_kl
from pyro_mmvae.training.traced import TracedLoss
from tests.fusion.rules import case_of, mask_of, parameters, prior_of

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # small networks in float64
SHAPES = {"a": 2, "b": 3, "c": 1}
SMALL: dict[str, Any] = {"hidden": (8,), "features": (6,)}
MAKE: dict[str, Any] = {
    "sum": lambda **o: SumPoolingEncoder(SHAPES, **({"latent_dim": 2} | SMALL | o)),
    "attention": lambda **o: AttentionEncoder(SHAPES, **({"latent_dim": 2, "num_heads": 2} | SMALL | o)),
    "joint": lambda **o: JointEncoder(SHAPES, **({"latent_dim": 2} | SMALL | o)),
    "mixture": lambda **o: AttentionEncoder(
        SHAPES, **({"latent_dim": 2, "num_heads": 2, "num_components": 3} | SMALL | o)
    ),
}
KINDS = pytest.mark.parametrize("kind", MAKE)
SETS = pytest.mark.parametrize("kind", ["sum", "attention", "mixture"])


def filled(data: dict[str, Tensor]) -> dict[str, Tensor]:
    return {m: x.where(~x.isnan(), torch.zeros(())) for m, x in data.items()}


def experts_for(rule: fusion.Pooled, order: tuple[str, ...] = ("a", "b", "c")) -> Experts:
    """No experts; the features of the case's data."""
    return Experts(order, (), rule.encoder.features(filled(case_of().data)))


def moments(q: Any) -> tuple[Tensor, Tensor]:
    return q.mean, q.variance


@KINDS
def test_the_encoder_answers_where_something_is_observed_and_the_prior_elsewhere(kind: str) -> None:
    case, rule = case_of(), fusion.Pooled(MAKE[kind]())
    for prior in (prior_of(case), dist.Laplace(*case.model.prior).to_event(1)):
        q = rule(prior, experts_for(rule), mask_of(case))
        head = rule.encoder.head(rule.encoder.features(filled(case.data)), mask_of(case).t())
        assert q.batch_shape == (8,)
        z = torch.randn(8, 2)
        score = q.log_prob(z)
        assert case.sets[0] == ()
        torch.testing.assert_close(score[0], prior.log_prob(z[0]), rtol=1e-15, atol=0)
        torch.testing.assert_close(score[1:], head.log_prob(z)[1:], **EXACT)


@KINDS
def test_gaussians_give_a_gaussian(kind: str) -> None:
    case, rule = case_of(), fusion.Pooled(MAKE[kind]())
    q = rule(prior_of(case), experts_for(rule), mask_of(case))
    alone = mask_of(case) & torch.tensor([True, False, False]).unsqueeze(-1)
    r = rule(prior_of(case), experts_for(rule), alone)
    found = known_kl(q, r)
    if kind == "mixture":
        assert found is None
        return
    (loc, scale), (other, width) = parameters(q), parameters(r)
    assert loc[0].equal(case.model.prior[0])
    assert scale[0].equal(case.model.prior[1])
    expected = ((width / scale).log() + (scale**2 + (loc - other) ** 2) / (2 * width**2) - 0.5).sum(-1)
    assert found is not None
    torch.testing.assert_close(found, expected, **EXACT)


@KINDS
def test_masks_may_come_in_another_order_than_the_encoder_s(kind: str) -> None:
    case, rule, order = case_of(), fusion.Pooled(MAKE[kind]()), ("c", "a", "b")
    straight = moments(rule(prior_of(case), experts_for(rule), mask_of(case)))
    turned = moments(rule(prior_of(case), experts_for(rule, order), mask_of(case, order)))
    for a, b in zip(straight, turned, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@KINDS
def test_leading_dimensions_of_masks_equal_a_loop(kind: str) -> None:
    case, rule = case_of(), fusion.Pooled(MAKE[kind]())
    masks = (torch.rand(3, 4, 1, 8) < 0.7) & mask_of(case)[:, None, None]
    together = moments(rule(prior_of(case), experts_for(rule), masks))
    assert together[0].shape == (4, 1, 8, 2)
    for j in range(4):
        for a, b in zip(together, moments(rule(prior_of(case), experts_for(rule), masks[:, j, 0])), strict=True):
            torch.testing.assert_close(a[j, 0], b, **EXACT)


@pytest.mark.parametrize("kind", ["sum", "mixture"])
def test_latents_of_other_supports_and_shapes(kind: str) -> None:
    case, mask = case_of(), mask_of(case_of())
    rule = fusion.Pooled(MAKE[kind]())
    for prior in (dist.Dirichlet(torch.ones(3)), dist.Gamma(torch.ones(2), 1.0).to_event(1)):
        q = posterior_at(rule, prior, experts_for(rule), mask)
        z = q.sample()
        assert prior.support.check(z).all()
        torch.testing.assert_close(q.log_prob(z)[0], prior.log_prob(z[0]), **EXACT)
        assert not torch.allclose(q.log_prob(z)[1:], prior.log_prob(z)[1:])
    matrix = dist.Normal(torch.zeros(2, 2), 1.0).to_event(2)
    rule = fusion.Pooled(MAKE[kind](latent_dim=4))
    if kind == "mixture":
        with pytest.raises(NotImplementedError, match="latents that are no vectors"):
            posterior_at(rule, matrix, experts_for(rule), mask)
        return
    assert posterior_at(rule, matrix, experts_for(rule), mask).sample().shape == (len(case.sets), 2, 2)


def test_errors() -> None:
    case = case_of()
    for size in (1, 3):
        rule = fusion.Pooled(MAKE["sum"](latent_dim=size))
        with pytest.raises(ValueError, match=rf"event shape \(2,\), .* \({size},\). Fix: latent_dim=2"):
            posterior_at(rule, prior_of(case), experts_for(rule), mask_of(case))
    with pytest.raises(TypeError, match=r"got Identity, which lacks \['modalities', 'features', 'head'\]"):
        fusion.Pooled(nn.Identity())


# Guides


class Guide(mm.guides.Fused):
    """A guide whose sites may have no encoders: the rule says which modalities it listens to."""

    def encode(self, data: Data, obs_mask: ObsMask) -> dict[str, Experts]:
        found = super().encode(data, obs_mask)
        return {
            site: own if own.names else Experts(self.fusion[site].modalities, (), own.features)
            for site, own in found.items()
        }


def story() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.5).to_event(1))
    for m, size in SHAPES.items():
        pyro.sample(m, dist.Normal(z.sum(-1, keepdim=True) * torch.ones(size), 1.0).to_event(1))


def pair(kind: str, **options: Any) -> tuple[Any, Guide]:
    model = mm.observe(story, tuple(SHAPES))
    return model, Guide(model, {"z": {}}, fusion={"z": fusion.Pooled(MAKE[kind](**options))})


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    case = case_of()
    return case.data, case.obs_mask


def posterior(guide: Guide, data: dict[str, Tensor], obs_mask: dict[str, Tensor]) -> Any:
    return poutine.trace(guide).get_trace(data, obs_mask).nodes["z"]["fn"]


@pytest.mark.param_store
@SETS
def test_a_guide_of_the_encoder_alone(kind: str) -> None:
    _, guide = pair(kind)
    data, obs_mask = batch()
    q = posterior(guide, data, obs_mask)
    encoder = guide.fusion["z"].encoder
    head = encoder(filled(data), torch.stack(list(obs_mask.values()), -1))
    for a, b in zip(moments(q), moments(head), strict=True):
        torch.testing.assert_close(a[1:], b[1:], **EXACT)
    torch.testing.assert_close(q.variance[0], torch.full((2,), 2.25), **EXACT)
    assert {name.split(".")[0] for name, _ in guide.named_parameters()} == {"fusion"}


@pytest.mark.param_store
@SETS
def test_hidden_content_and_other_rows_never_matter(kind: str) -> None:
    _, guide = pair(kind)
    data, obs_mask = batch()
    base = moments(posterior(guide, data, obs_mask))
    other = {m: torch.where(obs_mask[m].unsqueeze(-1), x, 1e30) for m, x in data.items()}
    for a, b in zip(base, moments(posterior(guide, other, obs_mask)), strict=True):
        assert torch.equal(a, b)
    for n in range(8):
        alone = ({m: x[n : n + 1] for m, x in own.items()} for own in (data, obs_mask))
        for a, b in zip(base, moments(posterior(guide, *alone)), strict=True):
            torch.testing.assert_close(a[n : n + 1], b, **EXACT)


def masked_bound() -> Terms:
    """A random part of what is observed, then the rest given everything."""
    source = Random(1, min_size=1)
    return Terms([Term(source, source), Term(Observed(), Complement(source), prior=source)])


@pytest.mark.param_store
@SETS
def test_objectives_train_it(kind: str) -> None:
    model, guide = pair(kind)
    data, obs_mask = batch()
    for objective in (mm.ELBO(), mm.ELBO(masked_bound()), mm.IWAE(num_particles=3), Trace_ELBO()):
        guide.zero_grad()
        objective.differentiable_loss(model, guide, data, obs_mask).backward()
        gradients = [p.grad for p in guide.parameters()]
        assert all(g is not None and g.isfinite().all() and (g != 0).any() for g in gradients)
    if kind != "mixture":
        TraceMeanField_ELBO().differentiable_loss(model, guide, data, obs_mask).backward()


@pytest.mark.param_store
@SETS
def test_rows_that_observe_nothing_cost_nothing_and_give_no_gradient(kind: str) -> None:
    model, guide = pair(kind)
    data, nothing = batch()[0], {m: torch.zeros(8, dtype=torch.bool) for m in SHAPES}
    loss = mm.ELBO().differentiable_loss(model, guide, data, nothing)
    assert loss == 0
    loss.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in guide.parameters())


@pytest.mark.param_store
@SETS
def test_features_are_computed_once_per_step(kind: str) -> None:
    model, guide = pair(kind)
    seen: list[int] = []
    guide.fusion["z"].encoder.networks["b"].register_forward_hook(lambda *args: seen.append(len(args[1][0])))
    mm.ELBO(masked_bound()).differentiable_loss(model, guide, *batch())
    assert seen == [8]


@pytest.mark.param_store
def test_masks_of_features_reach_the_networks() -> None:
    _, guide = pair("sum", mask=True)
    data, obs_mask = filled(batch()[0]), {"b": torch.rand(8, 3) < 0.5}
    q = posterior(guide, data, obs_mask)
    encoder = guide.fusion["z"].encoder
    features = encoder.features({**data, "b": torch.where(obs_mask["b"], data["b"], 0.0)}, obs_mask)
    shown = torch.stack([torch.ones(8).bool(), obs_mask["b"].any(-1), torch.ones(8).bool()], -1)
    torch.testing.assert_close(q.mean, encoder.head(features, shown).mean, **EXACT)


@pytest.mark.param_store
def test_beside_private_latents_with_encoders() -> None:
    def own_story() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        w = pyro.sample("z_a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("a", dist.Normal(z + w, 1.0).to_event(1))
        pyro.sample("b", dist.Normal(torch.cat([z, z[..., :1]], -1), 1.0).to_event(1))

    model = mm.observe(own_story, ("a", "b"), private={"z_a": "a"})
    shared = fusion.Pooled(SumPoolingEncoder({"b": 3, "a": 2}, 2, **SMALL))
    rules = {"z": shared, "z_a": fusion.Single()}
    guide = Guide(model, {"z": {}, "z_a": {"a": mm.nn.MLPEncoder(2, 2, hidden=(4,))}}, fusion=rules)
    data, obs_mask = ({m: x[m] for m in ("a", "b")} for x in batch())
    mm.ELBO(num_particles=2).differentiable_loss(model, guide, data, obs_mask).backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in guide.parameters())
    drawn = Predictive(model, guide=guide, num_samples=3)(data, obs_mask)
    assert drawn["a"].shape == (3, 8, 2)


@SETS
def test_a_recorded_step_is_the_step(kind: str) -> None:
    model, guide = pair(kind)
    vae = mm.MultimodalVAE(model, guide, objective=mm.ELBO())
    data, obs_mask, *_ = model.prepare(*batch(), None)
    traced = TracedLoss(vae)
    found = []
    for loss in (traced, traced, lambda *args: vae.objective.differentiable_loss(model, guide, *args)):
        pyro.set_rng_seed(3)
        vae.zero_grad()
        value = loss(data, obs_mask)
        if value.requires_grad:
            value.backward()
        found.append([value.detach(), *(p.grad.clone() for p in vae.parameters() if p.grad is not None)])
    assert len(traced.graphs) == 1
    for a, b, c in zip(*found, strict=True):
        torch.testing.assert_close(a, c, **EXACT)
        torch.testing.assert_close(b, c, **EXACT)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, guide = pair("mixture")
    vae = mm.MultimodalVAE(model, guide, objective=mm.ELBO())
    assert vae.config["guide"]["fusion"] == {"z": ["Pooled", {"encoder": "AttentionEncoder"}]}
    vae.save(tmp_path / "model")
    other, fresh = pair("mixture")
    again = mm.load(tmp_path / "model", story=other, guide=fresh)
    assert torch.equal(again.posterior(*batch()).mean, vae.posterior(*batch()).mean)


def test_the_methods_of_a_model_work_without_experts() -> None:
    model, guide = pair("mixture")
    vae = mm.MultimodalVAE(model, guide, objective=mm.ELBO())
    data, obs_mask = batch()
    assert vae.posterior(data, obs_mask).mean.shape == (8, 2)
    assert vae.log_likelihood(data, obs_mask, num_particles=5).isfinite().all()
    assert vae.impute(data, obs_mask, num_samples=2)["b"].shape == (2, 8, 3)
