"""Rows around a global mean, linear and Gaussian: the model, written in two ways, and everything known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.stories import data_plate

B = 6
SCALES = {"x": 0.5, "y": 0.7}
SEEN = {"x": torch.tensor([1, 1, 1, 0, 0, 1]).bool(), "y": torch.tensor([1, 0, 1, 0, 1, 1]).bool()}


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Data with NaN where nothing is observed, and the masks; the fourth row is empty."""
    data = {m: torch.where(SEEN[m], torch.randn(B) + 0.8, torch.nan) for m in SCALES}
    return data, dict(SEEN)


def observed_model(size: int | None = None) -> Any:
    """mu ~ N(0, 1); z_n ~ N(mu, 1); x_nm ~ N(z_n, s_m), with the handler."""

    def model(data: Any, obs_mask: Any = None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with data_plate(len(data["x"]), size), mm.handlers.observe(data, obs_mask, tuple(SCALES)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            for m, s in SCALES.items():
                pyro.sample(m, dist.Normal(z, s))

    return model


def native_model(size: int | None = None) -> Any:
    """The same with Pyro's own ``obs_mask``."""

    def model(data: Any, obs_mask: Any = None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with data_plate(len(data["x"]), size):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            for m, s in SCALES.items():
                mask = None if obs_mask is None else obs_mask[m]
                pyro.sample(m, dist.Normal(z, s), obs=data[m], obs_mask=mask)

    return mm.handlers.marginalize_missing(model)


MODELS = {"handler": observed_model, "obs_mask": native_model}


def precision(obs_mask: Mapping[str, Tensor]) -> Tensor:  # shape: (B,)
    """Of what a row says about its z."""
    return sum(seen.double() / SCALES[m] ** 2 for m, seen in obs_mask.items())  # type: ignore[return-value]


def weighted(data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> Tensor:  # shape: (B,)
    """Sum of observations over their variances."""
    return sum(torch.where(seen, data[m], 0.0) / SCALES[m] ** 2 for m, seen in obs_mask.items())  # type: ignore[return-value]


def conditional(data: Any, obs_mask: Any, mu: Any) -> dist.Normal:
    """p(z | mu, x_O)."""
    tau = 1 + precision(obs_mask)
    return dist.Normal((mu + weighted(data, obs_mask)) / tau, tau**-0.5)


def evidence(data: Any, obs_mask: Any, mu: Any) -> Tensor:  # shape: (B,)
    """log p(x_O | mu) of every row, by Bayes' rule at z = 0."""
    zero = torch.zeros(())
    total = dist.Normal(mu, 1.0).log_prob(zero) - conditional(data, obs_mask, mu).log_prob(zero)
    for m, seen in obs_mask.items():
        total = total + torch.where(seen, dist.Normal(0.0, SCALES[m]).log_prob(torch.where(seen, data[m], 0.0)), 0.0)
    return total


def whole(data: Any, obs_mask: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and scale of p(mu | x_O), and log p(x_O) of all rows, from the joint covariance of what is observed."""
    rows, noise, values = [], [], []
    for m, seen in obs_mask.items():
        rows.append(seen.nonzero().squeeze(-1))
        noise.append(torch.full((int(seen.sum()),), SCALES[m] ** 2))
        values.append(data[m][seen])
    row, x = torch.cat(rows), torch.cat(values)
    cov = 1 + (row.unsqueeze(-1) == row).double() + torch.cat(noise).diag()
    ones = torch.ones(len(x))
    gain = torch.linalg.solve(cov, ones)
    log_p = dist.MultivariateNormal(torch.zeros(len(x)), cov).log_prob(x)
    return gain @ x, (1 - gain @ ones).sqrt(), log_p


class Rows(nn.Module):
    """q(z | mu, x_O), exact or moved; mu is what the guide of the global site drew."""

    def __init__(self, of_data_set: Any, shift: float = 0.0, size: int | None = None) -> None:
        super().__init__()
        self.of_data_set, self.shift, self.size = of_data_set, nn.Parameter(torch.tensor(shift)), size

    def forward(self, data: Any, obs_mask: Any = None) -> None:
        mu = self.of_data_set(data, obs_mask)["mu"]
        masks = dict.fromkeys(SCALES, torch.ones(len(data["x"])).bool()) if obs_mask is None else obs_mask
        masks = {m: masks[m] for m in SCALES}
        with data_plate(len(data["x"]), self.size):
            exact = conditional(data, masks, mu)
            pyro.sample("z", dist.Normal(exact.loc + self.shift, exact.scale))
