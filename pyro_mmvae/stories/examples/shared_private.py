"""A shared latent, and a private one of each modality.

Layer: stories.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.stories.examples.example import Example, fix, generator, normal, uniform

__all__ = ["SharedPrivate"]


class SharedPrivate(Example):
    r"""
    .. math:: z \sim N(0, I_2), \quad w_m \sim N(0, I), \quad
        x_m \mid z, w_m \sim N(A_m z + B_m w_m + b_m, \mathrm{diag}(s_m^2))

    Modalities "image" (4 features, ``w_image`` in R^2) and "sound" (3 features, ``w_sound`` in R^1), real; single
    cells may be missing. Exact for every mask: all is jointly normal, and given x_O the shared and the private latents
    are correlated.

    Example::

        >>> story = SharedPrivate()
        >>> story.observed().private
        {'w_image': 'image', 'w_sound': 'sound'}

    :param seed: of A, B, b and s.
    """

    modalities = ("image", "sound")
    private = {"w_image": "image", "w_sound": "sound"}
    cells = 0.1

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = generator(seed)
        fix(self, prior_loc=torch.zeros(2, device="cpu"))
        for m, features, own in (("image", 4, 2), ("sound", 3, 1)):
            fix(
                self,
                **{
                    f"shared_{m}": 0.8 * normal(rng, features, 2),
                    f"private_{m}": 0.8 * normal(rng, features, own),
                    f"bias_{m}": normal(rng, features),
                    f"noise_{m}": 0.4 + 0.4 * uniform(rng, features),
                    f"private_loc_{m}": torch.zeros(own, device="cpu"),
                },
            )

    def of(self, what: str, modality: str) -> Tensor:
        """A parameter of a modality: "shared", "private", "bias", "noise" or "private_loc"."""
        return self.get_buffer(f"{what}_{modality}")

    def forward(self) -> None:
        """One sample."""
        z = pyro.sample("z", dist.Normal(self.get_buffer("prior_loc"), 1.0).to_event(1))
        for m in self.modalities:
            w = pyro.sample(f"w_{m}", dist.Normal(self.of("private_loc", m), 1.0).to_event(1))
            loc = z @ self.of("shared", m).mT + w @ self.of("private", m).mT + self.of("bias", m)
            pyro.sample(m, dist.Normal(loc, self.of("noise", m)).to_event(1))
