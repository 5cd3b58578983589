"""Two positive rates behind the counts of two modalities.

Layer: stories.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.stories.examples.example import Example, fix, generator, uniform

__all__ = ["GammaPoisson"]


class GammaPoisson(Example):
    r"""
    .. math:: r_k \sim \mathrm{Gamma}(a_k, b_k), \quad k = 1, 2, \qquad
        x_{md} \mid r \sim \mathrm{Poisson}(e_{md} \, r_{k(m, d)})

    The latent ``rates`` is positive; modalities "visits" and "calls" of three counts each, of both rates; single cells
    may be missing. Exact for every mask, by conjugacy:

    .. math:: r_k \mid x_O \sim \mathrm{Gamma}\Bigl(a_k + \sum_{O, k} x, \; b_k + \sum_{O, k} e\Bigr)

    Example::

        >>> GammaPoisson().simulate(50).data["visits"].shape
        torch.Size([50, 3])

    :param seed: of the exposures e.
    """

    modalities = ("visits", "calls")
    cells = 0.1

    concentration: Tensor
    rate: Tensor
    exposure: Tensor
    group: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        fix(
            self,
            concentration=torch.tensor([2.0, 3.5], device="cpu"),
            rate=torch.tensor([1.0, 0.8], device="cpu"),
            exposure=0.5 + 1.5 * uniform(generator(seed), 6),
            group=torch.tensor([0, 0, 1, 1, 1, 0], device="cpu"),  # k(m, d), "visits" first
        )

    def forward(self) -> None:
        """One sample."""
        rates = pyro.sample("rates", dist.Gamma(self.concentration, self.rate).to_event(1))
        expected = self.exposure * rates[..., self.group]
        for m, mean in zip(self.modalities, expected.split(3, -1), strict=True):
            pyro.sample(m, dist.Poisson(mean).to_event(1))
