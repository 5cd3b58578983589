"""Hoelder pooling of experts: the square of the mean of square roots.

Layer: fusion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.distributions import Mixture
from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.mean import checked_weights, masked_parameters, normal_or_prior, observed_shares
from pyro_mmvae.fusion.pool import with_prior
from pyro_mmvae.fusion.product import require_normal
from pyro_mmvae.nn import Configurable

__all__ = ["Hoelder"]

Form = Literal["moment", "mixture"]
Overlap = Literal["dim", "joint"]


class Hoelder(Configurable, Fusion):
    r"""
    Hoelder pooling with exponent 1/2: the density with the least mean squared Hellinger distance to the observed
    experts [1], of vectors or of each dimension (``bc``).

    .. math:: q(z \mid x_S) \propto \Bigl(\sum_{i \in S} w_i \sqrt{q_i(z)}\Bigr)^2
        = \sum_{i, j \in S} w_i w_j \, BC_{ij} \, N(z; \mu_{ij}, \sigma_{ij}^2)

    .. math:: \sigma_{ij}^2 = \frac{2 \sigma_i^2 \sigma_j^2}{\sigma_i^2 + \sigma_j^2}, \quad
        \mu_{ij} = \frac{\mu_i \sigma_j^2 + \mu_j \sigma_i^2}{\sigma_i^2 + \sigma_j^2}, \quad
        BC_{ij} = \prod_d \sqrt{\frac{2 \sigma_i \sigma_j}{\sigma_i^2 + \sigma_j^2}}
        \exp\Bigl(-\frac{(\mu_i - \mu_j)^2}{4 (\sigma_i^2 + \sigma_j^2)}\Bigr)

    which is a mixture of M (M + 1) / 2 Gaussians: the experts and the geometric means of their pairs, the latter
    counted by how far the two overlap. Weights are divided by their sum over what is observed.

    The weights of ``form="mixture"`` depend on the encoders as the components do. Gradients of draws reach both, those
    of the weights noisily where experts are several scales apart (see :class:`~pyro_mmvae.distributions.Mixture`);
    ``form="moment"``, being one Gaussian, is reparametrized as usual and has a divergence in closed form.

    Laws: commutative (weights move with their experts); equal experts give that expert; one expert is itself; with
    ``bc="joint"`` experts far apart give the mixture of experts with weights :math:`w_i^2 / \sum_j w_j^2`; nothing
    observed gives the story's prior.

    Example::

        >>> one, two = (dist.Normal(torch.full((1, 1), x), 1.0).to_event(1) for x in (0.0, 2.0))
        >>> prior, seen = dist.Normal(torch.zeros(1), 1.0).to_event(1), torch.ones(2, 1).bool()
        >>> q = Hoelder()(prior, Experts(("a", "b"), (one, two)), seen)
        >>> float(q.mean), round(float(q.variance), 4)
        (1.0, 1.6225)

    :param form: ``"mixture"``: the pooled density itself; ``"moment"``: the Normal with its means and variances.
    :param bc: ``"dim"``: each latent dimension is pooled on its own; ``"joint"``: the vectors are, where in many
        dimensions experts hardly overlap and their pairs vanish.
    :param weights: M positive numbers in the order of the experts; None: all equal.
    :raises ValueError: for other values of these, if the number of weights is not M, or the experts are not Normal.

    [1] *Hellinger Multimodal Variational Autoencoders*, Vo and Valera 2026, arXiv:2601.06572 (moment matching), and
    *Hölder++*, Vo, Martínez-García and Valera, ICML 2026, arXiv:2606.13381 (exact pooling).
    """

    takes_single_rows = True

    def __init__(self, form: Form = "moment", bc: Overlap = "dim", weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if form not in ("moment", "mixture"):
            raise ValueError(f"form: expected 'moment' or 'mixture', got {form!r}.")
        if bc not in ("dim", "joint"):
            raise ValueError(f"bc: expected 'dim' or 'joint', got {bc!r}.")
        self.form, self.bc = form, bc
        self.weights = checked_weights("Hoelder", weights)

    def options(self) -> Mapping[str, Any]:
        return {"form": self.form, "bc": self.bc, "weights": self.weights}

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        require_normal("Hoelder", experts)
        loc, scale, log_weights = self.components(experts, mask)
        seen = mask.any(0)
        if self.form == "moment":
            weights = log_weights.exp() if self.bc == "dim" else log_weights.exp().unsqueeze(-1)
            center = (weights * loc).sum(0)
            variance = (weights * (scale.square() + (loc - center).square())).sum(0)
            return normal_or_prior(prior, center, variance.sqrt(), seen)
        if self.bc == "dim":
            return with_prior(prior, Mixture(dist.Normal(loc, scale), log_weights).to_event(1), seen)
        return with_prior(prior, Mixture(dist.Normal(loc, scale).to_event(1), log_weights), seen)

    def components(
        self,
        experts: Experts,
        mask: Tensor,  # shape: (M, *batch), bool
    ) -> tuple[Tensor, Tensor, Tensor]:  # shapes: (E, *batch, D) twice, (E, *batch, D) or (E, *batch)
        """
        Locations, scales and normalized log-weights of the E = M (M + 1) / 2 pairs.

        Pairs that are not observed have weight -inf; where nothing is observed all have the same.
        """
        loc, scale = masked_parameters(experts, mask)
        shares = observed_shares("Hoelder", self.weights, experts, mask)
        first, second = torch.triu_indices(len(mask), len(mask), device=mask.device)
        twice = (first != second).to(loc.dtype) * math.log(2)
        present = mask[first] & mask[second] | ~mask.any(0)
        own = torch.where(mask, shares, 1.0).log()
        counted = own[first] + own[second] + twice.reshape(-1, *(1,) * (mask.dim() - 1))
        (a, s), (b, t) = ((loc[i], scale[i]) for i in (first, second))
        total = s * s + t * t
        log_overlap = 0.5 * (2 * s * t / total).log() - (a - b).square() / (4 * total)
        if self.bc == "dim":
            counted, present = counted.unsqueeze(-1) + log_overlap, present.unsqueeze(-1)
        else:
            counted = counted + log_overlap.sum(-1)
        log_weights = counted.masked_fill(~present, -torch.inf).log_softmax(0)
        return (a * t * t + b * s * s) / total, math.sqrt(2) * s * t * total.rsqrt(), log_weights
