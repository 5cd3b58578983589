"""DVCCA: one reference modality is encoded, all are explained.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pyro_mmvae.fusion import Single
from pyro_mmvae.models.parts import Networks, Prior, Rescale, chosen, each_beta, factors, guide_of, model_of, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Only, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["DVCCA"]


class DVCCA(Configurable, MultimodalVAE):
    r"""
    Deep variational canonical correlation analysis, plain or with private latents [1].

    Model: :math:`z \sim \mathcal{N}(0, I)`, optional private :math:`w_m \sim \mathcal{N}(0, I)`,
    :math:`x_m \mid z, w_m` independent. Family: q(z | x_r) of one reference modality r, q(w_m | x_m). Objective, where
    r is observed:

    .. math:: \mathcal{L} = E \sum_{m \in O} \lambda_m \log p(x_m \mid z, w_m)
        - \beta \, \mathrm{KL}(q(z \mid x_r) \,\|\, p) - \beta \sum_{m \in O} \beta_m
        \mathrm{KL}(q(w_m \mid x_m) \,\|\, p)

    Estimator: one draw of every latent decodes what is observed, KL in closed form, each private one counted once. With
    lambda = beta = 1 it bounds log p(x_O). Missing data: other modalities lose their terms; a sample without its
    reference is an error, or left out of the objective. The verbs answer such samples with the prior of z.

    Example::

        >>> import torch, pyro_mmvae as mm
        >>> enc = {"a": mm.nn.MLPEncoder(4, latent_dim=2)}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = DVCCA(enc, dec, latent_dim=2, reference="a")
        >>> vae.impute({"a": torch.zeros(3, 4)}, num_samples=5)["b"].shape
        torch.Size([5, 3, 4])

    :param encoders: modality -> module whose call returns a Normal over z; only the reference's is used.
    :param decoders: modality -> module from z (or [z, w_m]) to a Distribution over the modality.
    :param latent_dim: size of z.
    :param reference: the modality that is encoded; None: the first decoder's.
    :param fallback: samples without it: "error", or "drop".
    :param private_encoders: modality -> encoder of its private latent (VCCA-private).
    :param private_dims: modality -> size of its private latent.
    :param beta: weight of the KL divergences (the paper tunes it, down to 1e-4).
    :param warmup: training steps over which beta rises linearly from 0.
    :param beta_private: further weight of the private KL divergences, one or by modality.
    :param prior: p(z): "normal", "laplace", or a module that returns it, such as
        :class:`pyro_mmvae.stories.LogUniformPrior` for sparse latents.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Deep Variational Canonical Correlation Analysis*, Wang, Yan, Lee and Livescu, 2016, arXiv:1610.03454, eqs. (3)
    and (8).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        reference: str | None = None,
        fallback: Literal["error", "drop"] = "error",
        private_encoders: Networks | None = None,
        private_dims: Mapping[str, int] | None = None,
        beta: float = 1.0,
        warmup: int = 0,
        beta_private: float | Mapping[str, float] = 1.0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        chosen(fallback=(fallback, ("error", "drop")))
        betas = each_beta(beta, warmup, private_encoders, beta_private)
        first = next(iter(decoders)) if reference is None else reference
        if first not in encoders or first not in decoders:
            raise ValueError(
                f"reference: expected a modality with an encoder and a decoder, got {first!r}; encoders have "
                f"{list(encoders)}, decoders {list(decoders)}."
            )
        own = {first: encoders[first]}
        prior = prior_of(prior, latent_dim, learn_prior)
        private: dict[str, Any] = {"private_encoders": private_encoders, "private_dims": private_dims}
        model = model_of(own, decoders, latent_dim, prior=prior, every=False, **private)
        guide = guide_of(model, own, Single(), private_encoders)
        source = Only((first,), required=fallback == "error")
        super().__init__(model, guide, ELBO(Terms([Term(source, beta=betas, rescale=factors(model, rescale))])))
