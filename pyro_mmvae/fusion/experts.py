"""Experts q(z|x_m) of one latent site, and the interface of the rules that fuse them.

Layer: fusion, above handlers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_mmvae.distributions import map_params, unwrap
from pyro_mmvae.masks import Data, ObsMask

__all__ = ["Experts", "Fusion"]


@dataclass
class Experts:
    """
    One expert per modality, each a Distribution with batch shape ``(B,)`` and event shape ``(D,)``.

    :ivar names: modalities, in the order of the mask's first dimension.
    :ivar dists: the experts; rows of unobserved samples hold finite values that the mask takes out. None at all for
        rules that work on features alone.
    :ivar features: what the fusion rule's own networks made of the data, or None.
    :ivar largest: an upper bound of the number of experts used in any row, if known on the host.
    :ivar needed: whether rows that observe nothing are used: the prior is then their posterior; else anything finite.
    """

    names: tuple[str, ...]
    dists: tuple[Any, ...]
    features: Any = None
    largest: int | None = None
    needed: bool = True

    def detach(self) -> Experts:
        """The same experts, cut from the graph of their encoders."""
        dists = tuple(map_params(q, lambda p, constraint, k: p.detach()) for q in self.dists)
        features = self.features.detach() if isinstance(self.features, Tensor) else self.features
        return Experts(self.names, dists, features, self.largest, self.needed)

    def only(self, members: Sequence[int]) -> Experts:
        """
        One expert for each leading row of the masks, in place of all of them.

        Semantically equivalent to the same experts under masks that are False elsewhere; ``loc`` and ``scale`` have
        shape ``(1, U, B, D)``, or ``(1, B, D)`` for a single row.
        """
        one = Experts(self.names, self.dists, self.features, largest=1, needed=self.needed)
        for name in ("loc", "scale"):
            rows = getattr(self, name)[list(members)]
            one.__dict__[name] = rows if len(members) == 1 else rows.unsqueeze(0)
        return one

    @property
    def like(self) -> Tensor:
        """A tensor of the experts' type and place: their locations, or the features where there are no experts."""
        return self.loc if self.dists else self.features

    @cached_property
    def loc(self) -> Tensor:  # shape: (M, B, D)
        """Stacked locations."""
        return torch.stack([unwrap(q).loc for q in self.dists])

    @cached_property
    def scale(self) -> Tensor:  # shape: (M, B, D)
        """Stacked standard deviations (Normal) or scales (Laplace)."""
        return torch.stack([unwrap(q).scale for q in self.dists])

    def family(self) -> type:
        """The class all experts share."""
        kinds = {type(unwrap(q)) for q in self.dists}
        if len(kinds) > 1:
            raise ValueError(
                f"Experts of {list(self.names)} have different families {sorted(k.__name__ for k in kinds)}. Fix: "
                "one family for all encoders of a latent site."
            )
        return kinds.pop()


class Fusion(nn.Module, ABC):
    """
    A rule q(z | x_S) from experts, mask and the story's prior.

    Laws: permuting experts changes nothing; where no expert is observed the result is the prior; inputs stay as
    they are.
    """

    #: Whether the rule is the same for rows that can see a single expert when it is given that expert alone.
    takes_single_rows = False

    @property
    def modalities(self) -> tuple[str, ...] | None:
        """For rules that encode modalities themselves and use no experts, which ones; None for rules of experts."""
        return None

    @property
    def covariates(self) -> tuple[str, ...]:
        """For rules with networks of their own, the covariates that these read from the data."""
        return ()

    @property
    def counts(self) -> Literal["observed", "inferred"] | None:
        """Where the densities of draws count in a term, if not everywhere: for draws from an auxiliary prior."""
        return None

    def features(self, data: Data, obs_mask: ObsMask) -> Any:
        """What the rule's own networks compute from the data, once per step; None if it has none."""
        return None

    @abstractmethod
    def forward(
        self,
        prior: Any,  # batch_shape: broadcastable to batch, event_shape: (D,)
        experts: Experts,
        mask: Tensor,  # shape: (M, *batch), bool
    ) -> Any:  # batch_shape: batch, event_shape: (D,)
        """The fused posterior."""

    def component(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        """The single component that a table of terms asks for; for rules that are no mixtures, the posterior."""
        return self(prior, experts, mask)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.options().items())

    def options(self) -> Mapping[str, Any]:
        """The rule's options as plain values."""
        return {}
