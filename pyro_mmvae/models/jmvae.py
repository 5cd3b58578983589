"""JMVAE: a joint encoder and unimodal ones that follow it.

Layer: models.
"""

from __future__ import annotations

from torch import nn

from pyro_mmvae.fusion import Joint
from pyro_mmvae.fusion.joint import Subsets
from pyro_mmvae.guides import Fused
from pyro_mmvae.models.networks import default_joint_encoder
from pyro_mmvae.models.parts import Networks, Prior, Rescale, factors, model_of, nonnegative, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Annealed, Each, Nothing, Observed, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["JMVAE"]


class JMVAE(Configurable, MultimodalVAE):
    r"""
    Joint multimodal VAE, JMVAE-kl [1].

    Model: :math:`z \sim p(z)`, :math:`x_m \mid z` independent. Family: a joint network for several modalities, an
    encoder of its own for each single one. Objective:

    .. math:: \mathcal{L} = E_{q(z \mid x_O)} \sum_{m \in O} \lambda_m \log p(x_m \mid z)
        - a \Bigl( \beta \, \mathrm{KL}(q(z \mid x_O) \,\|\, p)
        + \alpha \sum_{m \in O} \mathrm{KL}(q(z \mid x_O) \,\|\, q(z \mid x_m)) \Bigr)

    with the annealing factor a. Estimator: one draw, all KL divergences in closed form, no stop-gradient. The first
    two parts bound log p(x_O); the rest lowers the bound. Missing data: the joint network is masked, so it answers and
    trains on every subset; a sample with one modality trains that modality's encoder as a VAE does.

    Example::

        >>> import torch
        >>> import pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = JMVAE(enc, dec, latent_dim=2)
        >>> vae.posterior({"a": torch.zeros(3, 4), "b": torch.zeros(3, 4)}, given={"a"}).mean.shape
        torch.Size([3, 2])

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from z to a Distribution over the modality.
    :param latent_dim: size of z.
    :param joint_encoder: the joint network, see :class:`pyro_mmvae.fusion.Joint`; None: a masked MLP.
    :param subset_posterior: q(z | x_S) for 1 < \|S\| < M: "joint", "product" (multivae) or "bayes". With the products
        the joint network answers complete samples only, and an incomplete sample has the evidence bound alone.
    :param alpha: weight of the unimodal encoders' terms (the paper: 0.1).
    :param beta: weight of the KL to the prior.
    :param warmup: training steps over which a rises linearly from 0.
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Joint Multimodal Learning with Deep Generative Models*, Suzuki, Nakayama and Matsuo, 2016, arXiv:1611.01891,
    eq. (4).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        joint_encoder: nn.Module | None = None,
        subset_posterior: Subsets = "joint",
        alpha: float = 0.1,
        beta: float = 1.0,
        warmup: int = 0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        nonnegative(alpha=alpha, beta=beta)
        model = model_of(encoders, decoders, latent_dim, prior=prior_of(prior, latent_dim, learn_prior))
        joint = default_joint_encoder(model, decoders, latent_dim) if joint_encoder is None else joint_encoder
        guide = Fused(model, {"z": encoders}, fusion=Joint(joint, subsets=subset_posterior))
        joint_only = 1.0 if subset_posterior == "joint" else lambda context: context.observed.all(-1)
        terms = [
            Term(beta=Annealed(beta, warmup), rescale=factors(model, rescale)),
            Term(Observed(), Nothing(), prior=Each(), weight=joint_only, beta=Annealed(alpha, warmup)),
        ]
        super().__init__(model, guide, ELBO(Terms(terms)))
