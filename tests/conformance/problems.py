"""A linear-Gaussian model, data with every set of observed modalities, and what a case's networks make of it.

Test layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.conformance.networks import Decoder, Expert, JointExpert, Prior
from tests.oracles.cases import DIMS, make_case
from tests.oracles.linear_gaussian import Gaussian, LinearGaussian
from tests.oracles.products import observed
from tests.oracles.shared_private import SharedPrivate

PRIVATE_DIM = 1


@dataclass
class Problem:
    """
    Row n observes ``sets[n]``; everything hidden is NaN. ``experts``: loc and scale that the encoders return.

    The guide is wrong on purpose: locations are shifted by 0.5, scales stretched by 1.5, both unless asked otherwise.
    """

    model: LinearGaussian | SharedPrivate
    data: dict[str, Tensor]  # shapes: (B, D_m)
    obs_mask: dict[str, Tensor]  # shapes: (B,) or (B, D_m)
    complete: dict[str, Tensor]  # shapes: (B, D_m)
    sets: tuple[tuple[str, ...], ...]
    shift: float
    stretch: float
    family: str
    experts: dict[str, Gaussian] = field(init=False)  # shapes: (B, L)
    private: dict[str, Gaussian] = field(init=False)  # shapes: (B, P_m)
    joint: Gaussian = field(init=False)  # shapes: (B, L), of the rows that observe two or more; else the expert

    def __post_init__(self) -> None:
        filled = self.filled
        with torch.no_grad():
            self.experts = {m: _loc_scale(e(filled[m])) for m, e in self.encoders().items()}
            self.private = {m: _loc_scale(e(filled[m])) for m, e in self.private_encoders().items()}
            joint = self.joint_encoder()
            rows = torch.stack([self.rows[m] for m in self.modalities], -1)
            loc, scale = (p.clone() for p in _loc_scale(joint.head(joint.features(filled), rows)))
        for n, names in enumerate(self.sets):
            if len(names) == 1:
                loc[n], scale[n] = (p[n] for p in self.experts[names[0]])
        self.joint = loc, scale

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.model.modalities

    @property
    def stacked(self) -> LinearGaussian:
        """The model of all latents in one line."""
        return self.model.joint if isinstance(self.model, SharedPrivate) else self.model

    def under(self, loc: Tensor, scale: Tensor) -> LinearGaussian:
        """The stacked model with another prior of z."""
        own, at = self.stacked, loc.shape[0]
        prior = torch.cat([loc, own.prior[0][at:]]), torch.cat([scale, own.prior[1][at:]])
        return LinearGaussian(own.weights, own.bias, own.noise, *prior)

    @property
    def latent_dim(self) -> int:
        return self.model.prior[0].shape[0]

    @property
    def rows(self) -> dict[str, Tensor]:  # shapes: (B,), bool
        """Masks of whole modalities."""
        return {
            m: torch.tensor([m in observed(self.obs_mask, n) for n in range(len(self.sets))]) for m in self.obs_mask
        }

    @property
    def filled(self) -> dict[str, Tensor]:  # shapes: (B, D_m)
        """The data as networks may see it: zero where hidden."""
        return {m: torch.where(_entries(self.obs_mask[m]), x, 0.0) for m, x in self.data.items()}

    def _expert(self, name: str, latent: str | None) -> Expert:
        at = self.model.slices[latent] if isinstance(self.model, SharedPrivate) else slice(None)
        matrix, offset, scale = self.stacked.expert(name, self.shift, self.stretch)
        return Expert(matrix[at], offset[at], scale[at], self.family)

    def encoders(self) -> dict[str, Expert]:
        """Fresh encoders of the shared latent."""
        return {m: self._expert(m, None) for m in self.modalities}

    def private_encoders(self) -> dict[str, Expert]:
        """Fresh encoders of the private latents; none without private latents."""
        return {m: self._expert(m, m) for m in self.modalities} if isinstance(self.model, SharedPrivate) else {}

    def joint_encoder(self) -> JointExpert:
        """A fresh joint encoder."""
        return JointExpert(self.encoders())

    def decoders(self, *, lazy: bool = False, cost: int | None = None) -> dict[str, Decoder]:
        """Fresh decoders, from z or from z and the modality's own private latent."""
        out = {}
        for m, weight in self.stacked.weights.items():
            if isinstance(self.model, SharedPrivate):
                weight = torch.cat([weight[:, self.model.slices[None]], weight[:, self.model.slices[m]]], -1)
            out[m] = Decoder(weight, self.stacked.bias[m], self.stacked.noise[m], lazy=lazy, cost=cost)
        return out

    def prior(self) -> nn.Module:
        """A fresh prior."""
        return Prior(*self.model.prior, self.family)

    def noise(self, particles: int = 1, seed: int = 5) -> dict[str, Tensor]:  # shapes: (B, D) or (K, 1, B, D)
        """Fixed noise of every latent site."""
        generator = torch.Generator().manual_seed(seed)
        lead = () if particles == 1 else (particles, 1)
        sizes = {"z": self.latent_dim} | {f"z_{m}": q[0].shape[1] for m, q in self.private.items()}
        batch = len(self.sets)
        return {s: torch.randn(*lead, batch, d, generator=generator, dtype=torch.float64) for s, d in sizes.items()}


def make_problem(
    num_modalities: int = 3,
    latent_dim: int = 2,
    *,
    per_feature: bool = False,
    private: bool = False,
    shift: float = 0.5,
    stretch: float = 1.5,
    family: str = "normal",
) -> Problem:
    """All 2^M sets of observed modalities under a model with no special values."""
    base = make_case(num_modalities, latent_dim, per_feature=per_feature)
    model: LinearGaussian | SharedPrivate = base.model
    complete = base.complete
    if private:
        model = _with_private(base.model)
        _, complete = model.joint.sample(len(base.sets), torch.Generator().manual_seed(1))
    data = {m: torch.where(_entries(base.obs_mask[m]), x, torch.nan) for m, x in complete.items()}
    return Problem(model, data, base.obs_mask, complete, base.sets, shift, stretch, family)


def _with_private(model: LinearGaussian) -> SharedPrivate:
    """The same model with a private latent per modality; their priors are N(0, 1), as in the library's story."""
    generator = torch.Generator().manual_seed(2)
    own = {m: torch.randn(DIMS[m], PRIVATE_DIM, generator=generator, dtype=torch.float64) for m in model.modalities}
    return SharedPrivate(model.weights, own, model.bias, model.noise, *model.prior)


def _entries(mask: Tensor) -> Tensor:  # shapes: (B,) or (B, D) -> (B, 1) or (B, D)
    return mask if mask.dim() == 2 else mask.unsqueeze(-1)


def _loc_scale(q: torch.distributions.Independent) -> Gaussian:
    return q.base_dist.loc, q.base_dist.scale
