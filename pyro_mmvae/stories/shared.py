"""The library's stories: one shared latent, and one shared with private ones beside it.

Layer: stories.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import torch
from torch import nn

from pyro_mmvae.nn import NamedModules
from pyro_mmvae.stories.priors import NormalPrior

__all__ = ["Shared", "SharedPrivate"]


class Shared(nn.Module):
    r"""
    .. math:: z \sim p(z), \qquad x_m \mid z \sim p(x_m \mid z) \text{ independently}

    Example::

        >>> import pyro_mmvae as mm
        >>> story = Shared({"a": mm.nn.MLPDecoder(2, 3)}, mm.stories.NormalPrior(2))
        >>> model = mm.observe(story, ("a",))

    :param decoders: modality -> module from z ``(*batch, D)`` to a Distribution over the modality, plain or lazy.
    :param prior: module whose call returns p(z), event shape ``(D,)``.
    """

    def __init__(self, decoders: Mapping[str, nn.Module], prior: nn.Module) -> None:
        super().__init__()
        self.decoders, self.prior = NamedModules(decoders), prior

    def forward(self) -> None:
        """One sample."""
        z = pyro.sample("z", self.prior())
        for m in self.decoders:
            pyro.sample(m, self.decoders[m](z))


class SharedPrivate(nn.Module):
    r"""
    .. math:: z \sim p(z), \quad w_m \sim p(w_m), \quad x_m \mid z, w_m \sim p(x_m \mid [z, w_m])

    The private latent of modality m is the site ``z_<m>``; declare it, ``private=story.private``.

    :param decoders: modality -> module from ``[z, w_m]``, shape ``(*batch, D + D_m)``, to a Distribution.
    :param prior: module whose call returns p(z).
    :param private_dims: modality -> D_m; modalities left out have no private latent.
    :param private_priors: modality -> module whose call returns p(w_m); those left out have a standard normal one.
    """

    def __init__(
        self,
        decoders: Mapping[str, nn.Module],
        prior: nn.Module,
        private_dims: Mapping[str, int],
        private_priors: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        priors = {} if private_priors is None else private_priors
        unknown = (set(private_dims) - set(decoders)) | (set(priors) - set(private_dims))
        if unknown:
            raise ValueError(f"private_dims: unknown modalities {sorted(unknown)}; known are {list(decoders)}.")
        for m, size in private_dims.items():
            if size < 1:
                raise ValueError(f"private_dims[{m!r}]: expected at least 1, got {size}. Fix: leave {m!r} out.")
        self.decoders, self.prior = NamedModules(decoders), prior
        self.private_priors = NamedModules({m: priors.get(m, NormalPrior(d)) for m, d in private_dims.items()})
        self.private_dims = dict(private_dims)
        self.private = {f"z_{m}": m for m in private_dims}

    def forward(self) -> None:
        """One sample."""
        z = pyro.sample("z", self.prior())
        own = {m: pyro.sample(f"z_{m}", self.private_priors[m]()) for m in self.private_dims}
        for m in self.decoders:
            pyro.sample(m, self.decoders[m](torch.cat([z, own[m]], -1) if m in own else z))
