"""Stories with known posteriors for the guides made from stories.

Test layer: closed forms in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_mmvae as mm

Data, Masks = dict[str, Tensor], dict[str, Tensor]


class Factors(nn.Module):
    """z -> a, b: a linear-Gaussian story with correlated posteriors."""

    def __init__(self, latent: int = 3) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(6, latent))

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(self.weight.new_zeros(self.weight.shape[1]), 1.0).to_event(1))
        a, b = (z @ self.weight.T).split([4, 2], -1)
        pyro.sample("a", dist.Normal(a, 0.6).to_event(1))
        pyro.sample("b", dist.Normal(b, 0.6).to_event(1))


def exact(weight: Tensor, x: Tensor, seen: Tensor, scale: float = 0.6) -> Tensor:  # shape: (B,)
    """log p(x_O) of :class:`Factors`, row by row."""
    out = []
    for row, mask in zip(x, seen, strict=True):
        w = weight[mask]
        cov = w @ w.T + scale**2 * torch.eye(len(w))
        out.append(dist.MultivariateNormal(torch.zeros(len(w)), cov).log_prob(row[mask]) if len(w) else row.sum() * 0)
    return torch.stack(out)


def linear_gaussian() -> tuple[Any, Data, Masks]:
    model = mm.observe(Factors(), ("a", "b"))
    obs_mask: Masks = {"a": torch.rand(64, 4) > 0.3, "b": torch.rand(64) > 0.4}
    with torch.no_grad():
        data = mm.inference.generate(model, None, 64)
    return model, data, obs_mask


def gap(model: Any, guide: Any, data: Any, obs_mask: Any, log_p: Tensor, particles: int = 200) -> Tensor:
    """log p(x_O) minus the bound, per row."""
    with torch.no_grad():
        return log_p - mm.ELBO(num_particles=particles, kl="sampled").per_sample(model, guide, data, obs_mask)


def trained(model: Any, guide: Any, draw: Callable[[], tuple[Data, Masks]], steps: int, loss: Any = None) -> None:
    loss = mm.ELBO() if loss is None else loss
    optimizer = torch.optim.Adam(guide.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        data, obs_mask = draw()
        optimizer.zero_grad()
        (loss.differentiable_loss(model, guide, data, obs_mask) / len(next(iter(data.values())))).backward()
        optimizer.step()
        schedule.step()


class Chain(nn.Module):
    """z1 -> z2 -> x, and w private to y, with z1 -> y."""

    def forward(self) -> None:
        one = pyro.sample("z1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        two = pyro.sample("z2", dist.Normal(one.sin(), 0.5).to_event(1))
        w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(two, 0.3).to_event(1))
        pyro.sample("y", dist.Normal(one + w, 0.3).to_event(1))
