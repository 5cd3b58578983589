"""The one expert of a private latent.

Layer: fusion.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.pool import with_prior

__all__ = ["Single"]


class Single(Fusion):
    """
    The expert itself where its modality is observed, the story's prior elsewhere; any family.

    :raises ValueError: if a site has more than one encoder.
    """

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        if len(experts.dists) != 1:
            raise ValueError(f"Single: one expert expected, got those of {list(experts.names)}. Fix: a fusion rule.")
        return with_prior(prior, experts.dists[0], mask[0])
