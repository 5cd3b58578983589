"""The methods of the table, each built with the networks that all share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro_mmvae as mm
from benchmarks.zoo.networks import LATENT, PRIVATE, Networks, joint_encoder, set_encoder

__all__ = ["DRAWS", "METHODS", "Method", "available"]

#: factor on the likelihood of the label in training, where the objective makes one modality explain another; elsewhere
#: likelihoods count as they are. Log-likelihoods are those of the model.
RESCALE = {"label": 4.0}

#: where the label has a private latent that can keep it, or nothing but the alignment of latents to be known by
MORE = {"label": 16.0}


@dataclass(frozen=True)
class Method:
    """
    A row of the table.

    :param kind: name of the class in ``pyro_mmvae``.
    :param build: networks -> the model to be trained; keywords replace options.
    :param rescale: factors on likelihoods in training, or None.
    :param private: whether it has private latents.
    :param cross: whether its objective has terms in which one modality explains another: stricter bars.
    :param exempt: why no bar is asked of it, or "".
    """

    kind: str
    build: Callable[..., mm.MultimodalVAE]
    rescale: Mapping[str, float] | None = None
    private: bool = False
    cross: bool = False
    exempt: str = ""


def _row(
    kind: str,
    *,
    private: bool = False,
    joint: bool = False,
    pooled: bool = False,
    cross: bool = False,
    exempt: str = "",
    **options: Any,
) -> Method:
    """A method from its class and its options; the class is looked up when it is built."""

    def build(nets: Networks, **other: Any) -> mm.MultimodalVAE:
        own: dict[str, Any] = {"private_encoders": nets.private_encoders, "private_dims": PRIVATE} if private else {}
        own |= {"joint_encoder": joint_encoder()} if joint else {}
        own |= {"pooling": set_encoder()} if pooled else {}
        encoders = None if pooled else nets.encoders
        made: mm.MultimodalVAE = getattr(mm, kind)(
            encoders, nets.decoders, latent_dim=LATENT, **own | options | other
        )
        return made

    return Method(kind, build, options.get("rescale"), private, cross, exempt)


#: draws per expert of the importance-weighted objectives; with one, log p of MMVAE falls below that of independent VAEs
DRAWS = 5

#: experts and priors are normal, so that the networks of all methods are the same
METHODS: dict[str, Method] = {
    "MVAE": _row("MVAE"),
    "MVAE joint": _row("MVAE", unimodal=False),
    "GPoE": _row("GPoE"),
    "MVTCAE": _row("MVTCAE", beta=1.0),
    "CRMVAE": _row("CRMVAE", beta=1.0),
    "JMVAE": _row("JMVAE", joint=True, alpha=0.1),
    "DMVAE": _row("DMVAE", private=True, counting="multivae", rescale=RESCALE),
    "MMJSD": _row("MMJSD", private=True),
    "MMVAE": _row("MMVAE", cross=True, num_particles=DRAWS, prior="normal", learn_prior=False, rescale=RESCALE),
    "MMVAEPlus": _row(
        "MMVAEPlus",
        private=True,
        cross=True,
        num_particles=DRAWS,
        prior="normal",
        private_prior="normal",
        rescale=MORE,
    ),
    "CMVAE": _row("CMVAE", private=True, cross=True, num_particles=DRAWS, cluster_prior="normal", rescale=MORE),
    "MoPoE": _row("MoPoE", cross=True, num_subsets=1, rescale=RESCALE),  # one per sample, as multivae has it
    "CoDEVAE": _row("CoDEVAE"),
    "HELVAE": _row("HELVAE"),
    "MMVM": _row("MMVM", cross=True, beta=2.0, rescale=MORE),
    "MaskedVAE": _row("MaskedVAE", pooled=True, cross=True, gradient="path", rescale=RESCALE),
    "MCVAE": _row("MCVAE"),
    "DVCCA": _row("DVCCA", reference="top", fallback="drop", exempt="encodes the top half alone"),
}


def available() -> dict[str, Method]:
    """The methods whose class exists."""
    return {name: method for name, method in METHODS.items() if hasattr(mm, method.kind)}
