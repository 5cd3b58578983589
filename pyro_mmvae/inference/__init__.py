"""What one does with a trained pair of programs: posteriors, predictions, imputations, likelihoods, ArviZ.

Layer: inference, above objectives and datasets.
"""

from pyro_mmvae.inference.generate import decode, generate
from pyro_mmvae.inference.inference_data import to_inference_data
from pyro_mmvae.inference.log_likelihood import LogLikelihood, log_likelihood
from pyro_mmvae.inference.posterior import posterior
from pyro_mmvae.inference.predict import impute, predict
from pyro_mmvae.inference.predictive import PredictMessenger

__all__ = [
    "LogLikelihood",
    "PredictMessenger",
    "decode",
    "generate",
    "impute",
    "log_likelihood",
    "posterior",
    "predict",
    "to_inference_data",
]
