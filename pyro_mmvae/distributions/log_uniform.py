"""The improper prior 1/|z| of sparse latents, and the divergence of a Gaussian from it.

Layer: distributions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Normal, constraints, register_kl
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from pyro_mmvae.distributions.shapes import broadcast

__all__ = ["LOC_FLOOR", "LogUniform", "stand_ins"]

_STAND_IN: ContextVar[bool] = ContextVar("stand_in", default=False)

#: Added to \|loc\| wherever :math:`\alpha = \sigma^2 / \mu^2` is formed or undone, so that both are one number.
LOC_FLOOR = 1e-8

_K1, _K2, _K3 = 0.63576, 1.8732, 1.48695  # [1], eq. (14)
_LARGEST_LOG_ALPHA = 8.0
_NO_VARIANCE = 1e16  # float32 holds the cube of its root, which the gradient of a pooled precision needs


class LogUniform(TorchDistribution):
    r"""
    Log-uniform magnitude of either sign: improper, known up to a constant.

    .. math:: p(z) \propto \frac{1}{|z|}, \qquad \log p(z) = -\log |z|

    ``log_prob`` is unnormalized; at 0, where it has no bound, it is that of the smallest normal number. The divergence
    of a Gaussian is registered with the approximation of [1], which depends on
    :math:`\alpha = \sigma^2 / (|\mu| + 10^{-8})^2` alone, and whose constant makes it vanish as
    :math:`\alpha \to \infty`:

    .. math:: \mathrm{KL}(N(\mu, \sigma^2) \| p) \approx k_1 - k_1 \, \mathrm{sigmoid}(k_2 + k_3 \log \alpha)
        + \tfrac12 \log(1 + \alpha^{-1})

    with :math:`\log \alpha` clamped to [-8, 8]: beyond, it is constant and its gradient zero. KL(p || p) is 0. The
    mean of ``log q - log p`` over draws is less by :math:`\tfrac12 (\log 4 \pi + 1 + \gamma) \approx 2.054` nats per
    dimension, with Euler's constant :math:`\gamma`.

    There are no draws, hence no joint generation and no marginal likelihood; within :func:`stand_ins` zeros take their
    place. There are no moments either: ``mean`` is 0 by symmetry and ``variance`` is 1e16, standing for infinity, so
    that a product of Gaussians into which this prior enters by its moments is the product of the others.

    Example::

        >>> p = LogUniform(torch.zeros(2)).to_event(1)
        >>> float(p.log_prob(torch.tensor([1.0, -1.0])))
        0.0
        >>> q = Normal(torch.tensor(3.0), torch.tensor([0.03, 3.0, 300.0]))
        >>> [round(kl, 3) for kl in torch.distributions.kl_divergence(q, LogUniform(torch.zeros(3))).tolist()]
        [4.636, 0.431, 0.0]

    :param like: tensor of the batch shape, whose dtype and device are those of the distribution; its values do not
        matter.

    [1] *Variational Dropout Sparsifies Deep Neural Networks*, Molchanov, Ashukha and Vetrov, ICML 2017,
    arXiv:1701.05369, eq. (14).
    """

    #: Neither the marginal likelihood nor draws exist.
    is_density = False
    arg_constraints: dict[str, Constraint] = {"like": constraints.real}
    support = constraints.real
    has_rsample = False

    def __init__(self, like: Tensor, validate_args: bool | None = None) -> None:
        self.like = like
        super().__init__(like.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LogUniform:
        return LogUniform(self.like.expand(torch.Size(batch_shape)), validate_args=self._validate_args)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """
        Zeros within :func:`stand_ins`, else an error.

        :raises NotImplementedError: outside :func:`stand_ins`.
        """
        if _STAND_IN.get():
            return self.like.new_zeros(self._extended_shape(torch.Size(sample_shape)))
        raise NotImplementedError(
            "LogUniform is improper, p(z) proportional to 1/|z|: nothing can be drawn from it, so there is no joint "
            "generation. Try one of the following fixes:\n1. encode some modality and predict the others\n"
            "2. generate(n, prior=...) with a sampler or a proper distribution over the latent\n"
            "3. for pyro.infer.Predictive with a guide, which draws once and leaves that unused: call it within "
            "pyro_mmvae.distributions.stand_ins()"
        )

    rsample = sample

    def log_prob(
        self,
        value: Tensor,  # shape: broadcastable to (*sample, *batch)
    ) -> Tensor:  # shape: (*sample, *batch), nats up to a constant
        if self._validate_args:
            self._validate_sample(value)
        score = -value.abs().clamp(min=torch.finfo(value.dtype).tiny).log()
        return score.expand(broadcast(score.shape, self.batch_shape))

    @property
    def mean(self) -> Tensor:  # shape: (*batch,)
        return torch.zeros_like(self.like)

    @property
    def variance(self) -> Tensor:  # shape: (*batch,)
        return torch.full_like(self.like, _NO_VARIANCE)


@contextmanager
def stand_ins() -> Iterator[None]:
    """
    Let improper distributions give zeros in place of draws.

    For programs that are run to see their sites only, and for :class:`Where`, whose rows of which nothing is known
    have every dimension of a sparse latent switched off.

    Example::

        >>> with stand_ins():
        ...     LogUniform(torch.ones(2)).sample()
        tensor([0., 0.])
    """
    token = _STAND_IN.set(True)
    try:
        yield
    finally:
        _STAND_IN.reset(token)


@register_kl(Normal, LogUniform)
def _kl_normal_log_uniform(q: Normal, p: LogUniform) -> Tensor:
    log_alpha = 2 * (q.scale.log() - (q.loc.abs() + LOC_FLOOR).log())
    log_alpha = log_alpha.clamp(-_LARGEST_LOG_ALPHA, _LARGEST_LOG_ALPHA)
    value = _K1 - _K1 * (_K2 + _K3 * log_alpha).sigmoid() + 0.5 * softplus(-log_alpha)
    return value.expand(broadcast(value.shape, p.batch_shape))


@register_kl(LogUniform, LogUniform)
def _kl_log_uniform_log_uniform(q: LogUniform, p: LogUniform) -> Tensor:
    return q.mean.expand(broadcast(q.batch_shape, p.batch_shape))
