"""MMVM: unimodal posteriors tied by a mixture prior made of themselves.

Layer: models.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from pyro_mmvae.fusion import Mixture
from pyro_mmvae.guides import Fused, Refused
from pyro_mmvae.models.parts import Networks, Prior, Rescale, chosen, factors, model_of, nonnegative, prior_of
from pyro_mmvae.nn import Configurable
from pyro_mmvae.objectives import ELBO, Annealed, Context, Each, Nothing, Only, PosteriorOf, Term, Terms
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["MMVM"]


class MMVM(Configurable, MultimodalVAE):
    r"""
    Multimodal VAE with a variational mixture-of-experts prior [1].

    Model: each modality has a latent of its own, :math:`x_m \mid z_m`; a prior that depends on the data,
    :math:`h(z) = \tfrac{1}{|O|} \sum_{l \in O} q(z \mid x_l)`, ties them. Family: :math:`q(z_m \mid x_m)`. Objective:

    .. math:: \mathcal{L} = \sum_{m \in O} \Bigl( E_{q_m} \lambda_m \log p(x_m \mid z)
        - \beta \bigl( \alpha \, \mathrm{KL}(q_m \,\|\, p) + (1 - \alpha) \, \mathrm{KL}(q_m \,\|\, h) \bigr) \Bigr)

    Estimator: one draw from each expert decodes its own modality; KL(q_m || h) is sampled at that draw ("mixture"), or
    replaced by its upper bound, the mean of the pairwise KL divergences in closed form ("pairwise"). The sum of KL(q_m
    || h) is \|O\| times the Jensen-Shannon divergence of the experts. It is no bound on log p(x_O): h depends on the
    data; nor is it a prior: with alpha = 0 ``generate`` draws from a p(z) that the experts need not fill. The verbs
    treat the experts as posteriors of one shared latent, the mixture of what is observed: a missing modality is decoded
    from another's latent. Missing data: sums and h over O; in a sample with a single modality h would be q_m itself and
    nothing would regularize it, so there alpha is 1.

    Example::

        >>> import torch, pyro_mmvae as mm
        >>> enc = {m: mm.nn.MLPEncoder(4, latent_dim=2) for m in ("a", "b")}
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> vae = MMVM(enc, dec, latent_dim=2)
        >>> vae.predict({"a": torch.zeros(3, 4)}, num_samples=5)["b"].shape
        torch.Size([5, 3, 4])

    :param encoders: modality -> module whose call returns a Normal over z.
    :param decoders: modality -> module from z to a Distribution over the modality.
    :param latent_dim: size of z.
    :param divergence: "pairwise" (the published code), or "mixture" (the paper's equation). A KL to a mixture of which
        q_m is a part is at most log \|O\| nats: experts that lie apart are then hardly drawn together.
    :param prior_weight: weight of p(z) in h, where an expert has weight 1.
    :param alpha: share of the KL to p(z), in [0, 1].
    :param alpha_steps: training steps over which alpha falls linearly from 1 to its value.
    :param beta: weight of the divergences.
    :param prior: p(z): "normal", "laplace", or a module that returns it.
    :param learn_prior: whether the named prior has parameters.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Unity by Diversity: Improved Representation Learning in Multimodal VAEs*, Sutter et al., NeurIPS 2024,
    arXiv:2403.05300, eqs. (3) to (5).
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        divergence: Literal["mixture", "pairwise"] = "pairwise",
        prior_weight: float = 0.0,
        alpha: float = 0.0,
        alpha_steps: int = 0,
        beta: float = 1.0,
        prior: Prior = "normal",
        learn_prior: bool = False,
        rescale: Rescale = None,
    ) -> None:
        nonnegative(beta=beta)
        chosen(divergence=(divergence, ("mixture", "pairwise")))
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected a number in [0, 1], got {alpha}.")
        if learn_prior and alpha == 0 and not alpha_steps:
            raise ValueError("learn_prior: with alpha=0 nothing draws the prior to the experts. Fix: alpha > 0.")
        if divergence == "pairwise" and prior_weight:
            raise ValueError("prior_weight: only with divergence='mixture'. Fix: alpha > 0.")
        model = model_of(encoders, decoders, latent_dim, prior=prior_of(prior, latent_dim, learn_prior))
        guide = Fused(model, {"z": encoders}, fusion=Mixture())
        tied = Annealed(beta * (1 - alpha), alpha_steps, times=lambda context: (context.count > 1).double())

        def to_prior(context: Context) -> Tensor | float:  # shape: (B,)
            return beta - tied(context)

        terms = [Term(Each(), None, beta=to_prior, rescale=factors(model, rescale))]
        if divergence == "mixture":
            mixture = PosteriorOf(Refused(guide, Mixture(prior_weight=prior_weight)))
            terms.append(Term(Each(), Nothing(), prior=mixture, beta=tied))
        else:
            share: dict[str, Any] = {"beta": tied, "weight": lambda context: 1 / context.count}
            terms += [Term(Each(), Nothing(), prior=Only((m,)), **share) for m in model.modalities]
        super().__init__(model, guide, ELBO(Terms(terms)))
