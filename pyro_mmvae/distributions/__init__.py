"""Distributions that Pyro lacks: lazy likelihoods, masked events, mixtures of experts, choices between two.

Layer: distributions, above masks.
"""

from pyro_mmvae.distributions.columns import ColumnProduct, ColumnSupport
from pyro_mmvae.distributions.event_mask import factorized_dims, mask_event
from pyro_mmvae.distributions.lazy import Lazy, Scored
from pyro_mmvae.distributions.log_uniform import LogUniform, stand_ins
from pyro_mmvae.distributions.mixture import Mixture
from pyro_mmvae.distributions.params import map_params, unwrap
from pyro_mmvae.distributions.shared_scale import SharedScaleNormal
from pyro_mmvae.distributions.support import base_support, bounds, fill_value, outside
from pyro_mmvae.distributions.where import Where

__all__ = [
    "ColumnProduct",
    "ColumnSupport",
    "Lazy",
    "LogUniform",
    "Mixture",
    "Scored",
    "SharedScaleNormal",
    "Where",
    "base_support",
    "bounds",
    "factorized_dims",
    "fill_value",
    "map_params",
    "mask_event",
    "outside",
    "stand_ins",
    "unwrap",
]
