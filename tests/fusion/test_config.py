"""Rules remember their options, so that a model to which one was given is rebuilt from its configuration."""

from __future__ import annotations

import pytest
import torch

import pyro_mmvae as mm

RULES = {
    "product": mm.fusion.Product(prior_expert="never"),
    "hoelder": mm.fusion.Hoelder(bc="joint", weights=[1.0, 2.0]),
    "barycenter": mm.fusion.WassersteinBarycenter([0.25, 0.75]),
    "consensus": mm.fusion.ConsensusOfDependentExperts(0.3),
    "mean": mm.fusion.MeanOfParameters(prior_expert=True),
    "generalized product": mm.fusion.GeneralizedProduct(2, 3),
    "stratified": mm.fusion.Stratified(mm.fusion.GeometricMean()),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_model_with_a_rule_of_ones_choice_is_loaded_from_its_folder(rule, tmp_path):
    encoders = {m: mm.nn.MLPEncoder(4, 3, hidden=(8,)) for m in ("a", "b")}
    decoders = {m: mm.nn.MLPDecoder(3, 4, hidden=(8,)) for m in ("a", "b")}
    vae = mm.MVAE(encoders, decoders, latent_dim=3, fusion=rule)
    vae.save(tmp_path / "model")
    again = mm.load(tmp_path / "model")
    assert type(again.guide.fusion["z"]) is type(rule) and again.config == vae.config
    data = {m: torch.randn(5, 4) for m in ("a", "b")}
    q, p = (v.posterior(data, {"a": torch.arange(5) > 1}) for v in (vae, again))
    assert torch.equal(q.mean, p.mean) and torch.equal(q.variance, p.variance)


def test_a_rule_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="expected a rule"):
        mm.fusion.Stratified("product")
