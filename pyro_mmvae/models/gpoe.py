"""GPoE: a product of experts with learned exponents.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_mmvae.fusion import GeneralizedProduct
from pyro_mmvae.models.parts import Networks, Prior, Rescale, each_beta, factors, guide_of, model_of, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["GPoE"]


class GPoE(Configurable, MultimodalVAE):
    r"""
    Multimodal VAE with a generalized product of experts [1].

    Model: :math:`z \sim p(z)`, optional private :math:`w_m \sim \mathcal{N}(0, I)`, :math:`x_m \mid z, w_m`
    independent. Family: :math:`q(z \mid x_S) \propto \prod_{m \in S} q(z \mid x_m)^{\alpha_m}` with exponents per
    modality and latent dimension that are learned and sum to one over S; no prior expert. Objective:

    .. math:: \mathcal{L} = E_q \sum_{m \in O} \lambda_m \log p(x_m \mid z, w_m)
        - \beta \, \mathrm{KL}(q(z \mid x_O) \,\|\, p) - \beta \sum_{m \in O} \beta_m
        \mathrm{KL}(q(w_m \mid x_m) \,\|\, p)

    Estimator: one draw from the pooled posterior decodes what is observed, KL in closed form. With lambda = beta = 1 it
    bounds log p(x_O). The pooled precision is an average of the experts': it does not grow with their number. Missing
    data: the exponents are normalized over what is observed, and a single expert is itself.

    Example::

        >>> import torch, pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = GPoE(enc, dec, latent_dim=2)
        >>> vae.posterior({"a": torch.zeros(3, 4)}).mean.shape  # "b" is missing
        torch.Size([3, 2])

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from z (or [z, w_m]) to a Distribution over the modality.
    :param latent_dim: size of z.
    :param normalize: False: free exponents in [0, 1], not normalized, as in multi-view-AE.
    :param beta: weight of the KL divergences.
    :param warmup: training steps over which beta rises linearly from 0.
    :param private_encoders: modality -> encoder of its private latent.
    :param private_dims: modality -> size of its private latent.
    :param beta_private: further weight of the private KL divergences, one or by modality.
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None (nats), "dimensions", or modality -> factor.

    [1] *Multi-modal Variational Autoencoders for normative modelling across multiple imaging modalities*, Lawry Aguila,
    Chapman and Altmann, MICCAI 2023, arXiv:2303.12706, section 2; the rule: Cao and Fleet, arXiv:1410.7827, eq. (2).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        normalize: bool = True,
        beta: float = 1.0,
        warmup: int = 0,
        private_encoders: Networks | None = None,
        private_dims: Mapping[str, int] | None = None,
        beta_private: float | Mapping[str, float] = 1.0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        betas = each_beta(beta, warmup, private_encoders, beta_private)
        prior = prior_of(prior, latent_dim, learn_prior)
        private: dict[str, Any] = {"private_encoders": private_encoders, "private_dims": private_dims}
        model = model_of(encoders, decoders, latent_dim, prior=prior, **private)
        rule = GeneralizedProduct(len(encoders), latent_dim, normalize=normalize)
        guide = guide_of(model, encoders, rule, private_encoders)
        super().__init__(model, guide, ELBO(Terms([Term(beta=betas, rescale=factors(model, rescale))])))
