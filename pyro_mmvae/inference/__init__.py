"""What one does with a trained pair of programs: posteriors, predictions, imputations, likelihoods, clusters, ArviZ.

Layer: inference, above objectives and datasets.
"""

from pyro_mmvae.inference import frames
from pyro_mmvae.inference.clusters import ClusterPruning, predict_clusters, prune_clusters
from pyro_mmvae.inference.completed import Completed, Interval
from pyro_mmvae.inference.generate import decode, generate
from pyro_mmvae.inference.inference_data import to_inference_data
from pyro_mmvae.inference.log_likelihood import LogLikelihood, log_likelihood
from pyro_mmvae.inference.posterior import posterior
from pyro_mmvae.inference.predict import impute, predict
from pyro_mmvae.inference.predictive import PredictMessenger

__all__ = [
    "ClusterPruning",
    "Completed",
    "Interval",
    "LogLikelihood",
    "PredictMessenger",
    "decode",
    "frames",
    "generate",
    "impute",
    "log_likelihood",
    "posterior",
    "predict",
    "predict_clusters",
    "prune_clusters",
    "to_inference_data",
]
