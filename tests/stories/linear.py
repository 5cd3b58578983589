"""Linear-Gaussian stories and guides built from the oracles' models, and noise under which means are exact.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from tests.oracles.linear_gaussian import LinearGaussian


class LinearExpert(nn.Module):
    """x -> N(A x + c, diag scale^2), parameters given."""

    def __init__(self, matrix: Tensor, offset: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.matrix, self.offset = nn.Parameter(matrix.clone()), nn.Parameter(offset.clone())
        self.log_scale = nn.Parameter(scale.log())

    def forward(self, x: Tensor) -> Any:
        loc = x @ self.matrix.T + self.offset
        return dist.Normal(loc, self.log_scale.exp().expand(loc.shape)).to_event(1)


def linear_story(model: LinearGaussian) -> Callable[[], None]:
    """The oracle's model as a program of one sample."""

    def story() -> None:
        z = pyro.sample("z", dist.Normal(*model.prior).to_event(1))
        for m in model.modalities:
            loc = z @ model.weights[m].T + model.bias[m]
            pyro.sample(m, dist.Normal(loc, model.noise[m]).to_event(1))

    return story


def experts(model: LinearGaussian, shift: float = 0.5, stretch: float = 1.5) -> dict[str, nn.Module]:
    """The oracle's p(z | x_m), made wrong on purpose, as encoders."""
    return {m: LinearExpert(*model.expert(m, shift, stretch)) for m in model.modalities}


def likelihood_encoders(model: LinearGaussian) -> dict[str, nn.Module]:
    """q_m proportional to p(x_m | z), one latent dimension: with the prior their product is the exact posterior."""
    found = {}
    for m, weight in model.weights.items():
        w, precision = weight[:, 0], model.noise[m] ** -2
        total = (w**2 * precision).sum()
        matrix = (w * precision / total).unsqueeze(0)
        found[m] = LinearExpert(matrix, -(matrix @ model.bias[m]), total.rsqrt().reshape(1))
    return found


def sigma_points(
    sizes: Mapping[str, int],
    middle: int = 1,
) -> dict[str, Tensor]:  # shapes: (2 n, 1, ..., 1, D)
    """
    Noise for each site: 2 n particles +-sqrt(n) e_i over all latent dimensions together.

    The mean over these particles equals the expectation for every function that is quadratic in the draws, so linear
    Gaussian terms come out exact.

    :param middle: dimensions between particles and event: terms, the story's plates, data.
    """
    n = sum(sizes.values())
    points = torch.cat([torch.eye(n), -torch.eye(n)]) * n**0.5
    found, start = {}, 0
    for site, size in sizes.items():
        part = points[:, start : start + size]
        found[site] = part.reshape((2 * n,) + (1,) * middle + (size,))
        start += size
    return found


def subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All sets of modalities, the empty one first."""
    return [tuple(m for i, m in enumerate(names) if k >> i & 1) for k in range(2 ** len(names))]


def masks_of(kept: tuple[str, ...], obs_mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``obs_mask`` with everything outside ``kept`` unobserved."""
    return {m: mask if m in kept else torch.zeros_like(mask) for m, mask in obs_mask.items()}
