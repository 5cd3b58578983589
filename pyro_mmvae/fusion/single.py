"""The one expert of a private latent.

Layer: fusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.pool import with_prior
from pyro_mmvae.nn import Configurable

__all__ = ["Single"]


class Single(Configurable, Fusion):
    r"""
    The expert itself where its modality is observed, the story's prior elsewhere; any family.

    With an auxiliary prior r [1] the terms of an objective draw from r in place of the story's prior. Such draws are
    *neutral*: they add neither log p(w) nor log r(w), unless ``counted``: then log p(w) - log r(w) where their modality
    is observed, which makes a bound of the story's own likelihood.

    :param auxiliary: module whose call returns r.
    :param counted: see above.
    :param predict: which of the two verbs draw from: the story's "prior", or the "auxiliary" one.
    :raises ValueError: if a site has more than one encoder.

    [1] *MMVAE+: Enhancing the Generative Quality of Multimodal VAEs without Compromises*, Palumbo, Daunhawer and Vogt,
    ICLR 2023, section 3.
    """

    def __init__(
        self,
        auxiliary: nn.Module | None = None,
        *,
        counted: bool = False,
        predict: Literal["prior", "auxiliary"] = "prior",
    ) -> None:
        super().__init__()
        if predict not in ("prior", "auxiliary"):
            raise ValueError(f"predict: expected 'prior' or 'auxiliary', got {predict!r}.")
        if auxiliary is None and (counted or predict == "auxiliary"):
            raise ValueError("Single: counted and predict='auxiliary' need an auxiliary prior.")
        self.auxiliary, self.counted, self.predict = auxiliary, counted, predict

    def options(self) -> Mapping[str, Any]:
        return {} if self.auxiliary is None else {"counted": self.counted, "predict": self.predict}

    @property
    def counts(self) -> Literal["observed", "inferred"] | None:
        """Where the densities of draws count in a term, if not everywhere."""
        if self.auxiliary is None:
            return None
        return "observed" if self.counted else "inferred"

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        return self._or(prior, experts, mask, self.predict == "auxiliary")

    def component(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        """As in a term: the auxiliary prior where nothing is observed."""
        return self._or(prior, experts, mask, True)

    def _or(self, prior: Any, experts: Experts, mask: Tensor, auxiliary: bool) -> Any:
        if auxiliary and self.auxiliary is not None:
            prior = self.auxiliary()
        if len(experts.dists) != 1:
            raise ValueError(f"Single: one expert expected, got those of {list(experts.names)}. Fix: a fusion rule.")
        return with_prior(prior, experts.dists[0], mask[0])
