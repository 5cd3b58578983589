"""Objectives: weighted tables of bound terms, and the estimators of their values and gradients.

Layer: objectives, above guides. Objectives know stories only through traces and site metadata.
"""

from pyro_mmvae.objectives.annealing import Annealed
from pyro_mmvae.objectives.elbo import ELBO
from pyro_mmvae.objectives.iwae import IWAE
from pyro_mmvae.objectives.kl import known_kl
from pyro_mmvae.objectives.learned import LearnedWeights
from pyro_mmvae.objectives.objective import Objective
from pyro_mmvae.objectives.subsets import (
    AnyContained,
    Bernoulli,
    Complement,
    Context,
    Each,
    Fixed,
    Nothing,
    Observed,
    Only,
    Powerset,
    Random,
)
from pyro_mmvae.objectives.table import Table
from pyro_mmvae.objectives.term import PosteriorOf, Term
from pyro_mmvae.objectives.terms import Terms

__all__ = [
    "ELBO",
    "IWAE",
    "Annealed",
    "AnyContained",
    "Bernoulli",
    "Complement",
    "Context",
    "Each",
    "Fixed",
    "LearnedWeights",
    "Nothing",
    "Objective",
    "Observed",
    "Only",
    "PosteriorOf",
    "Powerset",
    "Random",
    "Table",
    "Term",
    "Terms",
    "known_kl",
]
