"""Published methods with covariates: constructed, trained, recorded, asked, saved, with no change of their files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from tests.oracles import covariates as oracle

pytestmark = pytest.mark.usefixtures("float64")

N, STEPS, NAMES = 24, 300, oracle.NAMES
RECORDED = ("mvae", "mopoe", "jmvae", "mmvaeplus", "maskedvae", "cmvae")  # the gradient of MMVAE sets hooks
METHODS: dict[str, Any] = {
    "mvae": lambda e, d: mm.MVAE(e, d, latent_dim=2),
    "mmvae": lambda e, d: mm.MMVAE(e, d, latent_dim=2, num_particles=2, rescale="dimensions"),
    "mopoe": lambda e, d: mm.MoPoE(e, d, latent_dim=2),
    "jmvae": lambda e, d: mm.JMVAE(e, d, latent_dim=2),
    "mmvaeplus": lambda e, d: mm.MMVAEPlus(
        e,
        d,
        latent_dim=2,
        private_encoders={m: encoder(1) for m in NAMES},
        private_dims=dict.fromkeys(NAMES, 1),
    ),
    "maskedvae": lambda e, d: mm.MaskedVAE(None, d, latent_dim=2),
    "maskedvae_encoders": lambda e, d: mm.MaskedVAE(e, d, latent_dim=2, pooling="attention"),
    "cmvae": lambda e, d: mm.CMVAE(
        e,
        d,
        latent_dim=2,
        num_clusters=2,
        private_encoders={m: encoder(1) for m in NAMES},
        private_dims=dict.fromkeys(NAMES, 1),
    ),
}


def encoder(size: int) -> nn.Module:
    return mm.nn.MLPEncoder(2, size, hidden=(6,), context=oracle.CONTEXT)


def build(method: str) -> mm.MultimodalVAE:
    width = 3 if method in ("mmvaeplus", "cmvae") else 2
    enc = {m: encoder(2) for m in NAMES}
    likelihood = {"a": "normal_learned", "b": "laplace"}
    dec = {m: mm.nn.MLPDecoder(width, 2, hidden=(6,), likelihood=likelihood[m], context=oracle.CONTEXT) for m in NAMES}
    return METHODS[method](enc, dec)


def dataset(n: int = N, seed: int = 0) -> mm.MultimodalDataset:
    data, mask = oracle.draw(n, seed)
    own = {c: data.pop(c) for c in oracle.CONTEXT_NAMES}
    return mm.MultimodalDataset(data, obs_mask=mask, covariates=own)


@pytest.mark.parametrize("method", METHODS)
def test_every_verb_works_and_each_row_has_its_own_covariates(method: str, tmp_path: Path) -> None:
    vae, ds = build(method), dataset()
    assert set(vae.model.covariates) == {"age", "site"}
    mm.fit(vae, ds, epochs=2, batch_size=10, progress=False, seed=0)
    other, some = {**ds.data, "site": (ds.data["site"] + 1) % 3}, ds.obs_mask["a"] | ds.obs_mask["b"]
    q, moved = vae.posterior(ds), vae.posterior(other, ds.obs_mask)
    assert ((moved.mean - q.mean).abs().max(-1).values > 0).tolist() == some.tolist()
    order = torch.randperm(N)
    mixed = {k: x[order] for k, x in ds.data.items()}, {m: x[order] for m, x in ds.obs_mask.items()}
    torch.testing.assert_close(vae.posterior(*mixed).mean, q.mean[order])
    filled = vae.impute(ds, num_samples=2, batch_size=7)
    seen = ds.obs_mask["a"]
    assert torch.equal(filled["a"][:, seen], ds.data["a"][seen].expand(2, -1, -1)) and filled["a"].isfinite().all()
    assert vae.predict(ds, num_samples=2, noise=False, batch_size=7)["b"].shape == (2, N, 2)
    assert vae.log_likelihood(ds, num_particles=4).isfinite().all()
    assert "site" in vae.to_inference_data(ds, num_samples=3).constant_data
    vae.save(tmp_path / "model")
    again = mm.load(tmp_path / "model")
    torch.testing.assert_close(again.double().posterior(ds).mean, q.mean)


@pytest.mark.parametrize("method", METHODS)
def test_generate_and_decode_take_covariates(method: str) -> None:
    """Means are those of the decoder at the row's own covariates."""
    vae, (data, _) = build(method), oracle.draw(5)
    c = {name: data[name] for name in oracle.CONTEXT_NAMES}
    new = vae.generate(5, data=c, noise=False, return_latents=True)
    inner = [new["z"]] + ([new["z_a"]] if "z_a" in new else [])
    decoder = vae.model.story.program.decoders["a"]
    torch.testing.assert_close(new["a"], decoder(torch.cat(inner, -1), **c).mean.detach())
    z = {"z": torch.randn(3, 5, 2)} | ({f"z_{m}": torch.randn(3, 5, 1) for m in NAMES} if "z_a" in new else {})
    z |= {"cluster": torch.zeros(3, 5)} if "cluster" in vae.model.door.outline(c).latents else {}
    lik = vae.decode(z, data=c)["a"]
    inner = [z["z"]] + ([z["z_a"]] if "z_a" in z else [])
    torch.testing.assert_close(lik.mean, decoder(torch.cat(inner, -1), **c).mean.detach())
    with pytest.raises(ValueError, match=r"covariates \['age', 'site'\]"):
        vae.generate(5)
    with pytest.raises(ValueError, match="Ragged batch"):
        vae.generate(6, data=c)


@pytest.mark.parametrize("method", METHODS)
def test_missing_and_unknown_covariates_are_named(method: str) -> None:
    vae, ds = build(method), dataset()
    short = {k: x for k, x in ds.data.items() if k != "site"}
    with pytest.raises(ValueError, match=r"data\['site'\] is missing"):
        vae.posterior(short, ds.obs_mask)
    with pytest.raises(ValueError, match=r"data\['site'\] is missing"):
        vae.objective.loss(vae.model, vae.guide, short, ds.obs_mask)
    with pytest.raises(ValueError, match=r"unknown keys \['sex'\].*\['age', 'site'\]"):
        vae.posterior({**ds.data, "sex": ds.data["age"]}, ds.obs_mask)


@pytest.mark.parametrize("method", RECORDED)
def test_recorded_steps_read_the_batch_s_covariates(method: str) -> None:
    """Whole runs, recorded and eager, from the same start at the same noise."""
    runs = []
    start = build(method).state_dict()
    for trace in (True, False):
        vae = build(method)
        vae.load_state_dict(start)
        mm.fit(vae, dataset(), epochs=3, batch_size=12, lr=0.05, progress=False, seed=1, trace=trace)
        runs.append(vae.state_dict())
    for name, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][name], msg=name)
    assert any(not torch.equal(value, start[name]) for name, value in runs[0].items())


class Mixed(nn.Module):
    """A decoder of a user's: a class and a vector, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.of_site, self.of_dose, self.of_z = nn.Embedding(3, 2), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, z: Tensor, site: Tensor, dose: Tensor) -> Any:
        return dist.Normal(self.of_z(z) + self.of_site(site) + self.of_dose(dose), 1.0).to_event(1)


def test_covariates_of_unknown_shape_wait_for_the_data() -> None:
    """Nothing can be tried without them; then everything works; what needs shapes before says what to give."""
    enc = {m: mm.nn.MLPEncoder(2, 2, hidden=()) for m in NAMES}
    vae = mm.MoPoE(enc, {m: Mixed() for m in NAMES}, latent_dim=2)
    data = {m: torch.randn(N, 2) for m in NAMES} | {"site": torch.randint(3, (N,)), "dose": torch.randn(N, 4)}
    ds = mm.MultimodalDataset({m: data[m] for m in NAMES}, covariates={k: data[k] for k in ("site", "dose")})
    mm.fit(vae, ds, epochs=1, progress=False)
    assert vae.predict(data, num_samples=3)["a"].shape == (3, N, 2)
    with pytest.raises(ValueError, match=r"\['site', 'dose'\] have unknown shapes.*rescale"):
        mm.MMVAE(enc, {m: Mixed() for m in NAMES}, latent_dim=2, rescale="dimensions")
    with pytest.raises(ValueError, match=r"unknown shapes.*joint_encoder"):
        mm.JMVAE(enc, {m: Mixed() for m in NAMES}, latent_dim=2)


def test_networks_by_name_are_tried_with_stand_ins() -> None:
    """A number and a class need no data: wrong sizes are found at once."""
    dec = {m: oracle.NamedDecoder(m) for m in NAMES}
    mm.MMVAE({m: oracle.NamedEncoder(m) for m in NAMES}, dec, latent_dim=2, rescale="dimensions")
    with pytest.raises(ValueError, match=r"encoder of 'a': expected experts of event shape \(2,\), got \(3,\)"):
        mm.MVAE({m: encoder(3) for m in NAMES}, dec, latent_dim=2)


def test_a_trained_model_explains_a_batch_shift_by_the_context() -> None:
    """
    One modality, z of one dimension, x = w z + 4 site + e: with the site as context the posterior does not move.

    At the optimum of the linear ELBO the encoder is E[z | x, site] = k (x - d site), k = w / (w^2 + s^2) = .8, d the
    difference of the two sites' means in the sample, whose standard error is 2 sd(x) / sqrt(n). The posterior moves by
    k (4 - d), so by more than four times 2 k sd(x) / sqrt(n) = .08 once in 16,000 data sets; it has the correlation
    w / sd(x) = .894 with z, standard error (1 - .8) / sqrt(n). Without context z takes the site for its own: w^2 + s^2
    is the variance of x over both sites, v = 5.25, k = sqrt(v - s^2) / v, and the posterior moves by 4 k = 1.7.
    """
    n, w, s, g = 512, 1.0, 0.5, torch.Generator().manual_seed(0)
    site = (torch.arange(n) % 2).double()
    z, e = torch.randn(2, n, 1, generator=g, dtype=torch.float64)
    x = w * z + 4 * site.unsqueeze(-1) + s * e
    sd, k = (w**2 + s**2) ** 0.5, w / (w**2 + s**2)
    moves, follows = {}, {}
    for name, context in (("with", [mm.columns.Column("site", "bernoulli")]), ("without", None)):
        enc: Any = mm.nn.MLPEncoder(1, 1, hidden=(), context=context)
        dec: Any = mm.nn.LinearDecoder(1, 1, likelihood=mm.nn.Normal(s), context=context)
        enc.head.linear.weight.data[0, 0], dec.net[0].weight.data[0, 0] = 0.5, 1.0  # the ELBO is flat around 0
        vae = mm.MVAE({"x": enc}, {"x": dec}, latent_dim=1)
        own = {"site": site} if context else {}
        falling = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=STEPS)
        ds = mm.MultimodalDataset({"x": x}, covariates=own)
        mm.fit(vae, ds, epochs=STEPS, batch_size=n, lr=0.1, scheduler=falling, progress=False, trace=True)
        here = vae.posterior(ds).mean
        moved = {"x": x + 4 * (1 - 2 * site).unsqueeze(-1)} | ({"site": 1 - site} if context else {})
        there = vae.posterior(moved).mean
        moves[name] = float((there - here).abs().mean())
        follows[name] = float(torch.corrcoef(torch.cat([here, z], -1).T)[0, 1])
    assert moves["with"] < 4 * 2 * k * sd / n**0.5
    assert follows["with"] == pytest.approx(w / sd, abs=4 * (1 - (w / sd) ** 2) / n**0.5)
    assert moves["without"] > 1.5 and follows["without"] < 0.6
