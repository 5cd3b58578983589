"""Mixtures of experts and of products of experts.

Layer: fusion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.distributions import Mixture as MixtureDistribution
from pyro_mmvae.distributions import unwrap
from pyro_mmvae.distributions.shapes import broadcast
from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.pool import stacked, uniform_log_weights, with_prior
from pyro_mmvae.fusion.product import PriorExpert, Product
from pyro_mmvae.masks import powerset
from pyro_mmvae.nn import Configurable

__all__ = ["Mixture", "MixtureOfProducts"]


class Mixture(Configurable, Fusion):
    r"""
    Mixture of the observed experts, all weights equal [1].

    .. math:: q(z \mid x_S) = \frac{1}{|S|} \sum_{m \in S} q(z \mid x_m)

    Laws: one expert is itself; nothing observed gives the story's prior. Experts of any one location-scale family.

    :param prior_weight: weight of the story's prior as a further component, where an expert has weight 1; the prior
        is then of the experts' family.

    [1] *Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models*, Shi, Siddharth, Paige and
    Torr, NeurIPS 2019, arXiv:1911.03393, eq. (2).
    """

    def __init__(self, *, prior_weight: float = 0.0) -> None:
        super().__init__()
        if not 0 <= prior_weight < math.inf:
            raise ValueError(f"prior_weight: expected a finite number >= 0, got {prior_weight}.")
        self.prior_weight = prior_weight

    @property
    def takes_single_rows(self) -> bool:  # type: ignore[override]
        """Whether a row's only expert may be given alone: not beside a prior."""
        return self.prior_weight == 0

    def options(self) -> Mapping[str, Any]:
        return {"prior_weight": self.prior_weight} if self.prior_weight else {}

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        if len(mask) == 1 and not self.prior_weight:
            return self.component(prior, experts, mask)
        like = mask.unsqueeze(-1)
        loc, scale = stacked(experts.loc, like), stacked(experts.scale, like)
        weights = uniform_log_weights(mask, experts.loc.dtype)
        if self.prior_weight:
            loc, scale, weights = self._with_prior(prior, experts, loc, scale, mask)
        components = experts.family()(loc, scale).to_event(1)
        components = components.expand(broadcast(components.batch_shape, weights.shape))
        return with_prior(prior, MixtureDistribution(components, weights.expand(components.batch_shape)), mask.any(0))

    def _with_prior(
        self, prior: Any, experts: Experts, loc: Tensor, scale: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The prior as one more component."""
        base: Any = unwrap(prior)
        family: Any = experts.family()
        if not isinstance(base, family):
            raise ValueError(
                f"Mixture(prior_weight={self.prior_weight}): the prior is {type(base).__name__}, the experts are "
                f"{experts.family().__name__}. Fix: a prior of their family."
            )
        loc, scale = _beside(loc, base.loc), _beside(scale, base.scale)
        weights = torch.cat([mask.to(loc.dtype), torch.full_like(mask[:1], self.prior_weight, dtype=loc.dtype)])
        weights = weights.reshape(len(weights), *(1,) * _extra(prior, mask), *mask.shape[1:])
        return loc, scale, (weights / weights.sum(0)).log()

    def component(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        """The single observed expert of each row (the first, should a row observe several)."""
        weights = (mask & (mask.cumsum(0) == 1)).unsqueeze(-1).to(experts.loc.dtype)
        none = (~mask.any(0)).unsqueeze(-1).to(weights.dtype)
        loc = (weights * stacked(experts.loc, weights)).sum(0)
        scale = (weights * stacked(experts.scale, weights)).sum(0) + none
        if not experts.needed:
            return experts.family()(loc, scale).to_event(1)
        return with_prior(prior, experts.family()(loc, scale).to_event(1), mask.any(0))


def _extra(prior: Any, mask: Tensor) -> int:
    """Batch dimensions that the prior has to the left of the mask's."""
    return max(len(prior.batch_shape) - (mask.dim() - 1), 0)


def _beside(experts: Tensor, prior: Tensor) -> Tensor:  # (M, *batch, D), (*more, D) -> (M + 1, *batch, D)
    """The prior's parameter stacked below the experts'."""
    shape = broadcast(experts.shape[1:], prior.shape)
    aligned = experts.reshape(len(experts), *(1,) * (len(shape) - experts.dim() + 1), *experts.shape[1:])
    return torch.cat([aligned.expand(len(experts), *shape), prior.expand(shape)[None]])


class MixtureOfProducts(Configurable, Fusion):
    r"""
    Mixture of the products over all non-empty subsets of what is observed [1].

    .. math:: q(z \mid x_S) = \frac{1}{2^{|S|} - 1} \sum_{\emptyset \ne T \subseteq S} \tilde q(z \mid x_T)

    Laws: one expert without prior is itself; nothing observed gives the story's prior.

    :param prior_expert: in which products the prior is an expert, see :class:`Product`.
    :param subsets: bool ``(S, M)``, the subsets used; None: all of them.

    [1] *Generalized Multimodal ELBO*, Sutter, Daunhawer and Vogt, ICLR 2021, arXiv:2105.02470, eq. (6).
    """

    def __init__(self, *, prior_expert: PriorExpert = "full_only", subsets: Tensor | None = None) -> None:
        super().__init__()
        self.product = Product(prior_expert=prior_expert)
        self.subsets = subsets

    def options(self) -> Mapping[str, Any]:
        return {**self.product.options(), "subsets": None if self.subsets is None else self.subsets.tolist()}

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        table = powerset(len(mask)) if self.subsets is None else self.subsets
        # a prior may have draws of its own to the left of the rows: the subsets come before them
        shown = mask.reshape(len(mask), *(1,) * _extra(prior, mask), *mask.shape[1:])
        table = table.to(mask.device).t().reshape(len(mask), -1, *(1,) * (shown.dim() - 1))
        contained = (shown.unsqueeze(1) | ~table).all(0)  # (S, *batch)
        products, _ = self.product.pooled(prior, experts, table.expand(-1, -1, *shown.shape[1:]) & contained)
        weights = uniform_log_weights(contained, experts.loc.dtype).expand(products.batch_shape)
        return with_prior(prior, MixtureDistribution(products, weights), contained.any(0))

    def component(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        """The product over the observed experts themselves."""
        return self.product(prior, experts, mask)
