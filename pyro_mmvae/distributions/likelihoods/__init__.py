"""Elementwise likelihoods that Pyro lacks or gets wrong at the edges.

Layer: distributions.
"""

from pyro_mmvae.distributions.likelihoods.bernoulli_cross_entropy import BernoulliCrossEntropy
from pyro_mmvae.distributions.likelihoods.continuous_bernoulli import ContinuousBernoulli
from pyro_mmvae.distributions.likelihoods.counts import Binomial, NegativeBinomial, Poisson
from pyro_mmvae.distributions.likelihoods.open_beta import OpenBeta, open_unit_interval
from pyro_mmvae.distributions.likelihoods.optimal_normal import OptimalNormal

__all__ = [
    "BernoulliCrossEntropy",
    "Binomial",
    "ContinuousBernoulli",
    "NegativeBinomial",
    "OpenBeta",
    "OptimalNormal",
    "Poisson",
    "open_unit_interval",
]
