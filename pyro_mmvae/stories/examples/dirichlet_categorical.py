"""A vector of class shares behind the labels of two modalities.

Layer: stories.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyro_mmvae.stories.examples.example import Example, fix, generator, uniform

__all__ = ["DirichletCategorical"]


class DirichletCategorical(Example):
    r"""
    .. math:: s \sim \mathrm{Dirichlet}(\alpha), \qquad x_{md} \mid s \sim \mathrm{Cat}(s)

    The latent ``share`` lives on the simplex of four classes; modalities "votes" (8 labels) and "picks" (4 labels),
    int64; single labels may be missing. Exact for every mask, by conjugacy, with n_O the counts of the labels seen:

    .. math:: s \mid x_O \sim \mathrm{Dirichlet}(\alpha + n_O), \qquad p(x_O) = B(\alpha + n_O) / B(\alpha)

    Example::

        >>> DirichletCategorical().simulate(50).data["votes"].shape
        torch.Size([50, 8])

    :param seed: of alpha.
    """

    sizes = {"votes": 8, "picks": 4}
    modalities = tuple(sizes)
    cells = 0.1

    concentration: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        fix(self, concentration=1.0 + 2.0 * uniform(generator(seed), 4))

    def forward(self) -> None:
        """One sample."""
        share = pyro.sample("share", dist.Dirichlet(self.concentration))
        for m, size in self.sizes.items():
            probs = share.unsqueeze(-2).expand(*share.shape[:-1], size, 4)
            pyro.sample(m, dist.Categorical(probs).to_event(1))
