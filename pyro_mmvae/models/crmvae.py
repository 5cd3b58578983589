"""CRMVAE: a product of experts coordinated with unimodal reconstructions.

Layer: models.
"""

from __future__ import annotations

from torch import Tensor

from pyro_mmvae.guides import Product
from pyro_mmvae.models.parts import Networks, Prior, Rescale, factor_of, factors, model_of, nonnegative, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Annealed, Context, Each, Nothing, Observed, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["CRMVAE"]


class CRMVAE(Configurable, MultimodalVAE):
    r"""
    Coordinated robust multimodal VAE [1].

    Model: :math:`z \sim p(z)`, :math:`x_m \mid z` independent. Family: :math:`q(z \mid x_S) \propto \prod_{m \in S}
    q(z \mid x_m)`, no prior expert. Objective, with :math:`q = q(z \mid x_O)`:

    .. math:: \mathcal{L} = \frac{1}{2 (|O| + 1)} \sum_{m \in O} \lambda_m \bigl( E_q \log p(x_m \mid z)
        + E_{q_m} \log p(x_m \mid z) \bigr)
        - \frac{\beta}{|O| + 1} \Bigl( \mathrm{KL}(q \,\|\, p) + \sum_{m \in O} \mathrm{KL}(q \,\|\, q_m) \Bigr)

    Estimator: one draw from the product decodes everything observed, one draw from each expert decodes its own
    modality; all KL divergences in closed form, to the prior and to each expert (together one divergence to their
    geometric mean). With beta = 1/2, :math:`2 (|O| + 1) \mathcal{L}` is below log p(x_O) for discrete data; for
    densities it is no bound. Missing data: M becomes \|O\| everywhere.

    Example::

        >>> import torch, pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = CRMVAE(enc, dec, latent_dim=2, beta=0.5)
        >>> vae.impute({"a": torch.zeros(3, 4)}, num_samples=5)["b"].shape
        torch.Size([5, 3, 4])

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from z to a Distribution over the modality.
    :param latent_dim: size of z.
    :param beta: weight of the KL divergences (multivae: 2.5; its documentation writes twice this number).
    :param warmup: training steps over which beta rises linearly from 0.
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Mitigating the Limitations of Multimodal VAEs with Coordination-based Approach*, OpenReview Rn8u4MYgeNJ, 2022;
    the objective as in multivae's documentation.
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        beta: float = 2.5,
        warmup: int = 0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        nonnegative(beta=beta)
        model = model_of(encoders, decoders, latent_dim, prior=prior_of(prior, latent_dim, learn_prior))
        guide = Product(model, {"z": encoders}, prior_expert="never")
        own, annealed = factors(model, rescale), Annealed(beta, warmup)
        half = {m: 0.5 * factor_of(own, m) for m in model.modalities}

        def share(context: Context) -> Tensor:  # shape: (B,)
            return 1 / (context.count + 1)

        terms = [
            Term(weight=share, beta=annealed, rescale=half),
            Term(Observed(), Nothing(), prior=Each(), weight=share, beta=annealed),
            Term(Each(), None, weight=share, beta=0.0, rescale=half),
        ]
        super().__init__(model, guide, ELBO(Terms(terms)))
