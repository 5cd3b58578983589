"""Options that cannot mean what they say are refused at construction, with a message that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae.io.describe import objective_from, objective_of

NAMES = ("a", "b")


def nets(private: int = 0, family: str = "normal") -> dict[str, Any]:
    own = {m: mm.nn.MLPEncoder(3, private, hidden=(4,), family=family) for m in NAMES} if private else None
    return {
        "encoders": {m: mm.nn.MLPEncoder(3, 2, hidden=(4,), family=family) for m in NAMES},
        "decoders": {m: mm.nn.MLPDecoder(2 + private, 3, hidden=(4,)) for m in NAMES},
        "latent_dim": 2,
    } | ({"private_encoders": own, "private_dims": dict.fromkeys(NAMES, private)} if private else {})


REFUSED: dict[str, tuple[Callable[..., Any], int, dict[str, Any], str]] = {
    "private latents missing": (mm.MMVAEPlus, 0, {"private_encoders": {}, "private_dims": {}}, "private_encoders"),
    "no exact mixture form": (mm.MMVAEPlus, 1, {"gradient": "dreg_mixture"}, "gradient"),
    "auxiliary": (mm.CMVAE, 1, {"auxiliary": "learnt"}, "auxiliary"),
    "predict": (mm.MMVAEPlus, 1, {"auxiliary": "prior", "predict": "x"}, "predict"),
    "source unknown": (mm.MCVAE, 0, {"sources": ["q"]}, "sources"),
    "source a string": (mm.MCVAE, 0, {"sources": "ab"}, "sources"),
    "no targets": (mm.MCVAE, 0, {"targets": []}, "targets"),
    "sparse with a prior": (mm.MCVAE, 0, {"sparse": True, "prior": "laplace"}, "prior"),
    "a factor below 0": (mm.MVAE, 0, {"rescale": {"a": -1.0}}, "rescale"),
    "beta a word": (mm.GPoE, 0, {"beta": "x"}, "beta"),
    "weights": (mm.MMJSD, 0, {"weights": [1.0, 1.0]}, "weights"),
    "reference": (mm.DVCCA, 0, {"reference": "q"}, "reference"),
    "a prior that nothing trains": (mm.MMVM, 0, {"learn_prior": True}, "learn_prior"),
    "weight of the prior": (mm.MMVM, 0, {"divergence": "mixture", "prior_weight": float("inf")}, "prior_weight"),
    "unknown encoder": (mm.MaskedVAE, 0, {"encoders": {"q": mm.nn.MLPEncoder(3, 2)}}, "unknown modalities"),
    "two rules": (mm.MVAE, 0, {"fusion": mm.fusion.MeanOfParameters(), "prior_expert": False}, "prior_expert"),
    "two roles": (mm.DMVAE, 1, {"fusion": "generalized", "unimodal_prior_expert": True}, "unimodal_prior_expert"),
    "private beta of nothing": (mm.DMVAE, 1, {"beta_private": {"q": 1.0}}, "beta_private"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    method, private, options, named = REFUSED[case]
    with pytest.raises(ValueError, match=named):
        method(**{**nets(private), **options})


@pytest.mark.parametrize("name", ["encoders", "decoders"])
def test_networks_come_by_modality(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        mm.GPoE(**{**nets(), name: [torch.nn.Identity()]})


def test_private_latents_for_data() -> None:
    data = {m: torch.randn(20, 3) for m in NAMES}
    with pytest.raises(ValueError, match="private_dim"):
        mm.CMVAE.for_data(data, latent_dim=2)
    vae = mm.CMVAE.for_data(data, latent_dim=2, private_dim=1)
    assert set(vae.posterior(data, latents="all")) == {"z", "z_a", "z_b"}


def test_a_term_s_choices_are_known() -> None:
    for wrong in ({"private": "x"}, {"subsets": "x"}, {"detach": frozenset({"x"})}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            mm.Term(**wrong)


def test_learned_weights_survive_in_the_config_of_an_objective() -> None:
    terms = mm.Terms([mm.Term(mm.objectives.Each(), weight=mm.objectives.LearnedWeights(2, entropy=3.0))])
    again = objective_from(objective_of(mm.ELBO(terms)))
    (weight,) = [t.weight for t in again.terms.terms]
    assert isinstance(weight, mm.objectives.LearnedWeights) and (weight.count, weight.entropy) == (2, 3.0)
    assert dict(again.named_parameters()).keys() == {"parts.0.logits"}


def test_nothing_remains_where_the_subset_is_everything() -> None:
    """The second term of the masked bound is 0 then, in value and gradient, also with a sampled divergence."""
    vae = mm.MaskedVAE(None, {m: mm.nn.MLPDecoder(2, 3) for m in NAMES}, latent_dim=2)
    observed = torch.ones(400, 2, dtype=torch.bool)
    table = vae.objective.terms.table(mm.objectives.Context(observed, NAMES))
    first, second = table.source[0], table.weight[1]
    everything = first.all(-1)
    assert everything.any() and not everything.all()
    assert (second[everything] == 0).all() and (second[~everything] == 1).all()
