"""Weighted products: the generalized product of experts and the geometric mean.

Layer: fusion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.pool import gaussian_prior, precision_pool, with_prior
from pyro_mmvae.fusion.product import prior_weight, require_normal
from pyro_mmvae.nn import Configurable

__all__ = ["GeneralizedProduct", "GeometricMean"]


class GeneralizedProduct(Configurable, Fusion):
    r"""
    Product with learned exponents per modality and latent dimension, normalized over what is observed [1].

    .. math:: q(z \mid x_S) \propto \prod_{m \in S} q(z \mid x_m)^{\alpha_m}, \qquad
        \alpha_{m,d} = \frac{e^{\eta_{m,d}}}{\sum_{l \in S} e^{\eta_{l,d}}}

    Laws: equal experts give that expert; one expert is itself; nothing observed gives the story's prior.

    :param num_modalities: number of experts, M.
    :param latent_dim: size of the latent, D.
    :param normalize: False: free exponents in [0, 1], 1/M at the start, as in multi-view-AE; the product may then be
        sharper or wider than any average of its experts.

    [1] *Multi-modal Variational Autoencoders for normative modelling across multiple imaging modalities*, Lawry Aguila,
    Chapman and Altmann, MICCAI 2023, arXiv:2303.12706; the rule is Cao and Fleet's, arXiv:1410.7827.
    """

    def __init__(self, num_modalities: int, latent_dim: int, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        start = 0.0 if normalize else 1 / num_modalities
        self.logits = nn.Parameter(torch.full((num_modalities, latent_dim), start))

    def options(self) -> Mapping[str, Any]:
        own = {"num_modalities": self.logits.shape[0], "latent_dim": self.logits.shape[1]}
        return own if self.normalize else {**own, "normalize": False}

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        require_normal("GeneralizedProduct", experts)
        shape = self.logits.shape[:1] + (1,) * (mask.dim() - 1) + self.logits.shape[1:]
        if not self.normalize:
            free = self.logits.reshape(shape)
            projected = free + (free.clamp(1e-6, 1.0) - free).detach()  # the gradient brings back what lies outside
            return _pooled(prior, experts, projected * mask.unsqueeze(-1), mask)
        logits = self.logits.reshape(shape).masked_fill(~mask.unsqueeze(-1), -torch.inf)
        none = ~mask.any(0)
        logits = torch.where(none.unsqueeze(-1), 0.0, logits)
        weights = logits.softmax(0) * mask.unsqueeze(-1)
        return _pooled(prior, experts, weights, mask)


class GeometricMean(Configurable, Fusion):
    r"""
    Weighted geometric mean of the observed experts and the prior.

    .. math:: q(z \mid x_S) \propto p(z)^{\pi_0} \prod_{m \in S} q(z \mid x_m)^{\pi_m}

    with the weights renormalized over the prior and the observed experts. This is the dynamic prior of mmJSD [1].

    :param weights: M + 1 numbers, the prior's first and positive, the others not negative; None: all equal.
    :raises ValueError: for other weights.

    [1] *Multimodal Generative Learning Utilizing Jensen-Shannon-Divergence*, Sutter, Daunhawer and Vogt, NeurIPS 2020,
    arXiv:2006.08242, eq. (5).
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        given = None if weights is None else tuple(float(w) for w in weights)
        if given is not None and not (given[:1] > (0.0,) and all(0 <= w < math.inf for w in given)):
            raise ValueError(
                f"weights: expected finite numbers >= 0, the prior's first and positive, got {list(given)}. Fix: one "
                "for the prior and one for each modality."
            )
        self.weights = given

    def options(self) -> Mapping[str, Any]:
        return {"weights": self.weights}

    def shares(
        self,
        mask: Tensor,  # shape: (M, *batch), bool
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:  # shape: (M + 1, *batch)
        """
        The weights, the prior's first, renormalized over the prior and what is observed.

        :raises ValueError: if the number of weights is not M + 1.
        """
        count = len(mask) + 1
        given = [1.0] * count if self.weights is None else list(self.weights)
        if len(given) != count:
            raise ValueError(f"weights: {count - 1} modalities and the prior need {count}, got {len(given)}.")
        pi = torch.tensor(given, dtype=dtype, device=mask.device).reshape(-1, *(1,) * (mask.dim() - 1))
        present = torch.cat([torch.ones_like(mask[:1]), mask]) * pi
        return present / present.sum(0)

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        require_normal("GeometricMean", experts)
        own, *others = self.shares(mask, experts.loc.dtype).unsqueeze(-1)
        return _pooled(prior, experts, torch.stack(others), mask, own)


def _pooled(prior: Any, experts: Experts, weights: Tensor, mask: Tensor, own: Tensor | None = None) -> Any:
    loc, scale, gaussian = gaussian_prior(prior)
    weight = prior_weight("never", mask, experts.loc.dtype, len(mask)) if own is None else own
    fused = precision_pool(experts.loc, experts.scale, weights, loc, scale, weight)
    return fused if gaussian else with_prior(prior, fused, mask.any(0))
