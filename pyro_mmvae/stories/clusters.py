"""A prior with clusters: a mixture with learned locations, unit scales, and clusters that can be switched off.

Layer: stories.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mmvae.distributions import Mixture, SharedScaleNormal
from pyro_mmvae.nn import Configurable
from pyro_mmvae.nn.mlp import positive_int

__all__ = ["MixturePrior"]

_OFF = -1e30  # the logit of an inactive cluster: no weight, no gradient, no NaN


class MixturePrior(Configurable, nn.Module):
    r"""
    A mixture of unit-scale clusters [1].

    .. math:: p(z) = \sum_c \pi_c \, F(z; m_c, 1), \qquad \pi = \mathrm{softmax}(\eta)

    Semantically equivalent to drawing :math:`c \sim \mathrm{Cat}(\pi)`, then :math:`z \sim F(m_c, 1)`, with c summed
    out. With the exact q(c | z) of :meth:`log_joint` the published sum over clusters,
    :math:`\sum_c q(c \mid z) [\log \pi_c + \log p(z \mid c) - \log q(c \mid z)]`, is log p(z), in value and gradient.

    The buffer ``active``, bool ``(C,)``, says which clusters there are: others have weight 0, the rest is renormalized,
    and no shape changes. It is saved with the model; :func:`pyro_mmvae.inference.prune_clusters` sets it.

    Example::

        >>> prior = MixturePrior(2, 3, family="normal")
        >>> prior.active[0] = False
        >>> prior().event_shape, prior.log_weights().exp().tolist()
        (torch.Size([2]), [0.0, 0.5, 0.5])

    :param latent_dim: size of z, D.
    :param num_clusters: C.
    :param family: F, "laplace" or "normal".
    :param init_range: the locations start uniform in plus or minus this.
    :param learn_weights: whether the logits are a parameter (starting at 0: all weights equal).
    :raises ValueError: for sizes that are no positive integers, an unknown family, or a range that is not positive.

    [1] *Deep Generative Clustering with Multimodal Diffusion Variational Autoencoders*, Palumbo, Manduchi, Laguna,
    Chopard and Vogt, ICLR 2024, OpenReview k5THrhXDV3.
    """

    logits: Tensor
    active: Tensor

    def __init__(
        self,
        latent_dim: int,
        num_clusters: int = 10,
        *,
        family: Literal["laplace", "normal"] = "laplace",
        init_range: float = 1.0,
        learn_weights: bool = True,
    ) -> None:
        super().__init__()
        if family not in ("laplace", "normal"):
            raise ValueError(f"family: expected 'laplace' or 'normal', got {family!r}.")
        if not 0 < init_range < math.inf:
            raise ValueError(f"init_range: expected a positive number, got {init_range!r}.")
        size, count = positive_int(latent_dim, "latent_dim"), positive_int(num_clusters, "num_clusters")
        self.family, self.learn_weights = family, learn_weights
        self.loc = nn.Parameter(torch.empty(count, size).uniform_(-init_range, init_range))
        if learn_weights:
            self.logits = nn.Parameter(torch.zeros(count))
        else:
            self.register_buffer("logits", torch.zeros(count))
        self.register_buffer("active", torch.ones(count, dtype=torch.bool))

    @property
    def num_clusters(self) -> int:
        """C, inactive clusters included."""
        return self.loc.shape[0]

    def log_weights(
        self,
        active: Tensor | None = None,  # shape: (C,), bool
    ) -> Tensor:  # shape: (C,)
        """
        :math:`\\log \\pi`, normalized over the active clusters.

        :param active: other clusters than those of the buffer.
        """
        active = self.active if active is None else active
        off = max(_OFF, torch.finfo(self.logits.dtype).min)
        return self.logits.masked_fill(~active, off).log_softmax(-1)

    def log_components(
        self,
        z: Tensor,  # shape: (*batch, D)
    ) -> Tensor:  # shape: (*batch, C)
        """:math:`\\log p(z \\mid c)` in nats, of inactive clusters too."""
        return self._components().log_prob(z.unsqueeze(-2))

    def log_joint(
        self,
        z: Tensor,  # shape: (*batch, D)
    ) -> Tensor:  # shape: (*batch, C)
        """
        :math:`\\log \\pi_c + \\log p(z \\mid c)` in nats.

        Its logsumexp over clusters is log p(z), its softmax the exact posterior q(c | z).

        Example::

            >>> prior, z = MixturePrior(2, 3), torch.zeros(5, 2)
            >>> prior.log_joint(z).softmax(-1).shape
            torch.Size([5, 3])
        """
        return self.log_components(z) + self.log_weights()

    def _components(self) -> Any:  # batch_shape: (C,), event_shape: (D,)
        if self.family == "normal":
            return SharedScaleNormal(self.loc, 1.0).to_event(1)
        return dist.Laplace(self.loc, torch.ones_like(self.loc)).to_event(1)

    def forward(self) -> Mixture:  # event_shape: (D,)
        return Mixture(self._components(), self.log_weights())
