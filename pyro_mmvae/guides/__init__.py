"""Amortized posteriors that answer every set of observed modalities.

Layer: guides, above stories and fusion.
"""

from pyro_mmvae.guides.component import components, components_wanted
from pyro_mmvae.guides.encode import network_cost
from pyro_mmvae.guides.fused import Fused, FuseMessenger, Product

__all__ = ["FuseMessenger", "Fused", "Product", "components", "components_wanted", "network_cost"]
