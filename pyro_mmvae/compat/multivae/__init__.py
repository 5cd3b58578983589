"""Coming from multivae: its datasets, its networks, the models it saved.

Layer: compat.
"""

from pyro_mmvae.compat.multivae.datasets import dataset
from pyro_mmvae.compat.multivae.default import SigmoidDecoder
from pyro_mmvae.compat.multivae.loading import load
from pyro_mmvae.compat.multivae.networks import decoder, encoder, joint_encoder

__all__ = ["SigmoidDecoder", "dataset", "decoder", "encoder", "joint_encoder", "load"]
