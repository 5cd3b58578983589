"""Consensus of experts whose errors are correlated.

Layer: fusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.mean import masked_parameters, normal_or_prior
from pyro_mmvae.fusion.product import require_normal
from pyro_mmvae.nn import Configurable

__all__ = ["ConsensusOfDependentExperts"]

Nonnegative = Literal["rho", "weights"]


class ConsensusOfDependentExperts(Configurable, Fusion):
    r"""
    The best linear combination of experts whose errors have the correlation rho, without the prior [1].

    In every latent dimension, with :math:`\Sigma_{ii} = \sigma_i^2`, :math:`\Sigma_{ij} = \rho \sigma_i \sigma_j` over
    the observed experts,

    .. math:: v = \frac{\Sigma^{-1} 1}{1^\top \Sigma^{-1} 1}, \qquad
        q(z \mid x_S) = N(v^\top \mu, \; v^\top \Sigma v)

    in closed form by Sherman-Morrison. The combination takes a weight below zero from an expert that is much wider than
    the others, and then leaves the range of the locations. Weights are kept non-negative by

    - ``"rho"``: in each sample and dimension, rho at most :math:`u_{\min} / (\sum_i u_i - (k - 1) u_{\min})` for the k
      observed experts, :math:`u = 1 / \sigma`, the largest correlation at which they all are; the variance is that of
      this correlation;
    - ``"weights"``: weights below zero are set to zero and the others renormalized; the variance is
      :math:`v^\top \Sigma v` of these weights and the correlation given.

    Laws: commutative; rho = 0 is the product of the observed experts; rho to 1 at equal scales is their average with
    the scale of one; one expert is itself; the location is within the range of the experts' and the variance is at most
    that of the widest; nothing observed gives the story's prior.

    Example::

        >>> import pyro.distributions as dist
        >>> one = dist.Normal(torch.ones(1, 1), 1.0).to_event(1)
        >>> prior = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> q = ConsensusOfDependentExperts(rho=0.5)(prior, Experts(("a", "b"), (one, one)), torch.ones(2, 1).bool())
        >>> float(q.mean), float(q.variance)
        (1.0, 0.75)

    :param rho: correlation of any two experts' errors, in [0, 1).
    :param nonnegative: see above.
    :raises ValueError: for other values of these, or if the experts are not Normal.

    [1] *Aggregation of Dependent Expert Distributions in Multimodal Variational Autoencoders*, Mancisidor, Jenssen, Yu
    and Kampffmeyer, ICML 2025, arXiv:2505.01134; the limits on the weights are this library's.
    """

    takes_single_rows = True

    def __init__(self, rho: float = 0.4, *, nonnegative: Nonnegative = "rho") -> None:
        super().__init__()
        if not 0 <= rho < 1:
            raise ValueError(f"rho: a correlation of at least 0 and below 1 expected, got {rho}.")
        if nonnegative not in ("rho", "weights"):
            raise ValueError(f"nonnegative: expected 'rho' or 'weights', got {nonnegative!r}.")
        self.rho = float(rho)
        self.nonnegative = nonnegative

    def options(self) -> Mapping[str, Any]:
        return {"rho": self.rho, "nonnegative": self.nonnegative}

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        require_normal("ConsensusOfDependentExperts", experts)
        loc, scale = masked_parameters(experts, mask)
        weights, rho = self.weights(scale, mask)
        spread = weights * scale
        variance = (1 - rho) * spread.square().sum(0) + rho * spread.sum(0).square()
        none = (~mask.any(0)).unsqueeze(-1).to(variance.dtype)  # no root of zero
        return normal_or_prior(prior, (weights * loc).sum(0), (variance + none).sqrt(), mask.any(0))

    def weights(
        self,
        scale: Tensor,  # shape: (M, *batch, D), anything positive where not observed
        mask: Tensor,  # shape: (M, *batch), bool
    ) -> tuple[Tensor, Tensor | float]:  # shapes: (M, *batch, D), (*batch, D)
        r"""
        Non-negative weights v that sum to one over what is observed (zero elsewhere), and the correlation in force.

        :math:`v_i \propto u_i \bigl((1 - \rho) u_i + \rho (k u_i - \sum_j u_j)\bigr)`, which loses no digits as rho
        goes to 1.
        """
        seen = mask.unsqueeze(-1)
        u = seen / scale
        total, count = u.sum(0), seen.sum(0).to(scale.dtype)
        rho: Tensor | float = self.rho
        if self.nonnegative == "rho":
            least = torch.where(count > 0, torch.where(seen, u, torch.inf).amin(0), 1.0)
            rho = (least / (total - (count - 1) * least)).clamp(max=self.rho)
        raw = u * ((1 - rho) * u + rho * (count * u - total)).clamp(min=0)
        return raw / (raw.sum(0) + (count == 0)), rho
