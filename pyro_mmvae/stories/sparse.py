"""The improper prior of sparse latents.

Layer: stories.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.distributions import LogUniform
from pyro_mmvae.nn import Configurable
from pyro_mmvae.nn.mlp import positive_int

__all__ = ["LogUniformPrior"]


class LogUniformPrior(Configurable, nn.Module):
    r"""
    :math:`p(z) \propto \prod_d |z_d|^{-1}`, improper: beside dropout experts, dimensions that are not needed vanish.

    The sparse prior of [1]. Bounds are known up to a constant, nothing can be generated from it, and a sample of which
    nothing is observed has z = 0 and divergence 0. See :class:`~pyro_mmvae.distributions.LogUniform`.

    Example::

        >>> LogUniformPrior(3)().event_shape
        torch.Size([3])

    :param latent_dim: size of z.
    :raises ValueError: if ``latent_dim`` is no positive integer.

    [1] *Sparse Multi-Channel Variational Autoencoder for the Joint Analysis of Heterogeneous Data*, Antelmi, Ayache,
    Robert and Lorenzi, ICML 2019, PMLR 97:302-311.
    """

    _zero: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("_zero", torch.zeros(positive_int(latent_dim, "latent_dim")), persistent=False)

    def forward(self) -> Any:  # event_shape: (D,)
        return LogUniform(self._zero).to_event(1)
