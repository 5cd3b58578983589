"""Product of experts, with or without the prior as an expert.

Layer: fusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.pool import gaussian_prior, precision_pool, with_prior
from pyro_mmvae.nn import Configurable

__all__ = ["PriorExpert", "Product"]

PriorExpert = Literal["always", "never", "full_only", "several"]


class Product(Configurable, Fusion):
    r"""
    Product of the observed Gaussian experts [1].

    .. math:: q(z \mid x_S) \propto p(z)^{[\mathrm{prior}]} \prod_{m \in S} q(z \mid x_m)

    Semantically equivalent to multiplying the densities of the observed experts and normalizing.
    Laws: commutative; one expert without prior is itself; nothing observed gives the story's prior.
    A prior that is no Gaussian enters the product by its mean and standard deviation, and is the posterior itself
    where nothing is observed.

    Example::

        >>> experts = Experts(("a",), (dist.Normal(torch.ones(2, 1), 1.0).to_event(1),))
        >>> prior = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> Product()(prior, experts, torch.tensor([[True, False]])).mean.squeeze(-1).tolist()
        [0.5, 0.0]

    :param prior_expert: ``"always"``, ``"never"``, ``"full_only"``: only in samples that observe every modality (the
        published code of MoPoE), or ``"several"``: where more than one expert is in the product (DMVAE's training).
    :raises ValueError: if the experts are not Normal.

    [1] *Multimodal Generative Models for Scalable Weakly-Supervised Learning*, Wu and Goodman, NeurIPS 2018,
    arXiv:1802.05335, eq. (4).
    """

    takes_single_rows = True

    def __init__(self, *, prior_expert: PriorExpert = "always") -> None:
        super().__init__()
        if prior_expert not in get_args(PriorExpert):
            raise ValueError(f"prior_expert: expected one of {list(get_args(PriorExpert))}, got {prior_expert!r}.")
        self.prior_expert = prior_expert

    def options(self) -> Mapping[str, Any]:
        return {"prior_expert": self.prior_expert}

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        posterior, gaussian = self.pooled(prior, experts, mask)
        return posterior if gaussian else with_prior(prior, posterior, mask.any(0))

    def pooled(self, prior: Any, experts: Experts, mask: Tensor) -> tuple[Any, bool]:
        """The product as a Normal, meaningless where nothing is observed unless the prior is Gaussian (returned)."""
        require_normal("Product", experts)
        loc, scale, gaussian = gaussian_prior(prior)
        weight = prior_weight(self.prior_expert, mask, experts.loc.dtype, len(experts.names))
        return precision_pool(experts.loc, experts.scale, mask.unsqueeze(-1), loc, scale, weight), gaussian


def require_normal(rule: str, experts: Experts) -> None:
    """Products of Gaussians need Gaussian experts."""
    family = experts.family()
    if not issubclass(family, dist.Normal):
        raise ValueError(
            f"{rule} needs Normal experts, got {family.__name__} for {list(experts.names)}. Fix: encoders with "
            "family='normal', or a mixture rule."
        )


def prior_weight(
    rule: PriorExpert,
    mask: Tensor,  # shape: (M, *batch), bool
    dtype: torch.dtype,
    count: int,
) -> Tensor | float:  # shape: (*batch, 1)
    """Weight of the prior in a product of ``count`` experts; 1 where nothing is observed: the product is the prior."""
    if rule == "always":
        return 1.0
    included = ~mask.any(0)
    if rule == "full_only" and len(mask) == count:
        included = included | mask.all(0)
    if rule == "several":
        included = included | (mask.sum(0) > 1)
    return included.unsqueeze(-1).to(dtype)
