"""Factor analysis: one Gaussian latent behind three real modalities.

Layer: stories.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.stories.examples.example import Example, fix, generator, normal, uniform

__all__ = ["FactorAnalysis"]


class FactorAnalysis(Example):
    r"""
    .. math:: z \sim N(0, I_4), \qquad x_m \mid z \sim N(W_m z + b_m, \mathrm{diag}(s_m^2))

    Modalities "tests" (5 features), "survey" (4) and "sensors" (3), all real; single cells may be missing.
    Exact for every mask: :math:`x_O \sim N(b_O, W_O W_O^\top + S_O^2)`, and p(z | x_O) is normal with full covariance.

    Example::

        >>> story = FactorAnalysis()
        >>> ds = story.simulate(100)
        >>> {m: tuple(x.shape) for m, x in ds.data.items()}
        {'tests': (100, 5), 'survey': (100, 4), 'sensors': (100, 3)}

    :param seed: of W, b and s.
    """

    sizes = {"tests": 5, "survey": 4, "sensors": 3}
    modalities = tuple(sizes)
    cells = 0.1

    weights: Tensor
    bias: Tensor
    noise: Tensor
    prior_loc: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng, features = generator(seed), sum(self.sizes.values())
        fix(
            self,
            weights=0.7 * normal(rng, features, 4),  # shape: (F, D)
            bias=normal(rng, features),
            noise=0.5 + 0.5 * uniform(rng, features),
            prior_loc=torch.zeros(4, device="cpu"),
        )

    def forward(self) -> None:
        """One sample."""
        z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
        sizes = list(self.sizes.values())
        locs, scales = (z @ self.weights.mT + self.bias).split(sizes, -1), self.noise.split(sizes)
        for m, loc, scale in zip(self.modalities, locs, scales, strict=True):
            pyro.sample(m, dist.Normal(loc, scale).to_event(1))
