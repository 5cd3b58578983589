"""MCVAE: every channel's encoder explains all channels; sparse latents.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pyro_mmvae.fusion import Mixture
from pyro_mmvae.guides import Fused
from pyro_mmvae.models.parts import (
    Networks,
    Prior,
    Rescale,
    chosen,
    factor_of,
    factors,
    model_of,
    nonnegative,
    prior_of,
)
from pyro_mmvae.nn import Configurable, share_rates
from pyro_mmvae.objectives import ELBO, Annealed, Context, Fixed, Only, Term, Terms
from pyro_mmvae.stories import LogUniformPrior
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["MCVAE"]


class MCVAE(Configurable, MultimodalVAE):
    r"""
    Multi-channel VAE [1], dense or sparse, and its multi-task form for incomplete data [2].

    Model: :math:`z \sim \mathcal{N}(0, I)`, or an improper log-uniform prior (sparse); :math:`x_m \mid z` independent.
    Family: one posterior per channel; for several channels their mixture. Objective:

    .. math:: \mathcal{L} = \frac{1}{|O|} \sum_{c \in O} \Bigl( E_{q(z \mid x_c)} \sum_{m \in O}
        \lambda_m \log p(x_m \mid z) - \beta \, \mathrm{KL}(q(z \mid x_c) \,\|\, p) \Bigr)

    Estimator: one draw from each observed channel's posterior decodes every observed channel; KL in closed form (for
    the log-uniform prior Molchanov's approximation). Dense, it is an average of evidence bounds: a bound on log p(x_O).
    Sparse, the prior is improper: there is neither a marginal likelihood nor generation from the prior. Missing data:
    the mean runs over a sample's own channels; "multi_task" gives each pair of channels the same weight in a batch,
    however many samples show both.

    Example::

        >>> import pyro_mmvae as mm
        >>> rates = mm.nn.DropoutRates(5)
        >>> enc = {m: mm.nn.MLPEncoder(4, 5, hidden=(), family="dropout", rates=rates) for m in ("a", "b")}
        >>> noise = mm.nn.Normal("learned", init=0.22)
        >>> dec = {m: mm.nn.MLPDecoder(5, 4, hidden=(), likelihood=noise) for m in ("a", "b")}
        >>> vae = MCVAE(enc, dec, latent_dim=5, sparse=True)

    :param encoders: modality -> module whose call returns a Normal over z, the "dropout" family for sparse latents (all
        are then made to share the rates of the first).
    :param decoders: modality -> module from z to a Distribution over the modality; the paper's are linear, with learned
        noise: a scale fixed at 1 drops every dimension of standardized data.
    :param latent_dim: size of z.
    :param sparse: the log-uniform prior.
    :param sources: the channels that are encoded; None: all. Other encoders are not used.
    :param targets: the channels that are explained; None: all.
    :param weights: "sample" (above), or "multi_task": batch statistics as weights, B / (\|J_m\| N_cm) for channel m
        explained from c, with N_cm samples that show both and \|J_m\| channels that m is explained from.
    :param beta: weight of the KL divergences.
    :param warmup: training steps over which beta rises linearly from 0.
    :param prior: p(z) of the dense form: "normal", "laplace", or a module that returns it.
    :param rescale: likelihood factors: None, "dimensions", or modality -> factor.

    [1] *Sparse Multi-Channel Variational Autoencoder for the Joint Analysis of Heterogeneous Data*, Antelmi, Ayache,
    Robert and Lorenzi, ICML 2019, PMLR 97:302-311, eqs. (4) and (8).
    [2] *Combining Multi-Task Learning and Multi-Channel Variational Auto-Encoders to Exploit Datasets with Missing
    Observations*, Antelmi et al., 2021, HAL hal-03114888.
    """

    def __init__(
        self,
        encoders: Networks,
        decoders: Networks,
        *,
        latent_dim: int,
        sparse: bool = False,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        weights: Literal["sample", "multi_task"] = "sample",
        beta: float = 1.0,
        warmup: int = 0,
        prior: Prior = "normal",
        rescale: Rescale = None,
    ) -> None:
        nonnegative(beta=beta)
        chosen(weights=(weights, ("sample", "multi_task")))
        for name, given in (("sources", sources), ("targets", targets)):
            if given is not None and (isinstance(given, str) or not given or not set(given) <= set(decoders)):
                raise ValueError(f"{name}: expected modalities out of {list(decoders)}, got {given!r}.")
        if sparse and isinstance(prior, str) and prior != "normal":
            raise ValueError("prior: of the dense form; sparse=True has the log-uniform one. Fix: one of the two.")
        own = LogUniformPrior(latent_dim) if sparse else prior_of(prior, latent_dim, learn=False)
        used = encoders if sources is None else {c: encoders[c] for c in sources}
        if sparse:
            share_rates(used.values())
        model = model_of(used, decoders, latent_dim, prior=own, every=sources is None)
        guide = Fused(model, {"z": used}, fusion=Mixture())
        names, channels = model.modalities, tuple(m for m in model.modalities if m in used)
        target = Only(names if targets is None else tuple(targets))
        annealed, lambdas = Annealed(beta, warmup), factors(model, rescale)
        if weights == "sample":
            source = Fixed.of([[c] for c in channels], names)
            terms = [Term(source, target, weight=1 / len(channels), renormalize=True, beta=annealed, rescale=lambdas)]
        else:
            terms = [_multi_task(c, channels, target, annealed, lambdas) for c in channels]
        super().__init__(model, guide, ELBO(Terms(terms)))


def _multi_task(
    channel: str, channels: Sequence[str], target: Only, beta: Annealed, lambdas: Mapping[str, float] | float
) -> Term:
    """One channel's term, weighted by how often the batch shows it with each other one."""

    def counts(context: Context) -> Tensor:  # shape: (C, M), samples that show both
        rows = context.observed.double()
        return rows.T[[context.names.index(c) for c in channels]] @ rows

    def explain(context: Context) -> Tensor:  # shape: (1, M)
        both = counts(context)
        share = len(context.observed) / ((both > 0).sum(0) * both[channels.index(channel)]).clamp(min=1)
        given = [factor_of(lambdas, m) for m in context.names]
        return (share * torch.tensor(given, dtype=torch.float64, device="cpu")).unsqueeze(0)

    def divergence(context: Context) -> Tensor:  # shape: ()
        shown = context.observed[:, [context.names.index(c) for c in channels]].double().sum(0)
        return len(context.observed) / ((shown > 0).sum() * shown[channels.index(channel)]).clamp(min=1)

    return Term(Only((channel,)), target, beta=Annealed(beta.value, beta.steps, times=divergence), rescale=explain)
