"""Weighted products: the generalized product of experts and the geometric mean.

Layer: fusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.pool import gaussian_prior, precision_pool, with_prior
from pyro_mmvae.fusion.product import prior_weight, require_normal

__all__ = ["GeneralizedProduct", "GeometricMean"]


class GeneralizedProduct(Fusion):
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


class GeometricMean(Fusion):
    r"""
    Weighted geometric mean of the observed experts and the prior.

    .. math:: q(z \mid x_S) \propto p(z)^{\pi_0} \prod_{m \in S} q(z \mid x_m)^{\pi_m}

    with the weights renormalized over the prior and the observed experts. This is the dynamic prior of mmJSD [1].

    :param weights: M + 1 positive numbers, the prior's first; None: all equal.

    [1] *Multimodal Generative Learning Utilizing Jensen-Shannon-Divergence*, Sutter, Daunhawer and Vogt, NeurIPS 2020,
    arXiv:2006.08242, eq. (5).
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is not None and min(weights) < 0:
            raise ValueError(f"GeometricMean: weights must be >= 0, got {list(weights)}.")
        self.weights = None if weights is None else tuple(weights)

    def options(self) -> Mapping[str, Any]:
        return {"weights": self.weights}

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        require_normal("GeometricMean", experts)
        count = len(mask)
        given = experts.loc.new_ones(count + 1) if self.weights is None else experts.loc.new_tensor(self.weights)
        if len(given) != count + 1:
            raise ValueError(
                f"GeometricMean: {count} experts and the prior need {count + 1} weights, got {len(given)}."
            )
        pi = given[1:].reshape(-1, *(1,) * (mask.dim() - 1)) * mask
        total = pi.sum(0) + given[0]
        return _pooled(prior, experts, (pi / total).unsqueeze(-1), mask, (given[0] / total).unsqueeze(-1))


def _pooled(prior: Any, experts: Experts, weights: Tensor, mask: Tensor, own: Tensor | None = None) -> Any:
    loc, scale, gaussian = gaussian_prior(prior)
    weight = prior_weight("never", mask, experts.loc.dtype, len(mask)) if own is None else own
    fused = precision_pool(experts.loc, experts.scale, weights, loc, scale, weight)
    return fused if gaussian else with_prior(prior, fused, mask.any(0))
