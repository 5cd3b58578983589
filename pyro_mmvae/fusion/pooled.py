"""One network for any set of modalities, without experts.

Layer: fusion.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.pool import with_prior
from pyro_mmvae.masks import Data, ObsMask
from pyro_mmvae.nn import Configurable
from pyro_mmvae.nn.covariates import declared

__all__ = ["Pooled"]


class Pooled(Configurable, Fusion):
    r"""
    q(z | x_S) by one network of the set S [1]; the story's prior where nothing is observed.

    .. math:: q(z \mid x_S) = \mathrm{head}(\{f_m(x_m) : m \in S\}) \text{ if } S \ne \emptyset, \qquad
        q(z \mid x_\emptyset) = p(z)

    The features :math:`f_m` are computed once per step, on all rows, the head for every mask. The networks are the
    rule's own: the latent site needs no encoders besides. Covariates that the encoder has in its attribute
    ``covariates`` are in the data that it is given.

    Laws: what is not in S never matters, nor, if the encoder keeps its parameters by name, does the order of
    modalities. A Gaussian posterior and a Gaussian prior give a Gaussian.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_mmvae.nn import SumPoolingEncoder
        >>> rule = Pooled(SumPoolingEncoder({"a": 4, "b": 3}, 2))
        >>> features = rule.encoder.features({"a": torch.zeros(5, 4), "b": torch.zeros(5, 3)})
        >>> experts = Experts(rule.modalities, (), features)
        >>> q = rule(dist.Normal(torch.zeros(2), 1.0).to_event(1), experts, torch.zeros(2, 5, dtype=torch.bool))
        >>> q.batch_shape, q.mean[0].tolist()
        (torch.Size([5]), [0.0, 0.0])

    :param encoder: module with ``modalities`` (names), ``features(data) -> (B, M, F)`` (or
        ``features(data, obs_mask)``), and ``head(features, mask)`` from masks (\*lead, B, M) to a Distribution over z,
        such as :class:`pyro_mmvae.nn.SumPoolingEncoder`, :class:`pyro_mmvae.nn.AttentionEncoder` or
        :class:`pyro_mmvae.nn.JointEncoder`.
    :raises TypeError: if the encoder lacks one of these.

    [1] *Learning multi-modal generative models with permutation-invariant encoders and tighter variational objectives*,
    Hirt, Campolo, Leong and Ortega, TMLR 2024, arXiv:2309.00380, section 4.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        lacks = [name for name in ("modalities", "features", "head") if not hasattr(encoder, name)]
        if lacks:
            raise TypeError(
                f"Pooled: expected an encoder of sets with modalities, features and head, got "
                f"{type(encoder).__name__}, which lacks {lacks}. Fix: e.g. mm.nn.SumPoolingEncoder(shapes, latent_dim)."
            )
        self.encoder: Any = encoder
        features: Any = encoder.features
        self._with_mask = "obs_mask" in inspect.signature(features).parameters

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the encoder listens to, in the order of its features."""
        return tuple(self.encoder.modalities)

    @property
    def covariates(self) -> tuple[str, ...]:
        """Those of the encoder."""
        names = declared(self.encoder)
        return () if names is None else tuple(names)

    def options(self) -> Mapping[str, Any]:
        """The kind of encoder; its parameters are in the ``state_dict``."""
        return {"encoder": type(self.encoder).__name__}

    def features(self, data: Data, obs_mask: ObsMask) -> Tensor:  # shape: (B, M, F)
        return self.encoder.features(data, obs_mask) if self._with_mask else self.encoder.features(data)

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        shown = torch.stack([mask[experts.names.index(m)] for m in self.modalities], -1)
        posterior = self.encoder.head(experts.features, shown)
        if posterior.event_shape != prior.event_shape:
            raise ValueError(
                f"Pooled: the latent has event shape {tuple(prior.event_shape)}, the encoder's posterior "
                f"{tuple(posterior.event_shape)}. Fix: latent_dim={prior.event_shape.numel()} in the encoder."
            )
        return with_prior(prior, posterior, shown.any(-1))
