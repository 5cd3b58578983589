"""From experts and a mask to q(z | x_S): one rule per file.

Layer: fusion, above handlers.
"""

from pyro_mmvae.fusion.barycenter import WassersteinBarycenter
from pyro_mmvae.fusion.consensus import ConsensusOfDependentExperts
from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.fusion.flow import Flow
from pyro_mmvae.fusion.hoelder import Hoelder
from pyro_mmvae.fusion.joint import Joint
from pyro_mmvae.fusion.latent import posterior_at
from pyro_mmvae.fusion.mean import MeanOfParameters
from pyro_mmvae.fusion.mixture import Mixture, MixtureOfProducts
from pyro_mmvae.fusion.pool import precision_pool
from pyro_mmvae.fusion.pooled import Pooled
from pyro_mmvae.fusion.product import Product
from pyro_mmvae.fusion.single import Single
from pyro_mmvae.fusion.stratified import Stratified
from pyro_mmvae.fusion.weighted import GeneralizedProduct, GeometricMean

__all__ = [
    "ConsensusOfDependentExperts",
    "Experts",
    "Flow",
    "Fusion",
    "GeneralizedProduct",
    "GeometricMean",
    "Hoelder",
    "Joint",
    "MeanOfParameters",
    "Mixture",
    "MixtureOfProducts",
    "Pooled",
    "Product",
    "Single",
    "Stratified",
    "WassersteinBarycenter",
    "posterior_at",
    "precision_pool",
]
