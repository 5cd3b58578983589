"""A joint encoder for several modalities, unimodal experts for one.

Layer: fusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_mmvae.distributions import SharedScaleNormal, unwrap
from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.pool import gaussian_prior, precision_pool, stacked, with_prior
from pyro_mmvae.fusion.product import require_normal
from pyro_mmvae.masks import Data, ObsMask
from pyro_mmvae.nn import Configurable
from pyro_mmvae.nn.covariates import declared

__all__ = ["Joint"]

Subsets = Literal["joint", "product", "bayes"]


class Joint(Configurable, Fusion):
    r"""
    q(z | x_S): the unimodal expert for one modality, the joint network for all, and for what lies between

    - ``"joint"``: the joint network with a mask (it is trained on every subset that the data shows);
    - ``"product"``: the product of the unimodal experts [1], over-confident by (\|S\| - 1) priors;
    - ``"bayes"``: :math:`\Lambda = \sum_m \tau_m - (|S| - 1) \tau_0`, exact if every expert is; where that is not
      positive, the plain product.

    :param encoder: module with ``features(data) -> (B, M, F)`` and ``head(features, mask) -> Distribution``, such as
        :class:`pyro_mmvae.nn.JointEncoder`.
    :param subsets: see above.

    [1] multivae's JMVAE; the paper, Suzuki, Nakayama and Matsuo 2016, arXiv:1611.01891, has two modalities.
    """

    takes_single_rows = True

    def __init__(self, encoder: nn.Module, *, subsets: Subsets = "joint") -> None:
        super().__init__()
        if subsets not in ("joint", "product", "bayes"):
            raise ValueError(f"subsets: expected 'joint', 'product' or 'bayes', got {subsets!r}.")
        self.encoder: Any = encoder
        self.subsets = subsets

    @property
    def covariates(self) -> tuple[str, ...]:
        """Those of the joint encoder; the unimodal ones have their own."""
        names = declared(self.encoder)
        return () if names is None else tuple(names)

    def options(self) -> Mapping[str, Any]:
        return {"subsets": self.subsets}

    def features(self, data: Data, obs_mask: ObsMask) -> Tensor:  # shape: (B, M, F)
        return self.encoder.features(data)

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        require_normal("Joint", experts)
        count = mask.sum(0)
        weights = mask.unsqueeze(-1)
        loc, scale, gaussian = gaussian_prior(prior)
        none = (count == 0).unsqueeze(-1).to(experts.loc.dtype)
        own = -(count - 1).clamp(min=0).unsqueeze(-1).to(none.dtype) if self.subsets == "bayes" else 0.0
        posterior = self._product(experts, weights, loc, scale, own + none)
        if experts.largest is None or experts.largest > 1:
            several = count > 1 if self.subsets == "joint" else (count == len(mask)) & (count > 1)
            order = getattr(self.encoder, "modalities", experts.names)  # of the features, which may be its own
            shown = torch.stack([mask[experts.names.index(m)] for m in order], -1)
            joint = unwrap(self.encoder.head(experts.features, shown))
            base = unwrap(posterior)
            several = several.unsqueeze(-1)
            loc, scale = torch.where(several, joint.loc, base.loc), torch.where(several, joint.scale, base.scale)
            posterior = SharedScaleNormal(loc, scale).to_event(1)
        return posterior if gaussian else with_prior(prior, posterior, mask.any(0))

    def _product(self, experts: Experts, weights: Tensor, loc: Tensor, scale: Tensor, own: Any) -> Any:
        plain = (own > 0) * own if isinstance(own, Tensor) else own
        if self.subsets == "bayes":
            tau = experts.scale.square().reciprocal()
            tau = (weights * stacked(tau, weights)).sum(0)
            own = torch.where(tau + own * scale.square().reciprocal() > 0, own, plain)
        return precision_pool(experts.loc, experts.scale, weights, loc, scale, own)
