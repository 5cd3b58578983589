"""CoDEVAE: a consensus of dependent experts, learned weights of subsets.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyro_mmvae.fusion import ConsensusOfDependentExperts
from pyro_mmvae.guides import Fused
from pyro_mmvae.models.parts import Networks, Prior, Rescale, factors, model_of, nonnegative, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Annealed, Fixed, LearnedWeights, Observed, Powerset, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["CoDEVAE"]


class CoDEVAE(Configurable, MultimodalVAE):
    r"""
    Multimodal VAE with a consensus of dependent experts [1].

    Model: :math:`z \sim p(z)`, :math:`x_m \mid z` independent. Family: the experts' errors are correlated,
    :math:`\Sigma_{ij} = \rho \sigma_i \sigma_j`, and q(z | x_S) is their best linear consensus, see
    :class:`pyro_mmvae.fusion.ConsensusOfDependentExperts`. Objective, over all non-empty subsets of O:

    .. math:: \mathcal{L} = \sum_{S \subseteq O} \pi_S \Bigl( E_{q(z \mid x_S)} \sum_{m \in O} \lambda_m
        \log p(x_m \mid z) - \beta \, \mathrm{KL}(q(z \mid x_S) \,\|\, p) \Bigr) + a H(\pi)

    with learned weights pi, normalized over the subsets of O. Estimator: one draw per subset decodes everything
    observed, KL in closed form; the weights' gradient is exact given the terms (stratified). Without the entropy,
    lambda = beta = 1 makes it an average of evidence bounds. The consensus' weights are kept non-negative. Missing
    data: only subsets of O, their weights renormalized.

    Example::

        >>> import torch, pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = CoDEVAE(enc, dec, latent_dim=2)
        >>> vae.posterior({"a": torch.zeros(3, 4)}).mean.shape
        torch.Size([3, 2])

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from z to a Distribution over the modality.
    :param latent_dim: size of z.
    :param rho: correlation of the experts' errors, in [0, 1).
    :param subsets: the subsets used, as lists of names; None: all of them.
    :param learn_weights: False: all subsets of O weigh the same.
    :param entropy: a, nats of the objective per nat of the weights' entropy.
    :param beta: weight of the KL divergences (the published runs on MNIST-SVHN-text: 20).
    :param warmup: training steps over which beta rises linearly from 0.
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Aggregation of Dependent Expert Distributions in Multimodal Variational Autoencoders*, Mancisidor, Jenssen, Yu
    and Kampffmeyer, ICML 2025, arXiv:2505.01134, eqs. (5) to (9).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        rho: float = 0.4,
        subsets: Sequence[Sequence[str]] | None = None,
        learn_weights: bool = True,
        entropy: float = 1000.0,
        beta: float = 1.0,
        warmup: int = 0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        nonnegative(beta=beta, entropy=entropy)
        model = model_of(encoders, decoders, latent_dim, prior=prior_of(prior, latent_dim, learn_prior))
        guide = Fused(model, {"z": encoders}, fusion=ConsensusOfDependentExperts(rho))
        chosen = Powerset() if subsets is None else Fixed.of(subsets, model.modalities)
        count = chosen.count(len(encoders))
        term = Term(
            chosen,
            Observed(),
            weight=LearnedWeights(count, entropy=entropy) if learn_weights else 1 / count,
            renormalize=not learn_weights,
            subsets="contained",
            beta=Annealed(beta, warmup),
            rescale=factors(model, rescale),
        )
        super().__init__(model, guide, ELBO(Terms([term])))
