"""MMVAE+: a mixture of experts with private latents and auxiliary priors.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pyro_mmvae.models.parts import Networks, Prior, Rescale, prior_of
from pyro_mmvae.models.shared_private import Auxiliary, mixture_with_private
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives.iwae import Gradient
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["MMVAEPlus"]


class MMVAEPlus(Configurable, MultimodalVAE):
    r"""
    MMVAE+ [1].

    Model: :math:`z \sim p(z)`, private :math:`w_m \sim p(w_m)`, :math:`x_m \mid z, w_m` independent. Family:
    :math:`q(z \mid x_S) = |S|^{-1} \sum_{m \in S} q(z \mid x_m)`, :math:`q(w_m \mid x_m)`. In training a modality is
    explained from another's z with noise :math:`\tilde w_n \sim r_n` of an auxiliary prior in place of its private
    latent. Objective:

    .. math:: \mathcal{L} = \frac{1}{|O|} \sum_{m \in O} E \log \frac{1}{K} \sum_k p(x_m \mid z, w_m)^{\lambda_m}
        \prod_{n \in O \setminus m} p(x_n \mid z, \tilde w_n)^{\lambda_n}
        \Bigl( \frac{p(z) p(w_m)}{q(z \mid x_O) q(w_m \mid x_m)} \Bigr)^\beta

    Estimator: K draws of (z, w_m) and of fresh noise from each observed expert decode everything observed; the
    denominator has the mixture's density for z. With r = p(w) ("prior") it bounds log p(x_O); with learned r it bounds
    the likelihood of a model whose other private latents follow r, and ``auxiliary_kl`` adds what makes it a bound
    again. Missing data: the mixture runs over what is observed; w_m is inferred in row m alone.
    The verbs take q(w_m | x_m) where m is observed, p(w_m) elsewhere, or r_m on request.

    Example::

        >>> import pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, 2, family="laplace_softmax") for m in ("a", "b")}
        >>> own = {m: mm.nn.MLPEncoder(4, 1, family="laplace_softmax") for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(3, 4, likelihood="laplace") for m in ("a", "b")}
        >>> dims = {"a": 1, "b": 1}
        >>> vae = MMVAEPlus(enc, dec, latent_dim=2, private_encoders=own, private_dims=dims)

    :param encoders: modality -> module whose call returns the expert; one location-scale family for all.
    :param decoders: modality -> module from [z, w_m] to a Distribution over the modality.
    :param latent_dim: size of z.
    :param private_encoders: modality -> encoder of its private latent.
    :param private_dims: modality -> size of its private latent.
    :param auxiliary: r: "learned" (the paper), "prior", or "posterior": w_n ~ q(w_n | x_n) in every row, with its
        density counted (the published factorized form leaves it out, and is no bound).
    :param auxiliary_kl: count log p(w) - log r(w) of the noise.
    :param predict: what verbs draw a missing modality's private latent from: "prior", or "auxiliary".
    :param num_particles: K (the published runs: 1; multivae: 10).
    :param gradient: "path" (unbiased, the default), "dreg_private" (unbiased: doubly reparametrized for w), "stl", or
        "dreg" (as multivae; biased for K > 1: the density of z is a mixture).
    :param beta: exponent of prior over posterior inside the weights (PolyMNIST: 2.5).
    :param warmup: training steps over which beta rises linearly from 0.
    :param prior: p(z): "laplace", "normal", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param private_prior: family of p(w) and r: "laplace" or "normal", with unit and with learned scale; those of a
        Laplace r have mean 1, so that of a single dimension is fixed.
    :param rescale: likelihood factors inside the weights: None, "dimensions", or modality -> factor.

    [1] *MMVAE+: Enhancing the Generative Quality of Multimodal VAEs without Compromises*, Palumbo, Daunhawer and Vogt,
    ICLR 2023, OpenReview sdQGxouELX, eqs. (4) to (7).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        private_encoders: Networks,
        private_dims: Mapping[str, int],
        auxiliary: Auxiliary = "learned",
        auxiliary_kl: bool = False,
        predict: Literal["prior", "auxiliary"] = "prior",
        num_particles: int = 1,
        gradient: Gradient = "path",
        beta: float = 1.0,
        warmup: int = 0,
        prior: Prior = "laplace",
        learn_prior: bool = False,
        private_prior: Literal["laplace", "normal"] = "laplace",
        rescale: Rescale = None,
    ) -> None:
        parts = mixture_with_private(
            encoders,
            decoders,
            latent_dim,
            prior=prior_of(prior, latent_dim, learn_prior),
            family=private_prior,
            private_encoders=private_encoders,
            private_dims=private_dims,
            auxiliary=auxiliary,
            auxiliary_kl=auxiliary_kl,
            predict=predict,
            num_particles=num_particles,
            gradient=gradient,
            beta=beta,
            warmup=warmup,
            rescale=rescale,
        )
        super().__init__(*parts)
