"""Likelihoods: modules from the raw outputs of a network to a distribution over a modality.

Layer: nn.
"""

from pyro_mmvae.nn.likelihoods.base import Likelihood, PerFeature, PositiveParameter
from pyro_mmvae.nn.likelihoods.classes import Bernoulli, Categorical, OneHotCategorical, Ordinal
from pyro_mmvae.nn.likelihoods.columns import Columns, class_probabilities
from pyro_mmvae.nn.likelihoods.counts import Binomial, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyro_mmvae.nn.likelihoods.custom import FromCallable
from pyro_mmvae.nn.likelihoods.real import Laplace, Normal, StudentT
from pyro_mmvae.nn.likelihoods.resolve import expected, resolve
from pyro_mmvae.nn.likelihoods.unit import Beta, ContinuousBernoulli, LogNormal, RelaxedBernoulli

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "FromCallable",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "Ordinal",
    "PerFeature",
    "Poisson",
    "PositiveParameter",
    "RelaxedBernoulli",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "class_probabilities",
    "expected",
    "resolve",
]
