"""posterior: the guide's distribution, marginal also where latents depend on each other."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.inference import posterior
from tests.inference.programs import LinearStory, linear_pair
from tests.oracles.cases import make_case

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_exact_guide(modalities, per_feature):
    case = make_case(modalities, 2, per_feature=per_feature)
    model, guide = linear_pair(case.model)
    q = posterior(model, guide, case.data, case.obs_mask)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    assert q.batch_shape == (len(case.sets),) and q.event_shape == (2,)
    torch.testing.assert_close(q.mean, loc)
    z = q.sample((5,))
    exact = torch.distributions.MultivariateNormal(loc, cov).log_prob(z)
    torch.testing.assert_close(q.log_prob(z), exact)


def test_given_hides_the_rest():
    case = make_case(3, 2)
    model, guide = linear_pair(case.model)
    q = posterior(model, guide, case.data, case.obs_mask, given={"a", "c"})
    masks = {m: mask & (m != "b") for m, mask in case.obs_mask.items()}
    torch.testing.assert_close(q.mean, case.model.posterior(case.data, masks)[0])


def test_library_product_has_the_closed_form():
    """With likelihood-shaped experts and the prior the product is exact for one latent dimension."""
    case = make_case(3, 1)

    class Expert(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.w, self.b, self.s = case.model.weights[name][:, 0], case.model.bias[name], case.model.noise[name]

        def forward(self, x):
            precision = (self.w**2 / self.s**2).sum()
            loc = ((x - self.b) @ (self.w / self.s**2) / precision).unsqueeze(-1)
            return dist.Normal(loc, (precision**-0.5).expand(loc.shape)).to_event(1)

    model = mm.observe(LinearStory(case.model), case.model.modalities)
    guide = mm.guides.Product(model, {m: Expert(m) for m in case.model.modalities})
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    q = posterior(model, guide, case.data, case.obs_mask)
    torch.testing.assert_close(q.mean, loc)
    torch.testing.assert_close(q.variance, cov[..., 0])
    blocks = posterior(model, guide, case.data, case.obs_mask, batch_size=3)
    assert blocks.batch_shape == (8,)
    torch.testing.assert_close(blocks.mean, q.mean)
    z = q.rsample((2,))
    torch.testing.assert_close(blocks.log_prob(z), q.log_prob(z))
    assert blocks.sample((4,)).shape == (4, 8, 1) and not q.mean.requires_grad


class Levels(nn.Module):
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1), and a private latent."""

    def forward(self) -> None:
        top = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        low = pyro.sample("z1", dist.Normal(top, 1.0).to_event(1))
        own = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(low + 0 * own, 1.0).to_event(1))


def levels_guide(data, obs_mask):
    """Exact, top-down: z2 | x ~ N(x / 3, 2 / 3), z1 | z2, x ~ N((z2 + x) / 2, 1 / 2)."""
    x = data["x"]
    with pyro.plate("data", len(x)):
        top = pyro.sample("z2", dist.Normal(x / 3, (2 / 3) ** 0.5).to_event(1))
        pyro.sample("z1", dist.Normal((top + x) / 2, 0.5**0.5).to_event(1))
        pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))


def test_dependent_latents_are_marginal():
    model = mm.observe(Levels(), ("x",), private={"w": "x"})
    data = {"x": torch.tensor([[3.0], [-1.5]])}
    found = posterior(model, levels_guide, data, latents="all", num_samples=1000)
    assert set(found) == {"z2", "z1", "w"} and isinstance(found["z2"].base_dist, dist.Normal)
    q = found["z1"]
    exact = dist.Normal(2 * data["x"] / 3, (2 / 3) ** 0.5)  # p(z1 | x)
    assert q.batch_shape == (2,) and q.event_shape == (1,)
    torch.testing.assert_close(q.mean, exact.mean, atol=4 * (1 / 6 / 1000) ** 0.5, rtol=0)
    grid = torch.linspace(-1, 3, 9).reshape(-1, 1, 1).expand(9, 2, 1)
    torch.testing.assert_close(q.log_prob(grid).exp(), exact.log_prob(grid)[..., 0].exp(), atol=0.04, rtol=0)
    assert abs(q.sample((1000,)).std(0) - exact.scale).max() < 0.1
    one = posterior(model, levels_guide, data, latents="z2")
    torch.testing.assert_close(one.mean, data["x"] / 3)


def test_several_shared_latents_must_be_chosen():
    model = mm.observe(Levels(), ("x",), private={"w": "x"})
    data = {"x": torch.zeros(2, 1)}
    with pytest.raises(ValueError, match=r"2 shared latents, \['z2', 'z1'\].*latents='all'"):
        posterior(model, levels_guide, data)
    with pytest.raises(ValueError, match=r"'nope' is no latent of the guide"):
        posterior(model, levels_guide, data, latents="nope")


def test_bad_options():
    case = make_case(2)
    model, guide = linear_pair(case.model)
    with pytest.raises(ValueError, match="known are"):
        posterior(model, guide, case.data, case.obs_mask, given={"z"})
    with pytest.raises(ValueError, match="num_samples"):
        posterior(model, guide, case.data, case.obs_mask, num_samples=0)
