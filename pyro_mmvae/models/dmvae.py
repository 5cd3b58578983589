"""DMVAE: private and shared latents, joint and cross-modal evidence bounds.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from pyro_mmvae.fusion import Fusion, GeneralizedProduct, Product
from pyro_mmvae.models.parts import Networks, Prior, Rescale, chosen, each_beta, factors, guide_of, model_of, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Annealed, Context, Each, Nothing, Observed, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["DMVAE"]


class DMVAE(Configurable, MultimodalVAE):
    r"""
    Private-shared disentangled multimodal VAE [1].

    Model: :math:`z \sim p(z)`, private :math:`w_m \sim \mathcal{N}(0, I)`, :math:`x_m \mid z, w_m` independent.
    Family: :math:`q(w_m \mid x_m)`; for z the product of the experts and the prior, a single expert by itself.
    Objective, over the rows r: all that is observed, O, and each observed modality alone:

    .. math:: \mathcal{L} = \sum_{r \in \{O\} \cup \{\{j\}: j \in O\}} \Bigl( E_{q(z \mid x_r)} \sum_{m \in O}
        \lambda_m \log p(x_m \mid z, w_m) - c \, \beta \, \mathrm{KL}(q(z \mid x_r) \,\|\, p)
        - \beta \sum_{m \in O} \beta_m \mathrm{KL}(q(w_m \mid x_m) \,\|\, p) \Bigr)

    with c = \|O\| in the paper and 1 in multivae, where every row is an evidence bound. Estimator: each row draws its
    own z and private latents and decodes everything observed; KL in closed form. :math:`\mathcal{L} / (|O| + 1)` bounds
    log p(x_O), the sum itself does not. Missing data: rows and likelihoods of what is observed; a private latent is
    inferred where its modality is observed, and keeps its prior elsewhere.

    Example::

        >>> import torch, pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> own = {m: mm.nn.MLPEncoder(4, latent_dim=1) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(3, 4) for m in ("a", "b")}
        >>> vae = DMVAE(enc, dec, latent_dim=2, private_encoders=own, private_dims={"a": 1, "b": 1})
        >>> shape = vae.predict({"a": torch.zeros(3, 4)}, num_samples=5)["b"].shape

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from [z, w_m] to a Distribution over the modality.
    :param latent_dim: size of z.
    :param private_encoders: modality -> encoder of its private latent.
    :param private_dims: modality -> size of its private latent.
    :param counting: c above: "paper" or "multivae".
    :param fusion: "product", or "generalized": learned exponents (the weighted DMVAE of multi-view-AE).
    :param unimodal_prior_expert: whether the prior is an expert beside a single expert, too.
    :param reconstruct_joint: False: the joint row has its KL alone, as the published code runs.
    :param normalize_rows: divide by \|O\| + 1, so that every sample counts equally.
    :param beta: weight of the KL divergences.
    :param warmup: training steps over which beta rises linearly from 0.
    :param beta_private: further weight of the private KL divergences, one or by modality.
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor (the paper: MNIST 50).

    [1] *Private-Shared Disentangled Multimodal VAE for Learning of Latent Representations*, Lee and Pavlovic, CVPR
    workshops 2021, arXiv:2012.13024, eq. (3).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        private_encoders: Networks | None = None,
        private_dims: Mapping[str, int] | None = None,
        counting: Literal["paper", "multivae"] = "paper",
        fusion: Literal["product", "generalized"] = "product",
        unimodal_prior_expert: bool = False,
        reconstruct_joint: bool = True,
        normalize_rows: bool = False,
        beta: float = 1.0,
        warmup: int = 0,
        beta_private: float | Mapping[str, float] = 1.0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        chosen(counting=(counting, ("paper", "multivae")), fusion=(fusion, ("product", "generalized")))
        if unimodal_prior_expert and fusion == "generalized":
            raise ValueError("unimodal_prior_expert: only for fusion='product': the other rule has no prior expert.")
        betas = each_beta(beta, warmup, private_encoders, beta_private)
        prior = prior_of(prior, latent_dim, learn_prior)
        private: dict[str, Any] = {"private_encoders": private_encoders, "private_dims": private_dims}
        model = model_of(encoders, decoders, latent_dim, prior=prior, **private)
        product = Product(prior_expert="always" if unimodal_prior_expert else "several")
        rule: Fusion = product if fusion == "product" else GeneralizedProduct(len(encoders), latent_dim)
        guide = guide_of(model, encoders, rule, private_encoders)
        often = Annealed(beta, warmup, times=lambda context: context.count)

        def weight(context: Context) -> Tensor:  # shape: (B,)
            return 1 / (context.count + 1)

        own: dict[str, Any] = {
            "beta": {**betas, "": often} if counting == "paper" else betas,
            "rescale": factors(model, rescale),
            "weight": weight if normalize_rows else 1.0,
        }
        joint = Observed() if reconstruct_joint else Nothing()
        super().__init__(model, guide, ELBO(Terms([Term(target=joint, **own), Term(Each(), Observed(), **own)])))
