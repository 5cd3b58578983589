"""What native models and their guides cannot do says so, with the way out."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_mmvae as mm
from tests.native.problem import SEEN, B, batch, observed_model

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]



def test_refusals() -> None:
    data, obs_mask = batch()
    model = observed_model()
    with pytest.raises(NotImplementedError, match=r"'z_unconstrained' is auxiliary.*expose=.*WithGlobals"):
        mm.ELBO().differentiable_loss(model, AutoNormal(model), data, obs_mask)
    with pytest.raises(ValueError, match=r"'z_unconstrained' is auxiliary.*WithGlobals"):
        mm.inference.log_likelihood(model, AutoNormal(model), data, obs_mask)

    def other_name(data: Any, obs_mask: Any) -> None:
        pyro.sample("nu", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"'nu' is no latent of the model; its latents are \['z'\] inside .*\['mu'\]"):
        mm.ELBO().differentiable_loss(model, other_name, data, obs_mask)

    def with_factor(data: Any, obs_mask: Any) -> None:
        with pyro.plate("data", B):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("extra", torch.zeros(B), has_rsample=True)

    with pytest.raises(NotImplementedError, match=r"guide sites \['extra'\] are observed or factors.*Fix"):
        mm.ELBO().differentiable_loss(model, with_factor, data, obs_mask)


@pytest.mark.parametrize(
    ("plate", "message"),
    [
        (lambda: pyro.plate("rows", B), r"outside a plate named 'data' \(its plates: \['rows'\]\).*Fix"),
        (lambda: pyro.plate("data", B, dim=-2), r"plate 'data' has dim -2, expected -1.*Fix"),
        (lambda: pyro.plate("data", B, subsample_size=3), r"plate 'data' has 3 rows, the data 6.*Fix"),
    ],
)
def test_plates_that_are_no_rows(plate: Any, message: str) -> None:
    data = {"x": torch.zeros(B)}

    def model(data: Any, obs_mask: Any) -> None:
        with plate(), mm.handlers.observe({}, None, ["x"]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0))

    with pytest.raises(ValueError, match=message):
        mm.ELBO().differentiable_loss(model, lambda data, obs_mask: None, data, None)


def test_a_site_that_is_not_named_like_its_data() -> None:
    def model(data: Any, obs_mask: Any) -> None:
        with pyro.plate("data", B):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("rna", dist.Normal(z, 1.0), obs=data["x"], obs_mask=obs_mask["x"])

    with pytest.raises(ValueError, match=r"site 'rna' is observed, but data has no key 'rna'; it has \['x'\].*Fix"):
        mm.ELBO().loss(mm.handlers.marginalize_missing(model), model, {"x": torch.zeros(B)}, {"x": SEEN["x"]})
