"""Eight small stories with fixed parameters, whose posteriors are known exactly or by quadrature.

Layer: stories.
"""

from pyro_mmvae.stories.examples.dirichlet_categorical import DirichletCategorical
from pyro_mmvae.stories.examples.discrete_mixture import DiscreteMixture
from pyro_mmvae.stories.examples.example import Example
from pyro_mmvae.stories.examples.factor_analysis import FactorAnalysis
from pyro_mmvae.stories.examples.gamma_poisson import GammaPoisson
from pyro_mmvae.stories.examples.hospitals import Hospitals
from pyro_mmvae.stories.examples.mixed_table import MixedTable
from pyro_mmvae.stories.examples.shared_private import SharedPrivate
from pyro_mmvae.stories.examples.zinb import ZINB

__all__ = [
    "DirichletCategorical",
    "DiscreteMixture",
    "Example",
    "FactorAnalysis",
    "GammaPoisson",
    "Hospitals",
    "MixedTable",
    "SharedPrivate",
    "ZINB",
]
