"""MMVAE: mixture of experts, importance-weighted bounds.

Layer: models.
"""

from __future__ import annotations

from typing import Literal

from pyro_mmvae.fusion import Mixture
from pyro_mmvae.guides import Fused
from pyro_mmvae.models.parts import Networks, Prior, Rescale, factors, model_of, nonnegative, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import IWAE, Annealed, Each, Observed, Term, Terms
from pyro_mmvae.objectives.iwae import Gradient
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["MMVAE"]


class MMVAE(Configurable, MultimodalVAE):
    r"""
    Multimodal VAE with a mixture of experts [1].

    Model: :math:`z \sim \mathrm{Laplace}(0, b)`, b learned with mean 1; :math:`x_m \mid z` independent. Family:
    :math:`q(z \mid x_S) = |S|^{-1} \sum_{m \in S} q(z \mid x_m)`, no prior expert. Objective ("looser"):

    .. math:: \mathcal{L} = \frac{1}{|O|} \sum_{m \in O} E_{z_{1:K} \sim q(z \mid x_m)} \log \frac{1}{K} \sum_k
        \frac{p(z_k) \prod_{n \in O} p(x_n \mid z_k)}{q(z_k \mid x_O)}

    Estimator: K draws from each observed expert; every draw decodes every observed modality; the denominator is the
    density of the mixture. It bounds log p(x_O), tighter as K grows; "tight" pools the experts under the logarithm.
    Missing data: the mixture runs over the observed experts, M becomes \|O\|.

    Example::

        >>> import torch
        >>> import pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2, family="laplace_softmax") for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4, likelihood="laplace") for m in ("a", "b")}
        >>> vae = MMVAE(enc, dec, latent_dim=2, num_particles=3)
        >>> vae.predict({"a": torch.zeros(3, 4)}, num_samples=5)["b"].shape
        torch.Size([5, 3, 4])

    :param encoders: modality -> module whose call returns the expert; one location-scale family for all.
    :param decoders: modality -> module from z to a Distribution over the modality.
    :param latent_dim: size of z.
    :param num_particles: K (the paper: 30 for MNIST-SVHN).
    :param gradient: "path" (unbiased, the default), "dreg" as published, "stl", or the exact "dreg_mixture".
    :param bound: "looser" (the paper) or "tight".
    :param density: denominator: "mixture", or "component" (each expert's own, the naive lower bound).
    :param beta: exponent of p(z) / q(z) in the weights; 1 is the paper's.
    :param warmup: training steps over which beta rises linearly from 0.
    :param prior: p(z): "laplace", "normal", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors inside the weights: None, "dimensions" (the published code), or a mapping.

    [1] *Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models*, Shi, Siddharth, Paige and
    Torr, NeurIPS 2019, arXiv:1911.03393, eqs. (3) to (5).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        num_particles: int = 10,
        gradient: Gradient = "path",
        bound: Literal["looser", "tight"] = "looser",
        density: Literal["mixture", "component"] = "mixture",
        beta: float = 1.0,
        warmup: int = 0,
        prior: Prior = "laplace",
        learn_prior: bool = True,
        rescale: Rescale = None,
    ) -> None:
        nonnegative(beta=beta)
        model = model_of(encoders, decoders, latent_dim, prior=prior_of(prior, latent_dim, learn_prior))
        guide = Fused(model, {"z": encoders}, fusion=Mixture())
        term = Term(
            Each(),
            Observed(),
            weight=1 / len(encoders),
            renormalize=True,
            beta=Annealed(beta, warmup),
            rescale=factors(model, rescale),
        )
        objective = IWAE(Terms([term]), num_particles=num_particles, gradient=gradient, bound=bound, density=density)
        super().__init__(model, guide, objective)
