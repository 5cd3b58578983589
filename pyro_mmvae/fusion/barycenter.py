"""The Wasserstein-2 barycenter of the experts.

Layer: fusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.mean import checked_weights, masked_parameters, normal_or_prior, observed_shares
from pyro_mmvae.fusion.product import require_normal
from pyro_mmvae.nn import Configurable

__all__ = ["WassersteinBarycenter"]


class WassersteinBarycenter(Configurable, Fusion):
    r"""
    The Gaussian nearest to the observed experts in the Wasserstein-2 distance [1].

    .. math:: q(\cdot \mid x_S) = \arg\min_q \sum_{m \in S} w_m W_2^2(q, q_m)
        = N\Bigl(\sum_m w_m \mu_m, \bigl(\sum_m w_m \sigma_m\bigr)^2\Bigr)

    for experts with diagonal covariances; the weights are divided by their sum over what is observed.
    Laws: commutative (weights move with their experts); equal experts give that expert; one expert is itself; nothing
    observed gives the story's prior.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> a, b = dist.Normal(torch.zeros(1, 1), 1.0).to_event(1), dist.Normal(torch.ones(1, 1), 4.0).to_event(1)
        >>> prior = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> q = WassersteinBarycenter()(prior, Experts(("a", "b"), (a, b)), torch.ones(2, 1, dtype=torch.bool))
        >>> float(q.mean), float(q.stddev)
        (0.5, 2.5)

    :param weights: M positive numbers in the order of the experts; None: all equal.
    :raises ValueError: if a weight is not positive, their number is not M, or the experts are not Normal.

    [1] *Barycenters in the Wasserstein Space*, Agueh and Carlier, SIAM Journal on Mathematical Analysis 43(2), 2011
    (the Gaussian case); as a fusion of experts: *Multimodal Variational Autoencoder: A Barycentric View*, Qiu et al.,
    AAAI 2025.
    """

    takes_single_rows = True

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.weights = checked_weights("WassersteinBarycenter", weights)

    def options(self) -> Mapping[str, Any]:
        return {"weights": self.weights}

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        require_normal("WassersteinBarycenter", experts)
        loc, scale = masked_parameters(experts, mask)
        shares = observed_shares("WassersteinBarycenter", self.weights, experts, mask).unsqueeze(-1)
        return normal_or_prior(prior, (shares * loc).sum(0), (shares * scale).sum(0), mask.any(0))
