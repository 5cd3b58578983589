"""Terms see single experts, verbs see another rule.

Layer: fusion.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.mixture import Mixture
from pyro_mmvae.masks import Data, ObsMask
from pyro_mmvae.nn import Configurable

__all__ = ["Stratified"]


class Stratified(Configurable, Fusion):
    """
    A guide whose terms draw from single experts, as a :class:`Mixture` does, and whose posterior is another rule.

    For objectives of the mixture of experts that come with a posterior of their own for subsets, such as mmJSD's
    geometric mean.

    :param posterior: the rule of q(z | x_S).
    :raises TypeError: if it is no rule.
    """

    def __init__(self, posterior: Fusion) -> None:
        super().__init__()
        if not isinstance(posterior, Fusion):
            kind = type(posterior).__name__
            raise TypeError(f"posterior: expected a rule of fusion, got {kind}. Fix: e.g. fusion.Product().")
        self.posterior, self.experts = posterior, Mixture()

    @property
    def covariates(self) -> tuple[str, ...]:
        """Those of the posterior's rule."""
        return self.posterior.covariates

    def features(self, data: Data, obs_mask: ObsMask) -> Any:
        return self.posterior.features(data, obs_mask)

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        return self.posterior(prior, experts, mask)

    def component(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        """The single observed expert of each row."""
        return self.experts.component(prior, experts, mask)
