"""Models and stories that cannot be: each error says where, what was expected, what came, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from tests.error_cases import DOORS, NAN, TRUE, B, decoder, encoder, good, networks


class Returns(nn.Module):
    """A network whose call returns what ``make`` makes of its input."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


def mvae(names: Any = ("image", "count"), encoders: Any = None, decoders: Any = None, **options: Any) -> Any:
    own, likelihoods = networks(names)
    own.update({} if encoders is None else encoders)
    likelihoods.update({} if decoders is None else decoders)
    return mm.MVAE(own, likelihoods, **{"latent_dim": 2} | options)


def loss(vae: Any) -> Any:
    data = {m: good()[m] for m in vae.model.modalities}
    return vae.objective.differentiable_loss(vae.model, vae.guide, data)


def called(name: str) -> Any:
    """An MVAE with a modality of this name."""
    return mm.MVAE({name: encoder("image")}, {name: decoder("image")}, latent_dim=2)


MAKING: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "latent_dim 0": (lambda: mvae(latent_dim=0), ValueError, ["latent_dim", "positive integer", "got 0"]),
    "latent_dim -1": (lambda: mvae(latent_dim=-1), ValueError, ["latent_dim", "positive integer", "got -1"]),
    "latent_dim is text": (lambda: mvae(latent_dim="2"), ValueError, ["latent_dim", "positive integer", "got '2'"]),
    "encoder of width 0": (lambda: mm.nn.MLPEncoder(3, 0), ValueError, ["latent_dim", "got 0"]),
    "decoder of width 0": (lambda: mm.nn.MLPDecoder(0, 3), ValueError, ["latent_dim", "got 0"]),
    "keys differ": (
        lambda: mm.MVAE(networks(("image", "count"))[0], networks(("image", "bits"))[1], latent_dim=2),
        ValueError,
        [
            "encoders have ['image', 'count']",
            "decoders ['image', 'bits']",
            "Fix: one encoder and one decoder per modality",
        ],
    ),
    "encoder of another latent size": (
        lambda: mvae(encoders={"image": encoder("image", 3)}),
        ValueError,
        ["encoder of 'image'", "event shape (2,)", "got (3,)", "Fix: latent_dim=2"],
    ),
    "encoder returns no Distribution": (
        lambda: mvae(encoders={"image": Returns(lambda x: x.flatten(1)[:, :2])}),
        TypeError,
        ["encoder of 'image'", "expected a Distribution", "got Tensor", "Fix: return"],
    ),
    "encoder without events": (
        lambda: mvae(encoders={"image": Returns(lambda x: dist.Normal(x.flatten(1)[:, :2], 1.0))}),
        ValueError,
        ["encoder of 'image'", "event shape (2,)", "got ()", "Fix"],
    ),
    "decoder returns no Distribution": (
        lambda: mvae(decoders={"image": Returns(lambda z: z)}),
        TypeError,
        ["image", "expected a Distribution", "got Tensor", "Fix"],
    ),
    "decoder of another batch shape": (
        lambda: loss(mvae(decoders={"image": Returns(lambda z: dist.Normal(torch.zeros(7, 2, 3), 1.0).to_event(2))})),
        ValueError,
        ["image", "batch shape", "(7,)", "Fix"],
    ),
    "decoder without events": (
        lambda: mvae(decoders={"image": Returns(lambda z: dist.Normal(torch.zeros((*z.shape[:-1], 2, 3)), 1.0))}),
        ValueError,
        ["image", "batch shape", "to_event"],
    ),
    "unknown likelihood": (
        lambda: mm.nn.MLPDecoder(2, 3, likelihood="gausian"),
        ValueError,
        ["gausian", "Known", " normal,"],
    ),
    "unknown option of a method": (lambda: mvae(betas=2.0), TypeError, ["betas"]),
    "unknown option of a network": (lambda: mm.nn.MLPEncoder(3, 2, width=5), TypeError, ["width"]),
    "unknown option of for_data": (
        lambda: mm.MVAE.for_data({"image": torch.randn(B, 3)}, latent_dim=2, betas=1.0),
        TypeError,
        ["betas"],
    ),
    "unknown option of an objective": (lambda: mm.ELBO(particles=3), TypeError, ["particles"]),
    "no particles": (lambda: mm.ELBO(num_particles=0), ValueError, ["num_particles", "at least 1", "got 0"]),
    "rescale of a stranger": (lambda: mvae(rescale={"sound": 2.0}), ValueError, ["rescale", "sound", "image", "count"]),
    "prior by another name": (
        lambda: mvae(prior="gaussian"),
        ValueError,
        ["prior", "'normal'", "'laplace'", "'gaussian'"],
    ),
    "no modality": (lambda: mm.MVAE({}, {}, latent_dim=2), ValueError, ["modalities", "empty"]),
    "modality like a latent": (lambda: called("z"), ValueError, ["'z'", "latent site", "Fix: rename"]),
    "modality 'data'": (lambda: called("data"), ValueError, ["'data'", "reserved", "Fix: rename"]),
    "modality 'terms'": (lambda: called("terms"), ValueError, ["'terms'", "reserved", "Fix: rename"]),
    "modality 'particles'": (lambda: called("particles"), ValueError, ["'particles'", "reserved", "Fix: rename"]),
    "empty dataset": (
        lambda: mm.datasets.MultimodalDataset({"image": torch.zeros(0, 3)}),
        ValueError,
        ["dataset is empty"],
    ),
    "batch size 0": (
        lambda: next(iter(mm.datasets.MultimodalDataset({"image": torch.zeros(2, 3)}).batches(0))),
        ValueError,
        ["batch_size", "at least 1", "got 0"],
    ),
}


@pytest.mark.parametrize("name", MAKING)
def test_making_a_model(name):
    make, kind, parts = MAKING[name]
    with pytest.raises(kind) as error:
        make()
    for part in parts:
        assert part in str(error.value)


# --- stories ----------------------------------------------------------------------------------------------------------


class Conditional(nn.Module):
    """A story with a covariate."""

    def forward(self, batch_label: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + batch_label.unsqueeze(-1), 1.0).to_event(1))


@pytest.fixture
def conditional() -> mm.MultimodalVAE:
    model = mm.observe(Conditional(), ("x",))
    return mm.MultimodalVAE(model, mm.guides.Product(model, {"z": {"x": mm.nn.MLPEncoder(2, 2, hidden=())}}))


COVARIATES: dict[str, tuple[dict[str, Any], Any, list[str]]] = {
    "missing": ({"x": torch.zeros(B, 2)}, None, ["data['batch_label']", "missing", "covariate"]),
    "None": ({"x": torch.zeros(B, 2), "batch_label": None}, None, ["data['batch_label']", "missing"]),
    "masked": (
        {"x": torch.zeros(B, 2), "batch_label": torch.zeros(B)},
        {"batch_label": TRUE},
        ["obs_mask['batch_label']", "covariate", "always complete", "Fix"],
    ),
    "NaN": ({"x": torch.zeros(B, 2), "batch_label": torch.full((B,), NAN)}, None, ["'batch_label'", "NaN", "complete"]),
    "short": ({"x": torch.zeros(B, 2), "batch_label": torch.zeros(B - 1)}, None, ["'x': 4", "'batch_label': 3"]),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", COVARIATES)
def test_covariates(conditional, name, door):
    data, obs_mask, parts = COVARIATES[name]
    with pytest.raises(ValueError) as error:
        DOORS[door](conditional, data, obs_mask)
    for part in parts:
        assert part in str(error.value)
    pyro.clear_param_store()


def test_networks_hidden_in_a_closure():
    nets, single = [nn.Linear(2, 2)], nn.Linear(2, 2)

    def story():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(nets[0](z) + single(z), 1.0).to_event(1))

    with pytest.raises(ValueError) as error:
        mm.observe(story, ("x",))
    for part in ("nets", "single", "neither trained nor saved", "modules={", "nn.Module with forward()"):
        assert part in str(error.value)
    mm.observe(story, ("x",), modules={"net": nets[0], "single": single})


def test_modalities_that_are_no_sites():
    def story():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"modalities \['y'\] are no sample sites.*'x'.*Fix"):
        mm.observe(story, ("x", "y")).prepare({"x": torch.zeros(B, 2)})
    with pytest.raises(ValueError, match=r"names repeat"):
        mm.observe(story, ("x", "x"))


class Masked(nn.Module):
    """An encoder that takes the mask, and has no default for it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return dist.Normal(self.net(torch.cat([x, mask.to(x)], -1)), 1.0).to_event(1)


def test_encoders_are_tried_with_a_mask_if_they_take_one() -> None:
    vae = mm.MVAE({"x": Masked()}, {"x": mm.nn.MLPDecoder(2, 3)}, latent_dim=2)
    assert vae.posterior({"x": torch.zeros(4, 3)}).mean.shape == (4, 2)


def test_an_encoder_that_fails_keeps_its_mode() -> None:
    broken = Returns(lambda x: x.no_such_thing)
    with pytest.raises(AttributeError):
        mm.MVAE({"x": broken}, {"x": mm.nn.MLPDecoder(2, 3)}, latent_dim=2)
    assert broken.training


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (mm.MVAE, {"beta": float("nan")}, "beta: expected a finite number >= 0"),
        (mm.JMVAE, {"alpha": -1.0}, "alpha: expected a finite number >= 0"),
        (mm.MoPoE, {"beta_private": -1.0}, "beta_private"),
        (mm.MVAE, {"k": -1}, "0 <= k <= "),
        (mm.MVAE, {"k": 1}, "have 0 subsets"),
    ],
)
def test_weights_and_counts_out_of_range(method, options, message):
    enc = {m: mm.nn.MLPEncoder(2, 2, hidden=(4,)) for m in ("a", "b")}
    dec = {m: mm.nn.MLPDecoder(2, 2, hidden=(4,)) for m in ("a", "b")}
    with pytest.raises(ValueError, match=message):
        method(enc, dec, latent_dim=2, **options)
