"""Guides made from a story alone.

Layer: guides, above stories and fusion.
"""

from pyro_mmvae.guides.auto.auto import auto
from pyro_mmvae.guides.auto.guide import Auto

__all__ = ["Auto", "auto"]
