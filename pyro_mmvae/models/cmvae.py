"""CMVAE: MMVAE+ with a mixture prior, for clustering.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pyro_mmvae.models.parts import Networks, Rescale
from pyro_mmvae.models.shared_private import Auxiliary, mixture_with_private
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives.iwae import Gradient
from pyro_mmvae.stories import MixturePrior
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["CMVAE"]


class CMVAE(Configurable, MultimodalVAE):
    r"""
    Clustering multimodal VAE [1].

    Model: a cluster :math:`c \sim \mathrm{Cat}(\pi)`, :math:`z \mid c` around the cluster's learned mean with unit
    scale, private :math:`w_m \sim p(w_m)`, :math:`x_m \mid z, w_m` independent. Family and objective: those of
    :class:`pyro_mmvae.MMVAEPlus` with

    .. math:: \log p(z) = \log \sum_c \pi_c \, p(z \mid c)

    which equals the paper's sum over c with its exact posterior :math:`q(c \mid z)`, in value and gradient. Estimator,
    bound and missing data: as there. :meth:`predict_clusters` says which cluster a sample belongs to from whatever is
    observed of it, :meth:`prune_clusters` removes clusters that a validation set does not need.

    Example::

        >>> import pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, 2, family="laplace_softmax") for m in ("a", "b")}
        >>> own = {m: mm.nn.MLPEncoder(4, 1, family="laplace_softmax") for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(3, 4, likelihood="laplace") for m in ("a", "b")}
        >>> dims = {"a": 1, "b": 1}
        >>> vae = CMVAE(enc, dec, latent_dim=2, num_clusters=3, private_encoders=own, private_dims=dims)

    :param encoders: modality -> module whose call returns the expert; one location-scale family for all.
    :param decoders: modality -> module from [z, w_m] to a Distribution over the modality.
    :param latent_dim: size of z.
    :param private_encoders: modality -> encoder of its private latent.
    :param private_dims: modality -> size of its private latent.
    :param num_clusters: C (the paper: 40 for PolyMNIST, 35 for CUBICC).
    :param auxiliary: see :class:`pyro_mmvae.MMVAEPlus`, as for the options below.
    :param cluster_prior: family of p(z | c) and of p(w): "laplace" or "normal".
    :param num_particles: K (the published runs: 1 and 10).

    [1] *Deep Generative Clustering with Multimodal Diffusion Variational Autoencoders*, Palumbo et al., ICLR 2024,
    OpenReview k5THrhXDV3, eqs. (2) to (5).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        private_encoders: Networks,
        private_dims: Mapping[str, int],
        num_clusters: int = 10,
        cluster_prior: Literal["laplace", "normal"] = "laplace",
        auxiliary: Auxiliary = "learned",
        auxiliary_kl: bool = False,
        predict: Literal["prior", "auxiliary"] = "prior",
        num_particles: int = 1,
        gradient: Gradient = "path",
        beta: float = 1.0,
        warmup: int = 0,
        rescale: Rescale = None,
    ) -> None:
        parts = mixture_with_private(
            encoders,
            decoders,
            latent_dim,
            prior=MixturePrior(latent_dim, num_clusters, family=cluster_prior),
            family=cluster_prior,
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
