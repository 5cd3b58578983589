"""Patients in hospitals: effects of the hospitals that all patients share, and a latent of each patient.

Layer: stories.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.handlers.observe import ObserveMessenger
from pyro_mmvae.masks import batch_size
from pyro_mmvae.stories.examples.example import fix, generator, hidden, normal, simulated, uniform
from pyro_mmvae.stories.observed import data_plate

__all__ = ["Hospitals"]


class Hospitals(nn.Module):
    r"""
    A native model, with its own plate ``data`` and global latents outside it.

    .. math:: \mu \sim N(0, 1), \quad u_h \mid \mu \sim N(\mu, 0.7^2), \; h = 1 \dots 5, \\
        z_n \sim N(0, I_2), \qquad x_{nm} \mid z, u \sim N(W_m z_n + v_m u_{h(n)} + b_m, \mathrm{diag}(s_m^2))

    Global sites ``mean`` and ``effects``, of shape ``()`` and ``(5,)``; modalities "blood" and "scan", three real
    features each; single cells may be missing; the covariate ``hospital``, int64 0 to 4. Exact for every mask: all is
    jointly normal. Rows are dependent, so that the exact number is log p of the whole data set.

    Example::

        >>> model = Hospitals()
        >>> ds = model.simulate(20)
        >>> trace = pyro.poutine.trace(model).get_trace(ds.data, ds.obs_mask)
        >>> trace.nodes["effects"]["value"].shape, trace.nodes["z"]["value"].shape
        (torch.Size([5]), torch.Size([20, 2]))

    :param seed: of W, v, b and s.
    :param size: the number of rows of the whole data set, if batches are fewer: the plate's scale is size / batch.
    """

    modalities = ("blood", "scan")
    global_sites = ("mean", "effects")
    private: Mapping[str, str] = {}
    cells = 0.1
    count, between = 5, 0.7

    weights: Tensor
    slope: Tensor
    bias: Tensor
    noise: Tensor
    prior_loc: Tensor

    def __init__(self, seed: int = 0, *, size: int | None = None) -> None:
        super().__init__()
        rng, self.size = generator(seed), size
        fix(
            self,
            weights=0.7 * normal(rng, 6, 2),  # shape: (F, D)
            slope=0.5 + uniform(rng, 6),
            bias=normal(rng, 6),
            noise=0.5 + 0.5 * uniform(rng, 6),
            prior_loc=torch.zeros(2, device="cpu"),
        )

    def observed(self) -> Hospitals:
        """Itself: the model conditions on what is observed."""
        return self

    def forward(
        self,
        data: Mapping[str, Tensor | None],
        obs_mask: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        """All rows, given ``data["hospital"]``."""
        hospital = data.get("hospital")
        if hospital is None:
            raise ValueError("data['hospital'] is missing: this covariate is always complete. Fix: add it, int64 (B,).")
        mean = pyro.sample("mean", dist.Normal(self.bias.new_zeros(()), 1.0))
        loc = mean.unsqueeze(-1).expand(*mean.shape, self.count)
        effects = pyro.sample("effects", dist.Normal(loc, self.between).to_event(1))
        member = nn.functional.one_hot(hospital, self.count).to(self.bias)  # shape: (B, 5)
        rows = batch_size(data)
        with data_plate(rows, self.size, hospital.device), ObserveMessenger(data, obs_mask, self.modalities):
            z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
            effect = (effects * member).sum(-1, keepdim=True)  # a product, as effects may have plates on the left
            locs = (z @ self.weights.mT + effect * self.slope + self.bias).split(3, -1)
            for m, loc, scale in zip(self.modalities, locs, self.noise.split(3), strict=True):
                pyro.sample(m, dist.Normal(loc, scale).to_event(1))

    def given(self, n: int, rng: torch.Generator) -> dict[str, Tensor]:  # each shape: (n,)
        """The hospital of each of n patients."""
        return {"hospital": torch.randint(self.count, (n,), generator=rng, device="cpu")}

    def simulate(self, n: int, seed: int = 0, *, rate: float = 0.3) -> MultimodalDataset:
        """A data set of n patients, see :meth:`Example.simulate`; the effects are drawn once."""
        host = copy.deepcopy(self).cpu()
        host.size = None
        program = poutine.mask(host, mask=False)  # what is missing is drawn
        ds = simulated(program, self.modalities, self.given(n, generator(seed)), n, seed)
        ds.truth = self
        return hidden(ds, seed, rate, self.cells)
