"""Channels of few features that share fewer latent dimensions: the synthetic data of the sparse multi-channel VAE.
Layer: datasets."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mmvae.datasets import _checks
from pyro_mmvae.datasets.linear_gaussian import LinearGaussian
from pyro_mmvae.datasets.multimodal import MultimodalDataset

__all__ = ["channels"]


def channels(
    n: int = 500,
    num_channels: int = 3,
    size: int = 4,
    latent_dim: int = 2,
    snr: float | None = 10.0,
    seed: int = 0,
) -> MultimodalDataset:
    r"""
    Channels ``x1`` to ``xM`` that are orthonormal maps of one latent, standardized, with noise [1].

    .. math:: z \sim N(0, I), \qquad x_m = S \bigl( S(U_m z) + \mathrm{snr}^{-1/2} \epsilon_m \bigr), \quad
        \epsilon_m \sim N(0, I)

    :math:`U_m` are the left singular vectors of a matrix with independent entries from [-1, 1]; S subtracts from every
    column its mean and divides by its standard deviation. A sparse model of more dimensions keeps ``latent_dim``.
    ``labels`` holds the z of each row. ``truth`` has the closed forms in the units of the data, in float64, as if the
    means and deviations had been known beforehand; None without noise.

    Example::

        >>> ds = channels()
        >>> list(ds.data), tuple(ds.data["x1"].shape)
        (['x1', 'x2', 'x3'], (500, 4))
        >>> bool(ds.data["x2"].std(0, correction=0).sub(1).abs().max() < 1e-6)
        True

    :param n: number of rows, at least 2.
    :param num_channels: M.
    :param size: features of each channel.
    :param latent_dim: size of z, at most ``size``.
    :param snr: variance of the signal over that of the noise in every column; None: no noise.
    :raises ValueError: for sizes below these, or a ratio that is not positive.

    [1] *Sparse Multi-Channel Variational Autoencoder for the Joint Analysis of Heterogeneous Data*, Antelmi, Ayache,
    Robert and Lorenzi, ICML 2019, PMLR 97:302-311, section 4.1.
    """
    if n < 2 or num_channels < 1 or not 1 <= latent_dim <= size:
        raise ValueError(
            f"expected n >= 2, num_channels >= 1 and 1 <= latent_dim <= size, got n={n}, num_channels={num_channels}, "
            f"latent_dim={latent_dim}, size={size}."
        )
    if snr is not None and not snr > 0:
        raise ValueError(f"snr: expected a ratio of variances > 0, or None for no noise, got {snr}.")
    rng = _checks.generator(seed)
    z = torch.randn(n, latent_dim, generator=rng, dtype=torch.float64, device="cpu")
    data, weights, bias, noise = {}, {}, {}, {}
    for m in (f"x{i + 1}" for i in range(num_channels)):
        uniform = 2 * torch.rand(size, latent_dim, generator=rng, dtype=torch.float64, device="cpu") - 1
        u = torch.linalg.svd(uniform, full_matrices=False).U
        x, mean, scale = _standardized(z @ u.mT)
        w, b = u / scale.unsqueeze(-1), -mean / scale
        if snr is not None:
            noisy = x + snr**-0.5 * torch.randn(x.shape, generator=rng, dtype=torch.float64, device="cpu")
            x, mean, scale = _standardized(noisy)
            w, b, noise[m] = w / scale.unsqueeze(-1), (b - mean) / scale, snr**-0.5 / scale
        data[m], weights[m], bias[m] = x, w, b
    dtype = torch.get_default_dtype()
    ds = MultimodalDataset({m: x.to(dtype) for m, x in data.items()}, labels=z.to(dtype))
    ds.truth = None if snr is None else LinearGaussian(weights, bias, noise)
    return ds


def _standardized(
    x: Tensor,  # shape: (n, F)
) -> tuple[Tensor, Tensor, Tensor]:  # shapes: (n, F), (F,), (F,)
    """The standardized columns, their means and their standard deviations."""
    mean, scale = x.mean(0), x.std(0, correction=0)
    return (x - mean) / scale, mean, scale
