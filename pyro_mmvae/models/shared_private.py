"""What MMVAE+ and CMVAE share: a mixture over z, private latents with auxiliary priors.

Layer: models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from pyro_mmvae.fusion import Fusion, Mixture, Single
from pyro_mmvae.guides import Fused
from pyro_mmvae.models.parts import Networks, Rescale, chosen, each_beta, factors, guide_of, model_of
from pyro_mmvae.objectives import IWAE, Each, Observed, Term, Terms
from pyro_mmvae.objectives.iwae import Gradient
from pyro_mmvae.stories import LaplacePrior, NormalPrior, ObservedModel

__all__ = ["Auxiliary", "mixture_with_private"]

Auxiliary = Literal["learned", "prior", "posterior"]


def mixture_with_private(
    encoders: Networks,
    decoders: Networks,
    latent_dim: int,
    *,
    prior: nn.Module,
    family: Literal["laplace", "normal"],
    private_encoders: Networks,
    private_dims: Mapping[str, int],
    auxiliary: Auxiliary,
    auxiliary_kl: bool,
    predict: Literal["prior", "auxiliary"],
    num_particles: int,
    gradient: Gradient,
    beta: float,
    warmup: int,
    rescale: Rescale,
) -> tuple[ObservedModel, Fused, IWAE]:
    """
    Model, guide and objective.

    :param prior: p(z).
    :param family: of the private priors and the auxiliary ones.
    """
    if not private_encoders or not private_dims:
        raise ValueError(
            "private_encoders, private_dims: expected modality -> encoder and modality -> size, got none. Fix: without "
            "private latents this is MMVAE."
        )
    chosen(
        auxiliary=(auxiliary, ("learned", "prior", "posterior")),
        private_prior=(family, ("laplace", "normal")),
        predict=(predict, ("prior", "auxiliary")),
        gradient=(gradient, ("path", "stl", "dreg", "dreg_private")),
    )
    if auxiliary != "learned" and (auxiliary_kl or predict == "auxiliary"):
        raise ValueError(f"auxiliary_kl and predict='auxiliary' need auxiliary='learned', got {auxiliary!r}.")
    betas = each_beta(beta, warmup, private_encoders)
    model = model_of(
        encoders,
        decoders,
        latent_dim,
        prior=prior,
        private_encoders=private_encoders,
        private_dims=private_dims,
        private_priors={m: _prior(family, size) for m, size in private_dims.items()},
    )
    single: dict[str, Fusion] = {}
    if auxiliary == "learned":
        single = {
            m: Single(_prior(family, size, learn=True), counted=auxiliary_kl, predict=predict)
            for m, size in private_dims.items()
        }
    guide = guide_of(model, encoders, Mixture(), private_encoders, single)
    term = Term(
        Each(),
        Observed(),
        weight=1 / len(encoders),
        renormalize=True,
        beta=betas,
        rescale=factors(model, rescale),
        private="observed" if auxiliary == "posterior" else "source",
    )
    return model, guide, IWAE(Terms([term]), num_particles=num_particles, gradient=gradient, density="mixture")


def _prior(family: str, size: int, *, learn: bool = False) -> nn.Module:
    """Of unit scale, or with a learned scale; always around 0."""
    if family == "laplace":
        return LaplacePrior(size, learn=learn)
    return NormalPrior(size, learn="scale" if learn else False)
