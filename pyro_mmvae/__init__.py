"""Multimodal variational autoencoders as ordinary Pyro programs, on data in which anything may be missing.

Top layer: public names, no logic.
"""

from pyro_mmvae import datasets, distributions, fusion, guides, handlers, nn, objectives, stories
from pyro_mmvae.objectives import ELBO, Term, Terms
from pyro_mmvae.stories import observe

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "Term",
    "Terms",
    "__version__",
    "datasets",
    "distributions",
    "fusion",
    "guides",
    "handlers",
    "nn",
    "objectives",
    "observe",
    "stories",
]
