"""A loss that is not finite stops the run before anything is updated, and says where it comes from."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.training import TrainingDiverged, fit
from tests.training import cases

OPTIONS = {"epochs": 3, "batch_size": 16, "progress": False, "seed": 0}  # 40 rows: 3 steps per epoch


class Breaks(nn.Module):
    """A decoder (or encoder, with ``scale``) whose output is ``value`` from its ``calls``-th training run on."""

    def __init__(self, calls, value=math.nan, size=3, inputs=1, normalize=False):
        super().__init__()
        self.net = nn.Linear(inputs, size)
        self.norm = nn.BatchNorm1d(size) if normalize else nn.Identity()
        self.calls, self.value, self.count = calls, value, 0

    def forward(self, x):
        self.count += self.training
        out = self.net(x)
        if self.count >= self.calls:
            out = out * self.value
        if out.dim() == 2:
            out = self.norm(out)
        return dist.Normal(out, 1.0).to_event(1)


def broken(vae, **options):
    """The error, and the weights after every good step."""
    after = []
    vae.objective.terms = mm.Terms([mm.Term()])  # one draw: each network runs once per step
    with pytest.raises(TrainingDiverged) as error:
        fit(
            vae, cases.data(hidden=0.0),
            callbacks=[lambda e, s: after.append(cases.weights(s.vae)) if e == "step" else None],
            **{**OPTIONS, **options},
        )  # fmt: skip
    return error.value, after


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_decoder(validation, value):
    vae = cases.vae(decoder=Breaks(5, value))
    with pyro.validation_enabled(validation):
        error, after = broken(vae)
    assert (error.step, error.epoch, error.modality, error.site) == (5, 2, "b", "b")
    assert "step 5 (epoch 2)" in str(error) and "modality 'b'" in str(error)
    assert len(after) == 4
    assert cases.differing(cases.weights(vae), after[-1]) == []
    assert vae.objective.step == 4


@pytest.mark.parametrize("validation", [True, False])
def test_encoder(validation):
    vae = cases.vae()
    vae.guide.encoders["z"]["b"].register_forward_hook(lambda m, args, out: out.__class__(
        out.base_dist.__class__(out.base_dist.loc * math.nan, out.base_dist.scale, validate_args=False), 1
    ))  # fmt: skip
    with pyro.validation_enabled(validation):
        error, after = broken(vae)
    assert (error.step, error.modality, error.site) == (1, "b", "z")
    assert "encoder" in str(error)
    assert after == []


def test_only_some_rows():
    class Rows(Breaks):
        def forward(self, x):
            fn = super().forward(x)
            bad = torch.arange(len(x)).unsqueeze(-1) < 2
            return dist.Normal(torch.where(bad, math.nan, fn.mean), 1.0, validate_args=False).to_event(1)

    error, _ = broken(cases.vae(decoder=Rows(math.inf)))
    assert "in 2 of 16 rows" in str(error)
    assert error.modality == "b"


def test_a_failure_that_depends_on_the_noise_is_found_again():
    class Sometimes(Breaks):
        def forward(self, x):
            fn = super().forward(x)
            self.drawn = self.training and float(torch.rand(())) < 0.02
            return dist.Normal(fn.mean * math.nan, 1.0).to_event(1) if self.drawn else fn

    error, _ = broken(cases.vae(decoder=Sometimes(math.inf)), epochs=99)
    assert error.step > 1
    assert error.modality == "b"


def test_gradient():
    """sqrt has a finite value and an infinite slope at 0."""

    class Slope(Breaks):
        def forward(self, x):
            fn = super().forward(x)
            return dist.Normal(fn.mean + (self.net.weight.sum() * 0).abs().sqrt(), 1.0).to_event(1)

    vae = cases.vae(decoder=Slope(math.inf))
    before = cases.weights(vae)
    error, after = broken(vae)
    assert error.step == 1 and after == []
    assert error.parameter is not None and error.parameter.endswith("net.weight")
    assert "gradient" in str(error) and error.modality is None
    assert cases.differing(cases.weights(vae), before) == []
    assert all(p.grad is None for p in vae.parameters())


def test_parameter_that_is_nan_from_the_start():
    vae = cases.vae()
    name, p = list(vae.named_parameters())[3]
    nn.init.constant_(p, math.nan)
    error, _ = broken(vae)
    assert error.step == 1 and error.parameter == name


def test_running_statistics_are_those_of_the_last_good_step():
    vae = cases.vae(decoder=Breaks(5, normalize=True))
    error, _ = broken(vae)
    assert error.step == 5
    buffers = dict(vae.named_buffers())
    norm = next(m for m in vae.modules() if isinstance(m, nn.BatchNorm1d))
    assert int(norm.num_batches_tracked) == 4
    assert all(bool(b.isfinite().all()) for b in buffers.values())


def test_latent_whose_density_overflows():
    """Two finite experts, whose draws are too far from the prior for its density."""
    vae = cases.vae(prior_expert=False)
    for encoder in vae.guide.encoders["z"].values():
        encoder.register_forward_hook(lambda m, args, out: dist.Normal(out.mean + 1e25, 1.0).to_event(1))
    error, _ = broken(vae)
    assert error.site == "z" and error.modality is None
    assert "model's log-density at site 'z' is -inf in 16 of 16 rows" in str(error)


def test_validation_loss():
    class EvalOnly(Breaks):
        def forward(self, x):
            fn = super().forward(x)
            broken = self.count and not self.training
            return dist.Normal(fn.mean * math.nan, 1.0).to_event(1) if broken else fn

    vae = cases.vae(decoder=EvalOnly(math.inf))
    error, after = broken(vae, validation=cases.data(5))
    assert (error.step, error.epoch, error.modality) == (3, 1, "b")
    assert cases.differing(cases.weights(vae), after[-1]) == []


def test_other_errors_stay_what_they_are():
    class Wrong(Breaks):
        def forward(self, x):
            raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        fit(cases.vae(decoder=Wrong(9)), cases.data(), **OPTIONS)


def test_random_state_and_validation_are_left_as_found():
    vae = cases.vae(decoder=Breaks(2))
    before = torch.get_rng_state()
    broken(vae)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.param_store
def test_stock_elbo():
    vae = cases.vae(decoder=Breaks(4))
    vae = mm.MultimodalVAE(vae.model, vae.guide, pyro.infer.Trace_ELBO())
    with pytest.raises(TrainingDiverged) as error:
        fit(vae, cases.data(hidden=0.0), **OPTIONS)
    assert error.value.modality == "b"
    assert error.value.step == 4
