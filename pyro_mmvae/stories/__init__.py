"""Generative stories of one sample, and ``observe``, which conditions them on incomplete data.

Layer: stories, above handlers.
"""

from pyro_mmvae.stories.door import Door
from pyro_mmvae.stories.observed import ObservedModel, data_plate, observe
from pyro_mmvae.stories.registration import Registered, unregistered
from pyro_mmvae.stories.story import LatentSite, ModalitySite, Outline, Story, outline

__all__ = [
    "Door",
    "LatentSite",
    "ModalitySite",
    "ObservedModel",
    "Outline",
    "Registered",
    "Story",
    "data_plate",
    "observe",
    "outline",
    "unregistered",
]
