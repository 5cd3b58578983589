"""Encoders, decoders and likelihoods: modules whose call returns a distribution.

Layer: nn, above distributions.
"""

from pyro_mmvae.nn.attention import AttentionEncoder
from pyro_mmvae.nn.config import Configurable, from_config, register_function, to_json
from pyro_mmvae.nn.covariates import covariates_of
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
    Columns,
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
    class_probabilities,
    expected,
    resolve,
)
from pyro_mmvae.nn.modes import modes_restored
from pyro_mmvae.nn.named import NamedModules
from pyro_mmvae.nn.set_encoders import ExpertFeatures, SumPoolingEncoder
from pyro_mmvae.nn.small import DropoutFamily, DropoutNormalHead, SmallDecoder
from pyro_mmvae.nn.sparse import DropoutRates, VariationalDropoutHead, share_rates
from pyro_mmvae.nn.tables import ColumnFeatures, Context, TableEncoder, TableFeatures

__all__ = [
    "AttentionEncoder",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ColumnFeatures",
    "Columns",
    "Configurable",
    "Context",
    "ContinuousBernoulli",
    "ConvDecoder",
    "ConvEncoder",
    "DropoutFamily",
    "DropoutNormalHead",
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
    "SmallDecoder",
    "SoftplusNormalHead",
    "StudentT",
    "SumPoolingEncoder",
    "TableEncoder",
    "TableFeatures",
    "VariationalDropoutHead",
    "ZeroInflatedNegativeBinomial",
    "covariates_of",
    "class_probabilities",
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
