"""Every likelihood with an independent formula: the table that the likelihood tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import special, stats

from pyro_mmvae import nn as mmnn
from pyro_mmvae.nn import Likelihood

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    """A likelihood, data inside its support, and its density per feature by scipy."""

    name: str
    make: Callable[[], Likelihood]
    draw: Callable[[np.random.Generator, tuple[int, ...]], Array]  # values (rows, *event)
    logpdf: Callable[..., Array]  # (x, raw, parameters of the likelihood) -> (rows, *features)
    event: tuple[int, ...] = (3, 2)
    parameters: Callable[[Likelihood], dict[str, Array]] = field(default=lambda lik: {})

    def build(self) -> Likelihood:
        lik = self.make().build(self.event).double()
        for parameter in lik.parameters():  # away from where they start, and different per feature
            parameter.data += 0.3 * np.pi * (parameter.data.cumsum(0) % 1 - 0.5)
        return lik


def of(name: str) -> Callable[[Likelihood], dict[str, Array]]:
    """Value of one learned part, as the documentation says: floor + exp(log)."""
    floors = {"df": 1.01}
    return lambda lik: {name: floors.get(name, 1e-3) + np.exp(getattr(lik, name).log.detach().numpy())}


def softplus(h: Array) -> Array:
    return np.logaddexp(0, h)


def reals(rng, shape):
    return rng.normal(size=shape) * 2


def bits(rng, shape):
    return rng.integers(0, 2, shape).astype(float)


def unit(rng, shape):
    return rng.uniform(0.01, 0.99, shape)


def positive(rng, shape):
    return rng.gamma(1.0, 2.0, shape)


def counts(rng, shape):
    return rng.poisson(3.0, shape).astype(float) * bits(rng, shape)


def negative_binomial(x, log_mean, r):
    mean = np.exp(log_mean)
    return stats.nbinom.logpmf(x, r, r / (r + mean))


def zero_inflated(x, raw, r):
    gate = special.expit(raw[..., 1])
    base = np.exp(negative_binomial(x, raw[..., 0], r))
    return np.log(gate * (x == 0) + (1 - gate) * base)


def continuous_bernoulli(x, h):
    return h * x - np.log(np.expm1(h) / h)


def ordinal(x, h, points):
    """Differences of the cumulative probabilities."""
    below = np.concatenate([special.expit(points - h[..., None]), np.ones((*h.shape, 1))], -1)
    upper = np.take_along_axis(below, x[..., None].astype(int), -1)[..., 0]
    lower = np.where(x > 0, np.take_along_axis(below, np.maximum(x - 1, 0)[..., None].astype(int), -1)[..., 0], 0)
    return np.log(upper - lower)


def pick(x, raw):
    return np.take_along_axis(special.log_softmax(raw, -1), x[..., None].astype(int), -1)[..., 0]


def integers(number):
    return lambda rng, shape: rng.integers(0, number, shape)


def one_hot(rng, shape):
    return np.eye(shape[-1])[rng.integers(0, shape[-1], shape[:-1])]


CASES = [
    Case("normal", lambda: mmnn.Normal(1.5), reals, lambda x, h: stats.norm.logpdf(x, h, 1.5)),
    Case("normal_learned", lambda: mmnn.Normal("learned"), reals, stats.norm.logpdf, parameters=of("scale")),
    Case(
        "normal_predicted",
        lambda: mmnn.Normal("predicted"),
        reals,
        lambda x, h: stats.norm.logpdf(x, h[..., 0], 1e-3 + softplus(h[..., 1])),
    ),
    Case("laplace", lambda: mmnn.Laplace(0.75), reals, lambda x, h: stats.laplace.logpdf(x, h, 0.75)),
    Case("laplace_learned", lambda: mmnn.Laplace("learned"), reals, stats.laplace.logpdf, parameters=of("scale")),
    Case(
        "laplace_predicted",
        lambda: mmnn.Laplace("predicted"),
        reals,
        lambda x, h: stats.laplace.logpdf(x, h[..., 0], 1e-3 + softplus(h[..., 1])),
    ),
    Case(
        "student_t",
        lambda: mmnn.StudentT("learned"),
        reals,
        lambda x, h, df, scale: stats.t.logpdf(x, df, h, scale),
        parameters=lambda lik: of("df")(lik) | of("scale")(lik),
    ),
    Case(
        "student_t_predicted",
        lambda: mmnn.StudentT(4.0, "predicted"),
        reals,
        lambda x, h: stats.t.logpdf(x, 4.0, h[..., 0], 1e-3 + softplus(h[..., 1])),
    ),
    Case("bernoulli", mmnn.Bernoulli, bits, lambda x, h: stats.bernoulli.logpmf(x, special.expit(h))),
    Case("continuous_bernoulli", mmnn.ContinuousBernoulli, unit, continuous_bernoulli),
    Case(
        "relaxed_bernoulli",
        mmnn.RelaxedBernoulli,
        unit,
        lambda x, h: x * np.log(special.expit(h)) + (1 - x) * np.log(special.expit(-h)),
    ),
    Case(
        "beta",
        mmnn.Beta,
        unit,
        lambda x, h: stats.beta.logpdf(x, 1e-3 + softplus(h[..., 0]), 1e-3 + softplus(h[..., 1])),
    ),
    Case(
        "log_normal",
        lambda: mmnn.LogNormal("learned"),
        positive,
        lambda x, h, scale: stats.lognorm.logpdf(x, scale, scale=np.exp(h)),
        parameters=of("scale"),
    ),
    Case(
        "log_normal_predicted",
        lambda: mmnn.LogNormal("predicted"),
        positive,
        lambda x, h: stats.lognorm.logpdf(x, 1e-3 + softplus(h[..., 1]), scale=np.exp(h[..., 0])),
    ),
    Case(
        "binomial",
        lambda: mmnn.Binomial(16),
        integers(17),
        lambda x, h: stats.binom.logpmf(x, 16, special.expit(h)),
    ),
    Case("poisson", mmnn.Poisson, counts, lambda x, h: stats.poisson.logpmf(x, np.exp(h))),
    Case(
        "negative_binomial",
        mmnn.NegativeBinomial,
        counts,
        lambda x, h, total_count: negative_binomial(x, h, total_count),
        parameters=of("total_count"),
    ),
    Case(
        "negative_binomial_predicted",
        lambda: mmnn.NegativeBinomial("predicted"),
        counts,
        lambda x, h: negative_binomial(x, h[..., 0], 1e-3 + softplus(h[..., 1])),
    ),
    Case(
        "zero_inflated",
        mmnn.ZeroInflatedNegativeBinomial,
        counts,
        lambda x, h, total_count: zero_inflated(x, h, total_count),
        parameters=of("total_count"),
    ),
    Case(
        "zero_inflated_predicted",
        lambda: mmnn.ZeroInflatedNegativeBinomial("predicted"),
        counts,
        lambda x, h: zero_inflated(x, h, 1e-3 + softplus(h[..., 2])),
    ),
    Case("categorical_label", lambda: mmnn.Categorical(4), integers(4), pick, event=()),
    Case("categorical_grid", lambda: mmnn.Categorical(4), integers(4), pick, event=(5,)),
    Case(
        "one_hot",
        lambda: mmnn.OneHotCategorical(4),
        one_hot,
        lambda x, h: (x * special.log_softmax(h, -1)).sum(-1),
        event=(2, 4),
    ),
    Case(
        "ordinal",
        lambda: mmnn.Ordinal(4),
        integers(4),
        ordinal,
        event=(3,),
        parameters=lambda lik: {"points": lik.cut_points().detach().numpy()},
    ),
]
NAMES = [case.name for case in CASES]
