"""Models, networks and data of other libraries, as this library's own.

Layer: compat, above models.
"""

from pyro_mmvae.compat import multivae

__all__ = ["multivae"]
