"""Stories and guides whose answers are known, for the tests of inference.

Test layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.distributions import Lazy
from tests.oracles.linear_gaussian import LinearGaussian


class LinearStory(nn.Module):
    """The linear-Gaussian model as a story, its likelihoods lazy; ``calls`` counts the networks that ran."""

    def __init__(self, truth: LinearGaussian) -> None:
        super().__init__()
        self.truth, self.calls = truth, dict.fromkeys(truth.modalities, 0)
        self.dtype_of = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def likelihood(self, name: str, z: Tensor) -> Lazy:
        def run(z: Tensor) -> dist.TorchDistribution:
            self.calls[name] += 1
            loc = z @ self.truth.weights[name].T + self.truth.bias[name]
            return dist.Normal(loc, self.truth.noise[name]).to_event(1)

        shape = self.truth.bias[name].shape
        return Lazy(run, z, event_shape=shape, support=dist.constraints.real_vector)

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(*self.truth.prior).to_event(1))
        for name in self.truth.modalities:
            pyro.sample(name, self.likelihood(name, z))


class ExactGuide(nn.Module):
    """A guide written by hand: the exact posterior's mean and scales, moved and stretched."""

    def __init__(self, truth: LinearGaussian, shift: float = 0.0, stretch: float = 1.0) -> None:
        super().__init__()
        self.truth, self.shift, self.stretch = truth, shift, stretch

    def forward(self, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        loc, cov = self.truth.posterior(data, obs_mask)
        with pyro.plate("data", len(loc), dim=-1):
            if self.truth.latent_dim == 1:  # the family holds the exact posterior
                scale = self.stretch * cov[..., 0].sqrt()
                pyro.sample("z", dist.Normal(loc + self.shift, scale).to_event(1))
            else:
                tril = torch.linalg.cholesky(cov) * self.stretch
                pyro.sample("z", dist.MultivariateNormal(loc + self.shift, scale_tril=tril))


def linear_pair(
    truth: LinearGaussian, shift: float = 0.0, stretch: float = 1.0
) -> tuple[mm.stories.ObservedModel, ExactGuide]:
    """Model and guide of one truth."""
    return mm.observe(LinearStory(truth), truth.modalities), ExactGuide(truth, shift, stretch)


class Clusters(nn.Module):
    """A cluster c, enumerated; z around its center, x around z; y around its level; a label from a table."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.4, 0.7, 0.1][:classes]))
        self.centers = nn.Parameter(torch.tensor([-2.0, 0.5, 2.5, 5.0][:classes]))
        self.levels = nn.Parameter(torch.tensor([1.0, -1.5, 0.3, 2.0][:classes]))
        self.table = nn.Parameter(torch.randn(classes, classes, generator=torch.Generator().manual_seed(5)) * 2)

    def forward(self) -> None:
        c = pyro.sample("c", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(self.centers[c], 0.8))
        pyro.sample("x", dist.Normal(z, 0.6))
        pyro.sample("y", dist.Normal(self.levels[c], 0.5))
        pyro.sample("label", dist.Categorical(logits=self.table[c]))

    def log_joint(self, data: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:  # shape: (B, C)
        """log p(x_O, c), z integrated in closed form."""
        total = self.logits.log_softmax(-1)
        scale = torch.tensor(0.8**2 + 0.6**2).sqrt().to(self.logits)
        x = dist.Normal(self.centers, scale).log_prob(data["x"].unsqueeze(-1))
        y = dist.Normal(self.levels, 0.5).log_prob(data["y"].unsqueeze(-1))
        label = self.table.log_softmax(-1).T[data["label"].long()]
        parts = {"x": x, "y": y, "label": label}
        return total + sum(torch.where(masks[m].unsqueeze(-1), part, 0.0) for m, part in parts.items())


class ClusterGuide(nn.Module):
    """q(z | x): broad, and without the label."""

    def forward(self, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        x = torch.where(obs_mask["x"], data["x"], 0.5)
        scale = torch.where(obs_mask["x"], 0.7, 3.0).to(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, scale))
