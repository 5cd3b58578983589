"""The library's stories: one shared latent, and one shared with private ones beside it.

Layer: stories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mmvae.nn import NamedModules, covariates_of
from pyro_mmvae.nn.covariates import union
from pyro_mmvae.stories.priors import NormalPrior

__all__ = ["Shared", "SharedPrivate"]


def _decoded(
    decoder: nn.Module,
    z: Tensor,  # shape: (*batch, D)
    names: Iterable[str],
    covariates: Mapping[str, Tensor],  # each shape: (B, ...)
) -> TorchDistribution:  # batch_shape: batch
    """The likelihood at z; a decoder gets each covariate that it reads, ``names``, with the batch dimensions of z."""
    own = {}
    for name in names:
        if name in covariates:
            x = covariates[name]
            own[name] = x.expand(torch.broadcast_shapes(z.shape[:-1], x.shape[:1]) + x.shape[1:])
    return decoder(z, **own)


def _arguments(decoders: NamedModules) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the decoders read beside the latents, and what of it they need."""
    names = union(decoders.values())
    return tuple(names), tuple(name for name, needed in names.items() if needed)


class Shared(nn.Module):
    r"""
    .. math:: z \sim p(z), \qquad x_m \mid z, c \sim p(x_m \mid z, c) \text{ independently}

    The covariates c are what the decoders read, see :func:`pyro_mmvae.nn.covariates_of`; without any, nothing is given.

    Example::

        >>> import pyro_mmvae as mm
        >>> site = mm.columns.Column("site", "categorical", ("A", "B"))
        >>> story = Shared({"a": mm.nn.MLPDecoder(2, 3, context=[site])}, mm.stories.NormalPrior(2))
        >>> model = mm.observe(story, ("a",))
        >>> model.covariates
        ('site',)

    :param decoders: modality -> module from z ``(*batch, D)`` to a Distribution over the modality, plain or lazy.
    :param prior: module whose call returns p(z), event shape ``(D,)``.
    :ivar covariates: the covariates of all decoders, by name: the story's arguments.
    """

    def __init__(self, decoders: Mapping[str, nn.Module], prior: nn.Module) -> None:
        super().__init__()
        self.decoders, self.prior = NamedModules(decoders), prior
        self.covariates, self.required_covariates = _arguments(self.decoders)
        self._reads = {m: covariates_of(decoder) for m, decoder in self.decoders.items()}

    def forward(
        self,
        **covariates: Tensor,  # each shape: (B, ...)
    ) -> None:
        """One sample."""
        z = pyro.sample("z", self.prior())
        for m in self.decoders:
            pyro.sample(m, _decoded(self.decoders[m], z, self._reads[m], covariates))


class SharedPrivate(nn.Module):
    r"""
    .. math:: z \sim p(z), \quad w_m \sim p(w_m), \quad x_m \mid z, w_m, c \sim p(x_m \mid [z, w_m], c)

    The private latent of modality m is the site ``z_<m>``; declare it, ``private=story.private``. Covariates c as in
    :class:`Shared`.

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
        self.covariates, self.required_covariates = _arguments(self.decoders)
        self._reads = {m: covariates_of(decoder) for m, decoder in self.decoders.items()}

    def forward(
        self,
        **covariates: Tensor,  # each shape: (B, ...)
    ) -> None:
        """One sample."""
        z = pyro.sample("z", self.prior())
        own = {m: pyro.sample(f"z_{m}", self.private_priors[m]()) for m in self.private_dims}
        for m in self.decoders:
            both = torch.cat([z, own[m]], -1) if m in own else z
            pyro.sample(m, _decoded(self.decoders[m], both, self._reads[m], covariates))
