"""A mixture: an enumerated class, a continuous latent around its center, a real and a count modality.

Layer: stories.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.stories.examples.example import Example, fix, generator, normal

__all__ = ["DiscreteMixture"]


class DiscreteMixture(Example):
    r"""
    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c \sim N(\mu_c, 0.6^2 I_2), \quad
        x \mid z \sim N(W z + b, 0.5^2 I), \quad n_d \mid c \sim \mathrm{Poisson}(\lambda_{cd})

    Four classes at the corners of a tilted square; modalities "expression" (x, 4 features) and "counts" (n, 3); single
    cells may be missing. The site ``kind`` (c) is marked for enumeration. Exact for every mask, as a sum over classes:

    .. math:: p(x_O, n_O) = \sum_c \pi_c \, N(x_O; W_O \mu_c + b_O, 0.36 \, W_O W_O^\top + 0.25 I)
        \prod_{d \in O} \mathrm{Poisson}(n_d; \lambda_{cd})

    Example::

        >>> sorted(DiscreteMixture().simulate(50).data)
        ['counts', 'expression']

    :param seed: of W, b and the rates.
    """

    modalities = ("expression", "counts")
    cells = 0.1
    spread, noise = 0.6, 0.5

    logits: Tensor
    centers: Tensor
    weights: Tensor
    bias: Tensor
    rates: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = generator(seed)
        fix(
            self,
            logits=torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64, device="cpu").log(),
            centers=torch.tensor([[-1.2, -0.8], [0.8, -1.2], [1.2, 0.8], [-0.8, 1.2]], device="cpu"),  # shape: (C, D)
            weights=normal(rng, 4, 2),  # shape: (F, D)
            bias=normal(rng, 4),
            rates=2.0 * normal(rng, 4, 3).exp(),  # shape: (C, 3)
        )

    def forward(self) -> None:
        """One sample."""
        c = pyro.sample("kind", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(self.centers[c], self.spread).to_event(1))
        pyro.sample("expression", dist.Normal(z @ self.weights.mT + self.bias, self.noise).to_event(1))
        pyro.sample("counts", dist.Poisson(self.rates[c]).to_event(1))
