"""Multimodal variational autoencoders as ordinary Pyro programs, on data in which anything may be missing.

Top layer: public names, no logic.
"""

from pyro_mmvae import (
    checks,
    compat,
    datasets,
    distributions,
    fusion,
    guides,
    handlers,
    inference,
    io,
    models,
    nn,
    objectives,
    plotting,
    stories,
    training,
)
from pyro_mmvae.checks import check
from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.io import from_pretrained, load
from pyro_mmvae.models import (
    CMVAE,
    CRMVAE,
    DMVAE,
    DVCCA,
    HELVAE,
    JMVAE,
    MCVAE,
    MMJSD,
    MMVAE,
    MMVM,
    MVAE,
    MVTCAE,
    CoDEVAE,
    GPoE,
    MaskedVAE,
    MMVAEPlus,
    MoPoE,
)
from pyro_mmvae.nn import from_config
from pyro_mmvae.objectives import ELBO, IWAE, Term, Terms
from pyro_mmvae.stories import observe
from pyro_mmvae.training import fit
from pyro_mmvae.vae import MultimodalVAE

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "IWAE",
    "JMVAE",
    "MMVAE",
    "MVAE",
    "MVTCAE",
    "MaskedVAE",
    "MMVM",
    "MMVAEPlus",
    "MMJSD",
    "MCVAE",
    "HELVAE",
    "GPoE",
    "DVCCA",
    "DMVAE",
    "CRMVAE",
    "CMVAE",
    "CoDEVAE",
    "MoPoE",
    "MultimodalDataset",
    "MultimodalVAE",
    "Term",
    "Terms",
    "__version__",
    "check",
    "checks",
    "compat",
    "datasets",
    "distributions",
    "fit",
    "from_config",
    "from_pretrained",
    "fusion",
    "guides",
    "handlers",
    "inference",
    "io",
    "load",
    "models",
    "nn",
    "objectives",
    "observe",
    "plotting",
    "stories",
    "training",
]
