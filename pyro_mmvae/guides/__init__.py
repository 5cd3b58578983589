"""Amortized posteriors that answer every set of observed modalities.

Layer: guides, above stories and fusion.
"""

from pyro_mmvae.guides.auto import Auto, auto
from pyro_mmvae.guides.component import components, components_wanted
from pyro_mmvae.guides.encode import network_cost
from pyro_mmvae.guides.fused import Fused, FuseMessenger, Product
from pyro_mmvae.guides.globals import WithGlobals
from pyro_mmvae.guides.refused import Refused

__all__ = [
    "Auto",
    "FuseMessenger",
    "Fused",
    "Product",
    "Refused",
    "WithGlobals",
    "auto",
    "components",
    "components_wanted",
    "network_cost",
]
