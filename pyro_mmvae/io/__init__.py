"""Models in files: saved as plain JSON and tensors, loaded without executing anything, shared on a hub.

Layer: io, above training.
"""

from pyro_mmvae.io.describe import call_of
from pyro_mmvae.io.files import Saved, read
from pyro_mmvae.io.hub import from_pretrained, model_card, push_to_hub
from pyro_mmvae.io.load import load, save

__all__ = ["Saved", "call_of", "from_pretrained", "load", "model_card", "push_to_hub", "read", "save"]
