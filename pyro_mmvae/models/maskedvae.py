"""MaskedVAE: permutation-invariant encoders and the masked bound.

Layer: models.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from pyro_mmvae.fusion import Pooled
from pyro_mmvae.guides import Fused
from pyro_mmvae.models.networks import set_encoder_of
from pyro_mmvae.models.parts import Networks, Prior, Rescale, factors, model_of, nonnegative, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Annealed, Bernoulli, Complement, Context, Observed, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["MaskedVAE"]


class MaskedVAE(Configurable, MultimodalVAE):
    r"""
    Permutation-invariant encoders and the masked variational bound [1].

    Model: :math:`z \sim p(z)`, :math:`x_m \mid z` independent. Family: one network for all subsets, sum-pooling
    :math:`\rho(\sum_{m \in S} \chi_m(x_m))` or self-attention over the observed modalities, whose head gives a Gaussian
    or a mixture of Gaussians; nothing observed gives the prior. Objective, with a random subset S of O, each modality
    kept with a rate :math:`u \sim U(0, 1)` of the sample:

    .. math:: \mathcal{L} = E_{q(z \mid x_S)} \log p(x_S \mid z) - \beta \, \mathrm{KL}(q(z \mid x_S) \,\|\, p)
        + E_{q(z \mid x_O)} \log p(x_{O \setminus S} \mid z) - \beta \, \mathrm{KL}(q(z \mid x_O) \,\|\, q(z \mid x_S))

    Estimator: one draw given S, one given O, one decode of each observed modality, whatever M. The first line
    bounds log p(x_S), the second :math:`\log p(x_{O \setminus S} \mid x_S)` where q(z | x_S) is exact: their sum is not
    always below log p(x_O), but its gap closes with the family. Missing data: S is drawn inside O.

    Example::

        >>> import torch, pyro_mmvae as mm
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = MaskedVAE(None, dec, latent_dim=2)
        >>> vae.posterior({"a": torch.zeros(3, 4)}).mean.shape
        torch.Size([3, 2])

    :param encoders: None: MLPs give each modality's features (the paper); or modality -> module whose call returns an
        expert, whose location and scale are then the features. They run on all rows, missing ones filled: LayerNorm in
        place of BatchNorm.
    :param decoders: modality -> module from z to a Distribution over the modality.
    :param latent_dim: size of z.
    :param pooling: "sum", "attention", or a module with ``features`` and ``head`` (:class:`pyro_mmvae.fusion.Pooled`).
    :param num_components: of the posterior: 1, or a mixture of so many Gaussians.
    :param gradient: "stl" (the paper: KL divergences sampled, q's density detached), or "path": in closed form.
    :param beta: weight of the KL divergences.
    :param warmup: training steps over which beta rises linearly from 0.
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Learning multi-modal generative models with permutation-invariant encoders and tighter variational objectives*,
    Hirt, Campolo, Leong and Ortega, TMLR 2024, arXiv:2309.00380, sections 2 and 4.
    """

    def __init__(
        self,
        encoders: Networks | None,
        decoders: Networks,
        *,
        latent_dim: int,
        pooling: Literal["sum", "attention"] | nn.Module = "sum",
        num_components: int = 1,
        gradient: Literal["stl", "path"] = "stl",
        beta: float = 1.0,
        warmup: int = 0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        nonnegative(beta=beta)
        model = model_of({}, decoders, latent_dim, prior=prior_of(prior, latent_dim, learn_prior), every=False)
        pool = set_encoder_of(model, encoders, decoders, latent_dim, pooling, num_components)
        guide = Fused(model, {"z": {}}, fusion={"z": Pooled(pool)})
        subset = Bernoulli()

        def remaining(context: Context) -> Tensor:  # shape: (B,)
            """Where S = O nothing remains: its value is 0, but a sampled divergence would have a noisy gradient."""
            return (context.observed & ~context.rows(subset)[0]).any(-1).double()

        own: dict[str, Any] = {"beta": Annealed(beta, warmup), "rescale": factors(model, rescale)}
        rest = {"weight": remaining, "empty": True, **own}
        terms = [Term(subset, None, **own), Term(Observed(), Complement(subset), prior=subset, **rest)]
        super().__init__(model, guide, ELBO(Terms(terms), gradient=gradient))
