"""MoPoE: mixture of products of experts over the powerset.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from pyro_mmvae.fusion import MixtureOfProducts, Product
from pyro_mmvae.fusion.product import PriorExpert
from pyro_mmvae.models.parts import Networks, Prior, Rescale, each_beta, factors, guide_of, model_of, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, AnyContained, Fixed, Observed, Powerset, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["MoPoE"]


class MoPoE(Configurable, MultimodalVAE):
    r"""
    Multimodal VAE with a mixture of products of experts [1].

    Model: :math:`z \sim p(z)`, optional private :math:`w_m \sim \mathcal{N}(0, I)`, :math:`x_m \mid z, w_m`
    independent. Family: for a subset T of what is observed, :math:`\tilde q(z \mid x_T)` is the product of its experts,
    with the prior as an expert for the full set only (as in the published code). Objective:

    .. math:: \mathcal{L} = \frac{1}{|\mathcal{P}(O)|} \sum_{T \in \mathcal{P}(O)} \Bigl( E_{\tilde q_T} \sum_{m \in O}
        \lambda_m \log p(x_m \mid z, w_m) - \beta \, \mathrm{KL}(\tilde q_T \,\|\, p) \Bigr)
        - \beta \beta_w \sum_{m \in O} \mathrm{KL}(q(w_m \mid x_m) \,\|\, p)

    with P(O) the non-empty subsets of O. Estimator: all subsets (M up to 5), or ``num_subsets`` random ones per sample;
    KL in closed form. An average of evidence lower bounds, hence a bound on log p(x_O). Missing data: only subsets of O
    count; private latents of unobserved modalities keep their prior.

    Example::

        >>> import torch
        >>> import pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = MoPoE(enc, dec, latent_dim=2)
        >>> vae.log_likelihood({"a": torch.zeros(3, 4)}, num_particles=10).shape
        torch.Size([3])

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from z (or [z, w_m]) to a Distribution over the modality.
    :param latent_dim: size of z.
    :param subsets: the subsets used, as lists of names; None: all of them.
    :param num_subsets: random subsets per sample and step; None: all of them up to 5 modalities, else 1.
    :param prior_expert: "full_only" (published code), "never" or "always".
    :param subset_posterior: q(z | x_S) of the guide: the "product" of S (published code), or the "mixture".
    :param beta: weight of the KL divergences (the paper: 5; PolyMNIST 2.5).
    :param warmup: training steps over which beta rises linearly from 0.
    :param private_encoders: modality -> encoder of its private latent.
    :param private_dims: modality -> size of its private latent.
    :param beta_private: further weight of the private KL divergences.
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Generalized Multimodal ELBO*, Sutter, Daunhawer and Vogt, ICLR 2021, arXiv:2105.02470, eqs. (4) to (6).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        subsets: Sequence[Sequence[str]] | None = None,
        num_subsets: int | None = None,
        prior_expert: PriorExpert = "full_only",
        subset_posterior: Literal["product", "mixture"] = "product",
        beta: float = 1.0,
        warmup: int = 0,
        private_encoders: Networks | None = None,
        private_dims: Mapping[str, int] | None = None,
        beta_private: float = 1.0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        if subset_posterior not in ("product", "mixture"):
            raise ValueError(f"subset_posterior: expected 'product' or 'mixture', got {subset_posterior!r}.")
        model = model_of(
            encoders,
            decoders,
            latent_dim,
            prior=prior_of(prior, latent_dim, learn_prior),
            private_encoders=private_encoders,
            private_dims=private_dims,
        )
        names = model.modalities
        fixed = None if subsets is None else Fixed.of(subsets, names)
        chosen = Powerset() if fixed is None else fixed
        table = None if fixed is None else torch.tensor(fixed.table)
        rule = MixtureOfProducts(prior_expert=prior_expert, subsets=table)
        posterior = rule if subset_posterior == "mixture" else Product(prior_expert=prior_expert)
        guide = guide_of(model, encoders, posterior, private_encoders)
        every = len(names) <= 5 if num_subsets is None else False
        count = 1 if num_subsets is None else num_subsets
        term = Term(
            chosen if every else AnyContained(chosen, count),
            Observed(),
            weight=1 / (chosen.count(len(names)) if every else count),
            renormalize=True,
            subsets="contained",
            beta=each_beta(beta, warmup, private_encoders, beta_private),
            rescale=factors(model, rescale),
        )
        super().__init__(model, guide, ELBO(Terms([term])))
