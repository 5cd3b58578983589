"""Gene counts with library size and dropouts beside protein levels, measured in two batches.

Layer: stories.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.stories.examples.example import Example, fix, generator, normal, uniform

__all__ = ["ZINB"]


class ZINB(Example):
    r"""
    .. math:: z \sim N(0, I_2), \quad \ell \sim \mathrm{LogNormal}(\log 60, 0.5^2), \quad
        \rho = \mathrm{softmax}(A z + a + \delta_{batch}), \\
        n_g \mid z, \ell \sim \mathrm{ZINB}(\ell \rho_g, \theta_g, \gamma_g), \qquad y \mid z \sim N(W z + w, 0.7^2 I)

    Latents ``z`` and ``library``; modalities "rna" (n, 6 genes) and "protein" (y, 3 features); single cells may be
    missing; the covariate ``batch``, int64 0 or 1, shifts the genes. With probability :math:`\gamma_g` a count is 0,
    else it is negative binomial with mean :math:`\mu = \ell \rho_g` and variance :math:`\mu + \mu^2 / \theta_g`. No
    closed form: log p(x_O) is an integral over three standard normal variables, by quadrature.

    Example::

        >>> sorted(ZINB().simulate(50).data)
        ['batch', 'protein', 'rna']

    :param seed: of A, a, :math:`\delta, \theta, \gamma`, W and w.
    """

    modalities = ("rna", "protein")
    cells = 0.1
    library_loc, library_scale, protein_scale = math.log(60.0), 0.5, 0.7

    genes: Tensor
    gene_bias: Tensor
    shift: Tensor
    dispersion: Tensor
    gate: Tensor
    weights: Tensor
    bias: Tensor
    prior_loc: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = generator(seed)
        fix(
            self,
            genes=0.7 * normal(rng, 6, 2),  # shape: (G, D)
            gene_bias=0.5 * normal(rng, 6),
            shift=torch.stack([torch.zeros(6, dtype=torch.float64, device="cpu"), 0.5 * normal(rng, 6)]),
            dispersion=3 + 7 * uniform(rng, 6),
            gate=0.05 + 0.2 * uniform(rng, 6),
            weights=0.7 * normal(rng, 3, 2),  # shape: (F, D)
            bias=normal(rng, 3),
            prior_loc=torch.zeros(2, device="cpu"),
        )

    def given(self, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"batch": torch.randint(2, (n,), generator=rng, device="cpu")}

    def forward(
        self,
        batch: Tensor,  # shape: (*batch,), int64
    ) -> None:
        """One sample."""
        z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
        library = pyro.sample("library", dist.LogNormal(z.new_tensor(self.library_loc), self.library_scale))
        share = z @ self.genes.mT + self.gene_bias + self.shift[batch]
        logits = library.log().unsqueeze(-1) + share.log_softmax(-1) - self.dispersion.log()
        counts = dist.ZeroInflatedNegativeBinomial(self.dispersion, logits=logits, gate=self.gate)
        pyro.sample("rna", counts.to_event(1))
        pyro.sample("protein", dist.Normal(z @ self.weights.mT + self.bias, self.protein_scale).to_event(1))
