"""A table of mixed columns: real, binary, categorical and ordinal, behind them two Gaussian factors.

Layer: stories.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.stories.examples.example import Example, fix, generator, normal

__all__ = ["MixedTable"]


class MixedTable(Example):
    r"""
    .. math:: z \sim N(0, I_2), \qquad h = V z + v, \\
        lab_d \sim N(h_d, 0.6^2), \quad flags_d \sim \mathrm{Bernoulli}(\sigma(h_d)), \quad
        kind \sim \mathrm{Cat}(\mathrm{softmax}(h)), \quad p(stage \le c) = \sigma(\tau_c - h)

    Modalities "lab" (3 real columns), "flags" (3 binary ones), "kind" (4 classes, shape ``()``) and "stage" (4 ordered
    classes, shape ``()``), each with its own V and v; single cells may be missing. No closed form, but every factor is
    log-concave in z: log p(x_O) by quadrature in two dimensions.

    Example::

        >>> ds = MixedTable().simulate(50)
        >>> {m: tuple(x.shape[1:]) for m, x in ds.data.items()}
        {'lab': (3,), 'flags': (3,), 'kind': (), 'stage': ()}

    :param seed: of V and v.
    """

    sizes = {"lab": 3, "flags": 3, "kind": 4, "stage": 1}  # of h
    modalities = tuple(sizes)
    cells = 0.1
    noise = 0.6

    weights: Tensor
    bias: Tensor
    cut_points: Tensor
    prior_loc: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng, outputs = generator(seed), sum(self.sizes.values())
        fix(
            self,
            weights=normal(rng, outputs, 2),  # shape: (H, D)
            bias=0.5 * normal(rng, outputs),
            cut_points=torch.tensor([-1.5, 0.0, 1.5], device="cpu"),
            prior_loc=torch.zeros(2, device="cpu"),
        )

    def forward(self) -> None:
        """One sample."""
        z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
        lab, flags, kind, stage = (z @ self.weights.mT + self.bias).split(list(self.sizes.values()), -1)
        pyro.sample("lab", dist.Normal(lab, self.noise).to_event(1))
        pyro.sample("flags", dist.Bernoulli(logits=flags).to_event(1))
        pyro.sample("kind", dist.Categorical(logits=kind))
        pyro.sample("stage", dist.OrderedLogistic(stage.squeeze(-1), self.cut_points))
