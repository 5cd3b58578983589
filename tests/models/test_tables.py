"""Methods whose networks read all modalities at once, on tables in the units of the data."""

from __future__ import annotations

import pytest
import torch

import pyro_mmvae as mm

pd = pytest.importorskip("pandas")
METHODS = {
    "JMVAE": lambda ds: mm.JMVAE.for_data(ds, latent_dim=2),
    "MaskedVAE, sum": lambda ds: mm.MaskedVAE(None, decoders_for(ds), latent_dim=2),
    "MaskedVAE, attention": lambda ds: mm.MaskedVAE.for_data(ds, latent_dim=2, pooling="attention"),
}


def decoders_for(ds: mm.MultimodalDataset) -> dict[str, torch.nn.Module]:
    decoders = mm.MVAE.for_data(ds, latent_dim=2).model.story.program.decoders
    return {m: decoders[m] for m in decoders}


def cohort(unit: float, origin: float) -> mm.MultimodalDataset:
    """Two tables and an age; the first column of the first one in other units."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 3, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    x[:, 0] = x[:, 0] * unit + origin
    x[3, 1] = torch.nan
    frames = {"lab": pd.DataFrame(x.numpy(), columns=list("abc")), "blood": pd.DataFrame(y.numpy(), columns=list("de"))}
    age = pd.DataFrame({"age": torch.linspace(30, 80, 30, dtype=torch.float64).numpy()})
    return mm.MultimodalDataset.from_frames(frames, context=age)


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_posteriors_do_not_depend_on_units(make):
    """At equal weights; what standardizes is the only difference between the two models."""
    ones, others = cohort(1.0, 0.0), cohort(1e4, 3e5)
    vae = make(ones)
    other = make(others)
    scaling = {k: v for k, v in other.state_dict().items() if k.split(".")[-1] in ("loc", "scale")}
    other.load_state_dict({**vae.state_dict(), **scaling})
    q, p = vae.posterior(ones), other.posterior(others)
    # float32 holds 3e5 to 0.02, that is 2e-6 of the spread 1e4
    assert torch.allclose(q.mean, p.mean, atol=1e-4) and torch.allclose(q.variance, p.variance, atol=1e-4)
    assert (q.mean - q.mean[:1]).abs().max() > 1e-3


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_they_train_and_impute(make):
    ds = cohort(1.0, 0.0).hide(0.3, seed=1)
    vae = make(ds)
    mm.fit(vae, ds, epochs=2, progress=False, seed=0)
    full = vae.impute(ds, num_samples=5, progress=False)
    assert full.mean["lab"].notna().all().all() and full.mean["blood"].shape == (30, 2)
