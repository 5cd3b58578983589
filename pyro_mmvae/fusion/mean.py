"""Mean of the experts' parameters, and what rules that average share: masked parameters, shares, the prior elsewhere.

Layer: fusion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.distributions import SharedScaleNormal
from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.pool import gaussian_prior, stacked, with_prior
from pyro_mmvae.fusion.product import require_normal
from pyro_mmvae.nn import Configurable

__all__ = ["MeanOfParameters"]


class MeanOfParameters(Configurable, Fusion):
    r"""
    Mean pooling: the parameters of the observed experts, averaged.

    .. math:: \mu = \frac{1}{|S|} \sum_{m \in S} \mu_m, \qquad
        \log \sigma^2 = \frac{1}{|S|} \sum_{m \in S} \log \sigma_m^2

    The locations have the arithmetic mean, the scales the geometric mean: encoders give log-variances, and these are
    averaged. The result is no pooling of densities: experts that disagree do not widen it, and experts that agree do
    not sharpen it. It is the ``join_type="Mean"`` of multi-view-AE's ``mVAE``, with ``prior_expert=True`` for its
    ``use_prior``.

    Laws: commutative; without prior, equal experts give that expert and one expert is itself; nothing observed gives
    the story's prior.

    Example::

        >>> import pyro.distributions as dist
        >>> a, b = dist.Normal(torch.zeros(1, 1), 1.0).to_event(1), dist.Normal(torch.ones(1, 1), 4.0).to_event(1)
        >>> prior = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> q = MeanOfParameters()(prior, Experts(("a", "b"), (a, b)), torch.ones(2, 1, dtype=torch.bool))
        >>> float(q.mean), round(float(q.stddev), 3)
        (0.5, 2.0)

    :param prior_expert: average the prior's parameters too, as those of one more expert.
    :raises ValueError: if the experts are not Normal.
    """

    takes_single_rows = True

    def __init__(self, *, prior_expert: bool = False) -> None:
        super().__init__()
        self.prior_expert = prior_expert

    def options(self) -> Mapping[str, Any]:
        return {"prior_expert": self.prior_expert}

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        require_normal("MeanOfParameters", experts)
        loc, scale = masked_parameters(experts, mask)
        shares = observed_shares("MeanOfParameters", None, experts, mask).unsqueeze(-1)
        center, log_scale = (shares * loc).sum(0), (shares * scale.log()).sum(0)
        if self.prior_expert:
            own = 1 / (1 + mask.sum(0).unsqueeze(-1).to(loc.dtype))  # the prior's share
            prior_loc, prior_scale, _ = gaussian_prior(prior)
            center, log_scale = center + own * (prior_loc - center), log_scale + own * (prior_scale.log() - log_scale)
        return normal_or_prior(prior, center, log_scale.exp(), mask.any(0))


def masked_parameters(
    experts: Experts,
    mask: Tensor,  # shape: (M, *batch), bool
) -> tuple[Tensor, Tensor]:  # shapes: (M, *batch, D)
    """Locations and scales of the observed experts; 0 and 1 elsewhere, whatever stands there."""
    hidden = ~mask.unsqueeze(-1)
    loc, scale = (stacked(p, hidden) for p in (experts.loc, experts.scale))
    return loc.masked_fill(hidden, 0.0), scale.masked_fill(hidden, 1.0)


def checked_weights(rule: str, weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """
    The weights as numbers.

    :raises ValueError: unless all are positive and finite.
    """
    if weights is None:
        return None
    given = tuple(float(w) for w in weights)
    if not given or not all(0 < w < math.inf for w in given):
        raise ValueError(
            f"{rule}: weights must be positive and finite, got {list(given)}. Fix: an expert of weight 0 is one "
            "without an encoder."
        )
    return given


def observed_shares(
    rule: str,
    weights: tuple[float, ...] | None,
    experts: Experts,
    mask: Tensor,  # shape: (M, *batch), bool
) -> Tensor:  # shape: (M, *batch)
    """
    Weights divided by their sum over what is observed; 0 elsewhere.

    :raises ValueError: if there is not one weight per expert.
    """
    if weights is not None and len(weights) != len(experts.names):
        raise ValueError(
            f"{rule}: {len(experts.names)} experts of {list(experts.names)} need as many weights, got {len(weights)}."
        )
    own = mask.to(experts.loc.dtype)
    if weights is not None and len(mask) == len(weights):  # a single row per expert: its share is 1
        own = own * experts.loc.new_tensor(weights).reshape(-1, *(1,) * (mask.dim() - 1))
    return own / (own.sum(0) + (~mask.any(0)).to(own.dtype))


def normal_or_prior(
    prior: Any,
    loc: Tensor,  # shape: (*batch, D)
    scale: Tensor,  # shape: (*batch, D), standard deviation
    seen: Tensor,  # shape: batch, bool
) -> Any:  # batch_shape: batch, event_shape: (D,)
    """N(loc, scale) where something is observed, the prior elsewhere; a Normal if the prior is one."""
    prior_loc, prior_scale, gaussian = gaussian_prior(prior)
    rows = seen.unsqueeze(-1)
    fused = SharedScaleNormal(torch.where(rows, loc, prior_loc), torch.where(rows, scale, prior_scale)).to_event(1)
    return fused if gaussian else with_prior(prior, fused, seen)
