"""MVTCAE: total correlation objective.

Layer: models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mmvae.guides import Product
from pyro_mmvae.models.parts import Networks, Prior, Rescale, factor_of, factors, model_of, nonnegative, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Annealed, Context, Each, Nothing, Observed, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["MVTCAE"]


class MVTCAE(Configurable, MultimodalVAE):
    r"""
    Multi-view total correlation autoencoder [1].

    Model: :math:`z \sim p(z)`, :math:`x_m \mid z` independent. Family: :math:`q(z \mid x_S) \propto \prod_{m \in S}
    q(z \mid x_m)`, no prior expert. Objective, with \|O\| observed modalities:

    .. math:: \mathcal{L} = \frac{|O| - \alpha}{|O|} E_q \sum_{m \in O} \lambda_m \log p(x_m \mid z)
        - \beta \Bigl( (1 - \alpha) \mathrm{KL}(q \,\|\, p)
        + \frac{\alpha}{|O|} \sum_{m \in O} \mathrm{KL}(q \,\|\, q_m) \Bigr), \qquad q = q(z \mid x_O)

    Estimator: one draw, all KL divergences in closed form. With beta = 1 it bounds :math:`(1 - \alpha) \log p(x_O) +
    \tfrac{\alpha}{|O|} \sum_m \log p(x_{O \setminus m} \mid x_m)`, where q_m serves as the conditional prior; it is no
    bound on log p(x_O). Missing data: M becomes \|O\| everywhere.

    Example::

        >>> import torch
        >>> import pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = MVTCAE(enc, dec, latent_dim=2, alpha=0.5)
        >>> vae.impute({"a": torch.zeros(3, 4)}, num_samples=5)["b"].shape
        torch.Size([5, 3, 4])

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from z to a Distribution over the modality.
    :param latent_dim: size of z.
    :param alpha: weight of the conditional bottlenecks, in [0, 1] (the published code: 5/6; multivae: 0.1).
    :param beta: weight of all KL divergences.
    :param warmup: training steps over which beta rises linearly from 0.
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Multi-View Representation Learning via Total Correlation Objective*, Hwang, Kim, Hong and Kim, NeurIPS 2021,
    eq. (8).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        alpha: float = 5 / 6,
        beta: float = 2.5,
        warmup: int = 0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        nonnegative(beta=beta)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected a number in [0, 1], got {alpha}.")
        model = model_of(encoders, decoders, latent_dim, prior=prior_of(prior, latent_dim, learn_prior))
        guide = Product(model, {"z": encoders}, prior_expert="never")
        own = factors(model, rescale)

        def likelihood(context: Context) -> Tensor:  # shape: (B, M)
            given = [factor_of(own, m) for m in context.names]
            lambdas = torch.tensor(given, dtype=torch.float64, device="cpu")
            return ((context.count - alpha) / context.count).unsqueeze(-1) * lambdas

        terms = [
            Term(beta=Annealed(beta * (1 - alpha), warmup), rescale=likelihood),
            Term(
                Observed(),
                Nothing(),
                prior=Each(),
                weight=lambda context: alpha / context.count,
                beta=Annealed(beta, warmup),
            ),
        ]
        super().__init__(model, guide, ELBO(Terms(terms)))
