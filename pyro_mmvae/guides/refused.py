"""A guide's experts under another rule.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyro_mmvae.fusion import Experts, Fusion
from pyro_mmvae.guides.fused import Fused
from pyro_mmvae.masks import ObsMask
from pyro_mmvae.nn import NamedModules

__all__ = ["Refused"]


class Refused(nn.Module):
    """
    The experts of a guide, fused by another rule: a program with the guide's signature.

    For priors that are made of the experts themselves, such as mmJSD's dynamic prior or MMVM's mixture. It has the
    rule's parameters; the encoders stay the guide's.

    Example::

        >>> import torch, pyro_mmvae as mm
        >>> story = mm.stories.Shared({"a": mm.nn.MLPDecoder(2, 3)}, mm.stories.NormalPrior(2))
        >>> guide = mm.guides.Product(mm.observe(story, ("a",)), {"a": mm.nn.MLPEncoder(3, 2)})
        >>> Refused(guide, mm.fusion.Mixture()).vectorized
        True

    :param guide: has the encoders.
    :param fusion: the rule of the shared latents, or site -> rule; other sites keep the guide's own.
    """

    vectorized = True

    guide: Fused
    fusion: Any

    def __init__(self, guide: Fused, fusion: Fusion | Mapping[str, Fusion]) -> None:
        super().__init__()
        object.__setattr__(self, "guide", guide)  # its parameters are its own
        shared = [site for site in guide.encoders if site not in guide.observed.private]
        unknown = sorted(set(fusion) - set(guide.encoders)) if isinstance(fusion, Mapping) else []
        if unknown:
            raise ValueError(f"Refused: unknown latent sites {unknown}; the guide's are {list(guide.encoders)}.")
        self.fusion = NamedModules(fusion if isinstance(fusion, Mapping) else dict.fromkeys(shared, fusion))

    def forward(
        self,
        data: Mapping[str, Tensor | None] | None = None,
        obs_mask: ObsMask | Mapping[str, Tensor | None] | None = None,
        n: int | None = None,
        *,
        experts: Mapping[str, Experts] | None = None,
    ) -> None:
        rules = {**dict(self.guide.fusion.items()), **dict(self.fusion.items())}
        self.guide(data, obs_mask, n, experts=experts, fusion=rules)

    def __repr__(self) -> str:
        return " ".join(dict.fromkeys(type(rule).__name__ for rule in self.fusion.values()))
