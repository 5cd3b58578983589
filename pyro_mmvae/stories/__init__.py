"""Generative stories of one sample, and ``observe``, which conditions them on incomplete data.

Layer: stories, above handlers.
"""

from pyro_mmvae.stories import examples
from pyro_mmvae.stories.clusters import MixturePrior
from pyro_mmvae.stories.door import Door
from pyro_mmvae.stories.observed import ObservedModel, data_plate, observe
from pyro_mmvae.stories.priors import LaplacePrior, NormalPrior
from pyro_mmvae.stories.shared import Shared, SharedPrivate
from pyro_mmvae.stories.sparse import LogUniformPrior
from pyro_mmvae.stories.story import LatentSite, ModalitySite, Outline, Story, outline

__all__ = [
    "Door",
    "LaplacePrior",
    "LatentSite",
    "LogUniformPrior",
    "MixturePrior",
    "ModalitySite",
    "NormalPrior",
    "ObservedModel",
    "Outline",
    "Shared",
    "SharedPrivate",
    "Story",
    "data_plate",
    "examples",
    "observe",
    "outline",
]
