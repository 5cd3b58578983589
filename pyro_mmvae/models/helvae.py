"""HELVAE: Hoelder pooling of experts.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pyro_mmvae.fusion import Hoelder
from pyro_mmvae.guides import Fused
from pyro_mmvae.models.parts import Networks, Prior, Rescale, factors, model_of, nonnegative, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Annealed, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["HELVAE"]


class HELVAE(Configurable, MultimodalVAE):
    r"""
    Hellinger multimodal VAE: the evidence lower bound with Hoelder pooling, alpha = 1/2 [1].

    Model: :math:`z \sim p(z)`, :math:`x_m \mid z` independent. Family: :math:`q(z \mid x_S) \propto \bigl(
    \sum_{m \in S} w_m \sqrt{q(z \mid x_m)} \bigr)^2`, between the mixture (experts far apart) and the geometric mean
    (close together), see :class:`pyro_mmvae.fusion.Hoelder`. Objective:

    .. math:: \mathcal{L} = E_{q(z \mid x_O)} \sum_{m \in O} \lambda_m \log p(x_m \mid z)
        - \beta \, \mathrm{KL}(q(z \mid x_O) \,\|\, p)

    Estimator: one draw decodes what is observed. As a Gaussian with the pooled moments the KL is in closed form; the
    exact pooling is a mixture of M(M + 1)/2 Gaussians, its KL is sampled and its draws are reparametrized implicitly,
    so that the component weights learn too. With lambda = beta = 1 it bounds log p(x_O). No term is sub-sampled.
    Missing data: the weights run over what is observed.

    Example::

        >>> import torch, pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = HELVAE(enc, dec, latent_dim=2)
        >>> vae.posterior({"a": torch.zeros(3, 4)}).mean.shape
        torch.Size([3, 2])

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from z to a Distribution over the modality.
    :param latent_dim: size of z.
    :param form: "moment" (the paper's Gaussian), or "mixture" (exact).
    :param bc: overlap of two experts, per latent dimension ("dim") or of all dimensions at once ("joint").
    :param weights: the experts' weights, in the decoders' order; None: all equal.
    :param beta: weight of the KL divergence.
    :param warmup: training steps over which beta rises linearly from 0.
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Hellinger Multimodal Variational Autoencoders*, Vo and Valera, 2026, arXiv:2601.06572, abstract; exact pooling:
    *Hoelder++*, Vo, Martinez-Garcia and Valera, ICML 2026, arXiv:2606.13381. Which overlap the papers use is open.
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        form: Literal["moment", "mixture"] = "moment",
        bc: Literal["dim", "joint"] = "dim",
        weights: Sequence[float] | None = None,
        beta: float = 1.0,
        warmup: int = 0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        nonnegative(beta=beta)
        if weights is not None and len(weights) != len(encoders):
            raise ValueError(f"weights: expected {len(encoders)}, one per modality, got {len(weights)}.")
        model = model_of(encoders, decoders, latent_dim, prior=prior_of(prior, latent_dim, learn_prior))
        guide = Fused(model, {"z": encoders}, fusion=Hoelder(form=form, bc=bc, weights=weights))
        term = Term(beta=Annealed(beta, warmup), rescale=factors(model, rescale))
        super().__init__(model, guide, ELBO(Terms([term])))
