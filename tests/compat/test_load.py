"""Models that multivae saved: default networks rebuilt, own ones given again, likelihoods on any mask."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from torch import nn

import pyro_mmvae as mm
from tests.compat.cases import DIMS, DISTS, FACTORS, LATENT, PARAMS, PRIVATE, ROWS, SEEN, Case, rows, write

pytest.importorskip("multivae", reason="an extra of the tests; make test installs it", exc_type=ImportError)
pytestmark = pytest.mark.extra

SUBSETS = [list(s) for s in chain.from_iterable(combinations(DIMS, r) for r in range(1, len(DIMS) + 1))]
_SOFTPLUS = {"modalities_specific_dim": 2, "prior_and_posterior_dist": "normal_with_softplus"}
_SOFTPLUS |= {"learn_shared_prior": True, "reconstruction_option": "single_prior"}
SAVED = [
    Case("MVAE", "MVAE", {"k": 2, "beta": 1.7, "warmup": 7}),
    Case("MVTCAE", "MVTCAE", {"alpha": 0.4}),
    Case("JMVAE", "JMVAE", {"alpha": 0.6}),
    Case("MoPoE", "MoPoE", {"beta": 1.6}),
    Case("MoPoE private", "MoPoE", {"modalities_specific_dim": PRIVATE}),
    Case("CRMVAE", "CRMVAE", {"beta": 1.6}),
    Case("DMVAE", "DMVAE", {"modalities_specific_dim": PRIVATE}),
    Case("MMVAE", "MMVAE", {"K": 3}),
    Case("MMVAE normal", "MMVAE", {"prior_and_posterior_dist": "normal", "learn_prior": False}),
    Case("MMVAE learned", "MMVAE", {"prior_and_posterior_dist": "normal"}),
    Case("MMVAE+", "MMVAEPlus", {"modalities_specific_dim": 2}),
    Case("MMVAE+ softplus", "MMVAEPlus", _SOFTPLUS),
    Case("CMVAE", "CMVAE", {"modalities_specific_dim": 1, "number_of_clusters": 3}),
]
EXACT = [case for case in SAVED if case.method in ("MVAE", "MVTCAE", "JMVAE", "CRMVAE")]  # its likelihoods are right


def default_model(case: Case):
    """multivae's model with its default networks."""
    from multivae import models

    config = getattr(models, f"{case.method}Config")(
        n_modalities=len(DIMS),
        latent_dim=LATENT,
        input_dims=dict(DIMS),
        decoders_dist=dict(DISTS),
        decoder_dist_params={m: dict(p) for m, p in PARAMS.items()},
        **case.config,
    )
    return getattr(models, case.method)(config).double().eval()


def pair(case: Case, folder):
    """The model, saved by its own ``save``, and what is loaded here."""
    model = default_model(case)
    with torch.no_grad():
        for parameter in model.parameters():  # no bias, no prior is left at a special value
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    model.save(str(folder))
    return model, mm.compat.multivae.load(folder)


def batch(data):
    from multivae.data.datasets.base import MultimodalBaseDataset

    return MultimodalBaseDataset(dict(data))


@pytest.mark.parametrize("case", SAVED, ids=lambda c: c.name)
def test_posterior_means_on_every_subset(case, tmp_path):
    model, vae = pair(case, tmp_path)
    data = rows()
    for subset in SUBSETS:
        if case.method == "CMVAE" and len(subset) > 1:
            continue  # its mean is that of one modality, picked at random
        if case.method == "MoPoE" and len(subset) == len(DIMS):
            continue  # there its mean is that of the mixture, its draws are the product's
        if case.method == "DMVAE" and len(subset) == 1:
            continue  # it trains the expert itself, and then adds the prior as an expert (spec 7)
        expected = model.encode(batch(data), subset, return_mean=True).z
        # its product adds 1e-8 to variances
        torch.testing.assert_close(vae.posterior(data, given=subset).mean, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", SAVED, ids=lambda c: c.name)
def test_experts_and_likelihoods(case, tmp_path):
    model, vae = pair(case, tmp_path)
    data = rows()
    given = case.config.get("modalities_specific_dim", 0)
    private = dict(given) if isinstance(given, dict) else dict.fromkeys(DIMS, given)
    to_scale = next((getattr(model, n) for n in ("log_var_to_std", "_log_var_to_std") if hasattr(model, n)), _by_half)
    for m in DIMS:
        z = torch.randn(ROWS, LATENT + private[m], dtype=torch.float64)
        out, expert = model.encoders[m](data[m]), vae.guide.encoders["z"][m](data[m])
        torch.testing.assert_close(expert.base_dist.loc, out.embedding)
        torch.testing.assert_close(expert.base_dist.scale, to_scale(out.log_covariance))
        if private[m]:
            own = vae.guide.encoders[f"z_{m}"][m](data[m])
            torch.testing.assert_close(own.base_dist.loc, out.style_embedding)
            torch.testing.assert_close(own.base_dist.scale, to_scale(out.style_log_covariance))
        density = model.recon_log_probs[m](model.decoders[m](z).reconstruction, data[m]).flatten(1).sum(-1)
        torch.testing.assert_close(vae.model.story.program.decoders[m](z).log_prob(data[m]), density)


def _by_half(log_variance):
    return (log_variance / 2).exp()


def _agrees(prior, loc, scale):
    torch.testing.assert_close(prior().base_dist.loc, loc)
    torch.testing.assert_close(prior().base_dist.scale, scale, rtol=1e-5, atol=1e-5)  # its softmax scales add 1e-6


@pytest.mark.parametrize("case", [c for c in SAVED if c.method.startswith("MMVAE")], ids=lambda c: c.name)
def test_priors_of_mixtures(case, tmp_path):
    model, vae = pair(case, tmp_path)
    story, (loc, scale) = vae.model.story.program, model.pz_params
    _agrees(story.prior, loc[0, :LATENT], scale[0, :LATENT])
    learned = [name for name, _ in story.prior.named_parameters()]
    assert len(learned) == (model.model_config.learn_prior if case.method == "MMVAE" else "softplus" in case.name)
    if case.method == "MMVAEPlus":
        for m in DIMS:
            _agrees(story.private_priors[m], loc[0, LATENT:], scale[0, LATENT:])
            own = vae.guide.fusion[f"z_{m}"]
            _agrees(own.auxiliary, model.mean_priors[m][0], model._log_var_to_std(model.logvars_priors[m])[0])
            assert own.predict == ("auxiliary" if "softplus" in case.name else "prior")


def test_prior_of_clusters(tmp_path):
    model, vae = pair(next(c for c in SAVED if c.method == "CMVAE"), tmp_path)
    prior, z = vae.model.story.program.prior, torch.randn(5, LATENT, dtype=torch.float64)
    each = [torch.distributions.Laplace(mean, 1.0).log_prob(z).sum(-1) for mean in model.mean_clusters]
    expected = torch.stack(each, -1) + model.pc_params.log()
    torch.testing.assert_close(prior.log_joint(z), expected)
    _agrees(vae.guide.fusion["z_b"].auxiliary, torch.zeros(1).double(), torch.ones(1).double())


def test_pruned_clusters_stay_pruned(tmp_path):
    model = default_model(next(c for c in SAVED if c.method == "CMVAE"))
    with torch.no_grad():
        model._pc_params[1] = -torch.inf
    model.save(str(tmp_path))
    prior = mm.compat.multivae.load(tmp_path).model.story.program.prior
    assert prior.active.tolist() == [True, False, True]
    torch.testing.assert_close(prior.log_weights().exp(), torch.tensor([0.5, 0.0, 0.5]).double())


@pytest.mark.parametrize("case", EXACT, ids=lambda c: c.name)
def test_likelihood_is_multivaes_where_that_is_right(case, tmp_path):
    model = default_model(case)
    with torch.no_grad():  # experts wide enough that the weights have a variance
        for encoder in model.encoders.values():
            encoder.log_var.bias += 3
    model.save(str(tmp_path))
    vae, data = mm.compat.multivae.load(tmp_path), rows()
    with torch.no_grad():
        theirs = -model.compute_joint_nll(batch(data), K=5000, batch_size_K=5000)
    ours = vae.log_likelihood(data, num_particles=5000, diagnostics=True)
    # both estimates have the same standard error, four of which are allowed
    error = ours.standard_error.square().sum().sqrt() * 2**0.5
    assert error < 0.1
    assert abs(ours.value.sum() - theirs) < 4 * error


def test_two_lines_rescore_an_old_checkpoint_on_any_mask(tmp_path):
    default_model(SAVED[0]).save(str(tmp_path))
    data, obs_mask = rows(), {m: torch.tensor(v).bool() for m, v in SEEN.items()}

    vae = mm.compat.multivae.load(tmp_path)
    scores = vae.log_likelihood(data, obs_mask, num_particles=4000)

    for n in range(ROWS):  # each row as if the model had no other modality
        seen = [m for m in DIMS if obs_mask[m][n]]
        own = vae.log_likelihood({m: data[m][n : n + 1] for m in seen}, num_particles=4000, diagnostics=True)
        assert abs(scores[n] - own.value[0]) < 6 * own.standard_error[0]


def test_options_are_the_saved_ones(tmp_path):
    from multivae import models

    config = models.MVAEConfig(
        n_modalities=3, latent_dim=LATENT, input_dims=dict(DIMS), uses_likelihood_rescaling=True,
        rescale_factors=dict(FACTORS), use_subsampling=True, k=2, beta=1.7, warmup=7,
    )  # fmt: skip
    write(models.MVAE(config), tmp_path)
    loaded = mm.compat.multivae.load(tmp_path)
    wanted = {"unimodal": True, "k": 2, "beta": 1.7, "warmup": 0, "rescale": FACTORS, "latent_dim": LATENT}
    assert type(loaded) is mm.MVAE
    assert {name: loaded.config[name] for name in wanted} == wanted


def test_a_loaded_model_is_saved_and_loaded_here(tmp_path):
    """Default networks are plain modules of this library: nothing of multivae stays behind."""
    _, vae = pair(next(c for c in SAVED if c.name == "MoPoE private"), tmp_path / "there")
    vae.save(tmp_path / "here")
    again = mm.load(tmp_path / "here")
    assert again.config == vae.config
    for name, x in vae.state_dict().items():
        assert torch.equal(again.state_dict()[name], x)
    trunks = [again.guide.encoders[site]["a"].net[0].weight for site in ("z", "z_a")]
    assert trunks[0] is trunks[1], "the private latent's encoder shares the hidden layers"


def test_priors_without_a_counterpart(tmp_path):
    dims = {"modalities_specific_dim": 1}
    case = Case("", "CMVAE", dims | {"prior_and_posterior_dist": "normal_with_softplus"})
    write(default_model(case), tmp_path)
    with pytest.raises(NotImplementedError, match="clusters of scale log 2"):
        mm.compat.multivae.load(tmp_path)
    model = default_model(Case("", "MMVAEPlus", dims | {"learn_shared_prior": True}))
    with torch.no_grad():  # scales of mean 1 over z and w together, not over each
        model.logvars_priors["shared"][0, 0] += 1
    write(model, tmp_path)
    with pytest.raises(ValueError, match="scales of mean 1, saved is"):
        mm.compat.multivae.load(tmp_path)
    fixed = {"learn_shared_prior": True, "learn_modality_prior": False, "prior_and_posterior_dist": "normal"}
    model = default_model(Case("", "MMVAEPlus", dims | fixed))
    with torch.no_grad():
        model.logvars_priors["shared"] += 1
    write(model, tmp_path)
    with pytest.raises(ValueError, match="auxiliary prior of 'a' is fixed and yet not p"):
        mm.compat.multivae.load(tmp_path)
    write(default_model(Case("", "DMVAE", {"modalities_specific_dim": PRIVATE, "beta": 0.0})), tmp_path)
    with pytest.raises(ValueError, match="beta is 0"):
        mm.compat.multivae.load(tmp_path)


def test_own_networks_are_asked_for_and_filled(tmp_path):
    model = Case("MVAE", "MVAE").model()
    write(model, tmp_path)
    with pytest.raises(ValueError, match=r"saved with encoders, decoders of your own.*encoders=\{modality: network\}"):
        mm.compat.multivae.load(tmp_path)
    fresh = Case("MVAE", "MVAE").model()
    vae = mm.compat.multivae.load(tmp_path, encoders=dict(fresh.encoders), decoders=dict(fresh.decoders))
    for name, x in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], x)
    assert vae.posterior(rows()).mean.shape == (ROWS, LATENT)
    with pytest.raises(ValueError, match="no network is given for 'b'"):
        mm.compat.multivae.load(tmp_path, encoders={"a": fresh.encoders["a"]}, decoders=dict(fresh.decoders))
    wrong = {m: nn.Linear(1, 1) for m in DIMS}
    with pytest.raises(ValueError, match=r"(?s)cannot be made: RuntimeError.*Missing key"):
        mm.compat.multivae.load(tmp_path, encoders=dict(fresh.encoders), decoders=wrong)


def test_joint_encoder_of_own_encoders_is_asked_for(tmp_path):
    model = Case("JMVAE", "JMVAE").model()
    write(model, tmp_path)
    with pytest.raises(ValueError, match="joint_encoder=network"):
        mm.compat.multivae.load(tmp_path, encoders=dict(model.encoders), decoders=dict(model.decoders))


def test_jmvae_without_a_modality(tmp_path):
    """The joint network sees whole samples; a column that is absent for all rows is no reason to fail."""
    case = Case("JMVAE", "JMVAE")
    vae = case.here(case.model(), tmp_path)
    data = rows()
    alone = vae.posterior({"a": data["a"]}).mean
    torch.testing.assert_close(alone, vae.posterior(data, given={"a"}).mean)
