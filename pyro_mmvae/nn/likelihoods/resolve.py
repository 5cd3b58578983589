"""Likelihoods by name, and the expected value of what they return.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Distribution, Independent

from pyro_mmvae.distributions import Lazy, Scored
from pyro_mmvae.nn.likelihoods import classes, counts, real, unit
from pyro_mmvae.nn.likelihoods.base import Likelihood

__all__ = ["expected", "resolve"]

_NAMED: dict[str, Callable[[], Likelihood]] = {
    "normal": real.Normal,
    "normal_learned": lambda: real.Normal("learned"),
    "normal_predicted": lambda: real.Normal("predicted"),
    "normal_optimal": lambda: real.Normal("optimal"),
    "laplace": real.Laplace,
    "laplace_learned": lambda: real.Laplace("learned"),
    "laplace_predicted": lambda: real.Laplace("predicted"),
    "student_t": real.StudentT,
    "bernoulli": classes.Bernoulli,
    "continuous_bernoulli": unit.ContinuousBernoulli,
    "relaxed_bernoulli": unit.RelaxedBernoulli,
    "beta": unit.Beta,
    "log_normal": unit.LogNormal,
    "poisson": counts.Poisson,
    "negative_binomial": counts.NegativeBinomial,
    "zero_inflated_negative_binomial": counts.ZeroInflatedNegativeBinomial,
    "one_hot_categorical": classes.OneHotCategorical,
}
_NEED_OPTIONS = {
    "binomial": "Binomial(total_count)",
    "categorical": "Categorical(num_classes)",
    "ordinal": "Ordinal(num_classes)",
}


def resolve(likelihood: str | Likelihood) -> Likelihood:
    """
    A likelihood object from its name; an object is returned as it is.

    Example::

        >>> resolve("normal_learned").name
        'Normal'

    :raises ValueError: for an unknown name, or the name of one that needs an option.
    :raises TypeError: if it is neither a name nor a likelihood.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        fix = " Fix: FromCallable(fn, raw_per_feature=..., support=...)." if callable(likelihood) else ""
        raise TypeError(f"likelihood is a name or a Likelihood object, got {type(likelihood).__name__}.{fix}")
    if likelihood in _NEED_OPTIONS:
        raise ValueError(f"The likelihood {likelihood!r} needs an option. Fix: likelihood={_NEED_OPTIONS[likelihood]}.")
    if likelihood not in _NAMED:
        known = ", ".join(sorted([*_NAMED, *_NEED_OPTIONS]))
        raise ValueError(f"Unknown likelihood {likelihood!r}. Known: {known}; or FromCallable for anything else.")
    return _NAMED[likelihood]()


def expected(
    distribution: Distribution,
) -> Tensor:  # shape: (*batch, *event), with (num_classes,) more for class numbers
    r"""
    The mean of a likelihood; the class probabilities where it is over class numbers.

    Sees through ``Lazy``, ``Scored``, ``Independent``, ``MaskedDistribution`` and ``ExpandedDistribution``.

    Example::

        >>> import pyro.distributions as dist
        >>> import torch
        >>> expected(dist.Categorical(logits=torch.zeros(5, 2, 4)).to_event(1)).shape
        torch.Size([5, 2, 4])
        >>> expected(dist.Normal(torch.ones(5, 2), 1.0).to_event(1)).shape
        torch.Size([5, 2])
    """
    if isinstance(distribution, Lazy):
        return expected(distribution.dense())
    if isinstance(distribution, Scored):
        return expected(distribution.base)
    if isinstance(distribution, Independent):
        return expected(distribution.base_dist)
    if isinstance(distribution, TorchCategorical):
        return distribution.probs
    if isinstance(distribution, (MaskedDistribution, ExpandedDistribution)):
        value, base = expected(distribution.base_dist), distribution.base_dist
        return value.expand(distribution.batch_shape + value.shape[len(base.batch_shape) :])
    return distribution.mean
