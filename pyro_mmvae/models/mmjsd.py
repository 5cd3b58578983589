"""MMJSD: a mixture of experts and a Jensen-Shannon divergence with a dynamic prior.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_mmvae.fusion import Fusion, GeometricMean, Mixture, Product, Stratified
from pyro_mmvae.guides import Refused
from pyro_mmvae.models.parts import Networks, Prior, Rescale, chosen, each_beta, factors, guide_of, model_of, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Context, Each, Nothing, Observed, PosteriorOf, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["MMJSD"]


class MMJSD(Configurable, MultimodalVAE):
    r"""
    Multimodal Jensen-Shannon divergence VAE [1].

    Model: :math:`z \sim p(z)`, optional private :math:`w_m \sim \mathcal{N}(0, I)`, :math:`x_m \mid z, w_m`
    independent. Family: the mixture of the observed experts in training. Dynamic prior: the geometric mean
    :math:`f \propto p^{\pi_0} \prod_{m \in O} q_m^{\pi_m}`, weights renormalized over what is observed. Objective:

    .. math:: \mathcal{L} = \frac{1}{|O|} \sum_{j \in O} E_{q_j} \sum_{m \in O} \lambda_m \log p(x_m \mid z, w_m)
        - \beta \Bigl( \pi_0 \mathrm{KL}(p \,\|\, f) + \sum_{m \in O} \pi_m \mathrm{KL}(q_m \,\|\, f) \Bigr)
        - \beta \sum_{m \in O} \beta_m \mathrm{KL}(q(w_m \mid x_m) \,\|\, p)

    Estimator: one draw from each observed expert decodes everything observed; the whole divergence is in closed form.
    It is *no* bound on log p(x_O): f depends on the data (with one modality, the exact posterior N(d, 1) and equal
    weights it exceeds log p(x) by 3 d^2 / 8), so do not compare models by it. Missing data: sums over O.

    Example::

        >>> import torch, pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = MMJSD(enc, dec, latent_dim=2)
        >>> vae.posterior({"a": torch.zeros(3, 4)}).mean.shape
        torch.Size([3, 2])

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from z (or [z, w_m]) to a Distribution over the modality.
    :param latent_dim: size of z.
    :param weights: M + 1 weights of the dynamic prior, the prior's first and positive, the others in the decoders'
        order; None: all equal.
    :param subset_posterior: q(z | x_S) of the verbs: "geometric" (the dynamic prior), "mixture" or "product".
    :param beta: weight of all divergences (the published runs: 5 and 2.5).
    :param warmup: training steps over which beta rises linearly from 0.
    :param private_encoders: modality -> encoder of its private latent.
    :param private_dims: modality -> size of its private latent.
    :param beta_private: further weight of the private KL divergences, one or by modality.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Multimodal Generative Learning Utilizing Jensen-Shannon-Divergence*, Sutter, Daunhawer and Vogt, NeurIPS 2020,
    arXiv:2006.08242, eqs. (5) to (9).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        weights: Sequence[float] | None = None,
        subset_posterior: Literal["geometric", "mixture", "product"] = "geometric",
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
        given: dict[str, Any] = {"private_encoders": private_encoders, "private_dims": private_dims}
        prior = prior_of(prior, latent_dim, learn_prior)
        model = model_of(encoders, decoders, latent_dim, prior=prior, **given)
        dynamic, product = GeometricMean(weights), Product(prior_expert="never")
        rules: dict[str, Fusion] = {"geometric": dynamic, "mixture": Mixture(), "product": product}
        chosen(subset_posterior=(subset_posterior, tuple(rules)))
        guide = guide_of(model, encoders, Stratified(rules[subset_posterior]), private_encoders)
        dynamic.shares(torch.ones(len(encoders), 1, dtype=torch.bool, device="cpu"))  # raises for a wrong number

        def share(context: Context) -> Tensor:  # shape: (M + 1, B), the prior's first
            return dynamic.shares(context.observed.T)

        private = {site: 0.0 for site in betas if site}
        js: dict[str, Any] = {"prior": PosteriorOf(Refused(guide, dynamic)), "beta": {"": betas[""], **private}}
        explain: dict[str, Any] = {"beta": {**betas, "": 0.0}, "rescale": factors(model, rescale)}
        terms = [
            Term(Each(), Observed(), weight=1 / len(encoders), renormalize=True, **explain),
            Term(Each(), Nothing(), weight=lambda context: share(context)[1:], **js),
            Term(Nothing(), Nothing(), weight=lambda context: share(context)[0], empty=True, **js),
        ]
        super().__init__(model, guide, ELBO(Terms(terms)))
