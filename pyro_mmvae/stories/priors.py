"""Priors over a latent vector, with or without parameters of their own.

Layer: stories.
"""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mmvae.distributions import SharedScaleNormal
from pyro_mmvae.nn import Configurable
from pyro_mmvae.nn.mlp import positive_int

__all__ = ["LaplacePrior", "NormalPrior"]


class NormalPrior(Configurable, nn.Module):
    r"""
    :math:`p(z) = \mathcal{N}(\mu, \mathrm{diag}\, \sigma^2)`, standard unless ``learn``.

    Example::

        >>> NormalPrior(3)().event_shape
        torch.Size([3])

    :param latent_dim: size of z.
    :param learn: whether location and standard deviation are parameters (starting at 0 and 1), or "scale": the latter.
    :raises ValueError: if ``latent_dim`` is no positive integer.
    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, latent_dim: int, *, learn: bool | Literal["scale"] = False) -> None:
        super().__init__()
        if learn not in (True, False, "scale"):
            raise ValueError(f"learn: expected True, False or 'scale', got {learn!r}.")
        self.learn = learn
        for name, own in (("loc", learn is True), ("log_scale", bool(learn))):
            value = torch.zeros(positive_int(latent_dim, "latent_dim"))
            setattr(self, name, nn.Parameter(value)) if own else self.register_buffer(name, value)

    def forward(self) -> Any:  # event_shape: (D,)
        return SharedScaleNormal(self.loc, self.log_scale.exp()).to_event(1)


class LaplacePrior(Configurable, nn.Module):
    r"""
    :math:`p(z) = \mathrm{Laplace}(0, b)` with :math:`b = D \, \mathrm{softmax}(\eta)`, whose mean is always 1 [1].

    Example::

        >>> LaplacePrior(4)().base_dist.scale.mean().item()
        1.0

    :param latent_dim: size of z.
    :param learn: whether :math:`\eta` is a parameter (starting at 0: all scales 1).
    :raises ValueError: if ``latent_dim`` is no positive integer.

    [1] *Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models*, Shi, Siddharth, Paige and
    Torr, NeurIPS 2019, arXiv:1911.03393; the parametrization is that of the published code.
    """

    def __init__(self, latent_dim: int, *, learn: bool = True) -> None:
        super().__init__()
        self.learn = learn
        value = torch.zeros(positive_int(latent_dim, "latent_dim"))
        if learn:
            self.logits = nn.Parameter(value)
        else:
            self.register_buffer("logits", value)

    def forward(self) -> Any:  # event_shape: (D,)
        scale = self.logits.softmax(-1) * self.logits.shape[-1]
        return dist.Laplace(torch.zeros_like(scale), scale).to_event(1)
