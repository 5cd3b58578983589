"""MVAE: product of experts, sub-sampled evidence lower bounds.

Layer: models.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from pyro_mmvae.fusion import Fusion, Product
from pyro_mmvae.fusion.product import PriorExpert
from pyro_mmvae.guides import Fused
from pyro_mmvae.masks import random_subsets
from pyro_mmvae.models.parts import Networks, Prior, Rescale, factors, model_of, nonnegative, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Annealed, Each, Random, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["MVAE"]


class MVAE(Configurable, MultimodalVAE):
    r"""
    Multimodal VAE with a product of experts [1].

    Model: :math:`z \sim p(z)`, :math:`x_m \mid z` independent. Family: :math:`q(z \mid x_S) \propto p(z)
    \prod_{m \in S} q(z \mid x_m)`, for every S. Objective, per sample with observed set O:

    .. math:: \mathcal{L} = \mathrm{ELBO}_O + \sum_{m \in O} \mathrm{ELBO}_{\{m\}}
        + \sum_{j=1}^k \mathrm{ELBO}_{S_j \cap O}, \qquad
        \mathrm{ELBO}_S = E_{q(z \mid x_S)} \sum_{m \in S} \lambda_m \log p(x_m \mid z)
        - \beta \, \mathrm{KL}(q(z \mid x_S) \,\|\, p)

    Estimator: one draw per term, KL in closed form. Each term bounds log p(x_S); their sum bounds the sum of those, not
    log p(x_O); ``unimodal=False, k=0`` is the evidence lower bound of log p(x_O). Missing data: S becomes S with O;
    a term with nothing left is 0.

    Example::

        >>> import torch
        >>> import pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = MVAE(enc, dec, latent_dim=2)
        >>> vae.posterior({"a": torch.zeros(3, 4)}).mean.shape  # "b" is missing
        torch.Size([3, 2])

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from z to a Distribution over the modality.
    :param latent_dim: size of z.
    :param unimodal: include the unimodal terms (sub-sampled training, the paper's); False: the joint term only.
    :param k: number of random subsets of 2 to M - 1 modalities per training step.
    :param prior_expert: whether the prior is an expert; "several": only beside more than one (multi-view-AE's
        me_mVAE), see :class:`pyro_mmvae.fusion.Product`.
    :param fusion: another rule in the product's place, such as :class:`pyro_mmvae.fusion.MeanOfParameters`
        (multi-view-AE's mean pooling).
    :param duplicates: terms that coincide because modalities are missing are kept or dropped.
    :param beta: weight of the KL divergences.
    :param warmup: training steps over which beta rises linearly from 0 (the paper: 200 of 500 epochs).
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None (nats), "dimensions", or modality -> factor (the paper: label 50).

    [1] *Multimodal Generative Models for Scalable Weakly-Supervised Learning*, Wu and Goodman, NeurIPS 2018,
    arXiv:1802.05335, eq. (5).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        unimodal: bool = True,
        k: int = 0,
        prior_expert: bool | PriorExpert = True,
        fusion: Fusion | None = None,
        duplicates: Literal["keep", "drop"] = "keep",
        beta: float = 1.0,
        warmup: int = 0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        nonnegative(beta=beta)
        model = model_of(encoders, decoders, latent_dim, prior=prior_of(prior, latent_dim, learn_prior))
        if fusion is not None and prior_expert is not True:
            raise ValueError("prior_expert: only for the product. Fix: leave out prior_expert or fusion.")
        if isinstance(prior_expert, bool):
            prior_expert = "always" if prior_expert else "never"
        guide = Fused(model, {"z": encoders}, fusion=Product(prior_expert=prior_expert) if fusion is None else fusion)
        own: dict[str, Any] = {"beta": Annealed(beta, warmup), "rescale": factors(model, rescale)}
        terms = [Term(**own)]
        terms += [Term(Each(), None, **own)] if unimodal else []
        if k:
            random_subsets(k, len(encoders), generator=torch.Generator())  # raises where there are not so many
            terms.append(Term(Random(k), None, **own))
        super().__init__(model, guide, ELBO(Terms(terms, duplicates=duplicates)))
