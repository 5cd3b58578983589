"""Encoders, decoders and likelihoods: modules whose call returns a distribution.

Layer: nn, above distributions.
"""

from pyro_mmvae.nn.attention import AttentionEncoder
from pyro_mmvae.nn.config import Configurable, from_config, register_function, to_json
from pyro_mmvae.nn.decoders import ConvDecoder, LinearDecoder, MLPDecoder
from pyro_mmvae.nn.defaults import default_networks
from pyro_mmvae.nn.encoders import ConvEncoder, EmbeddingEncoder, MLPEncoder, takes_mask
from pyro_mmvae.nn.heads import LaplaceHead, LaplaceSoftmaxHead, NormalHead, SoftplusNormalHead
from pyro_mmvae.nn.joint import JointEncoder
from pyro_mmvae.nn.likelihoods import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    FromCallable,
    Laplace,
    Likelihood,
    LogNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Ordinal,
    Poisson,
    RelaxedBernoulli,
    StudentT,
    ZeroInflatedNegativeBinomial,
    expected,
    resolve,
)
from pyro_mmvae.nn.modes import modes_restored
from pyro_mmvae.nn.named import NamedModules
from pyro_mmvae.nn.set_encoders import ExpertFeatures, SumPoolingEncoder
from pyro_mmvae.nn.sparse import DropoutRates, VariationalDropoutHead, share_rates

__all__ = [
    "AttentionEncoder",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Configurable",
    "ContinuousBernoulli",
    "ConvDecoder",
    "ConvEncoder",
    "DropoutRates",
    "EmbeddingEncoder",
    "ExpertFeatures",
    "FromCallable",
    "JointEncoder",
    "Laplace",
    "LaplaceHead",
    "LaplaceSoftmaxHead",
    "Likelihood",
    "LinearDecoder",
    "LogNormal",
    "MLPDecoder",
    "MLPEncoder",
    "NamedModules",
    "NegativeBinomial",
    "Normal",
    "NormalHead",
    "OneHotCategorical",
    "Ordinal",
    "Poisson",
    "RelaxedBernoulli",
    "SoftplusNormalHead",
    "StudentT",
    "SumPoolingEncoder",
    "VariationalDropoutHead",
    "ZeroInflatedNegativeBinomial",
    "default_networks",
    "expected",
    "modes_restored",
    "from_config",
    "register_function",
    "resolve",
    "share_rates",
    "to_json",
    "takes_mask",
]
