"""Networks for few rows: linear, with dropout of what they read, and a weight decay that ``fit`` honors.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mmvae.nn.config import Configurable
from pyro_mmvae.nn.covariates import Columns
from pyro_mmvae.nn.decoders import MLPDecoder
from pyro_mmvae.nn.likelihoods import Likelihood
from pyro_mmvae.nn.mlp import positive_int

__all__ = ["DropoutFamily", "DropoutNormalHead", "SmallDecoder"]


def _share(strength: float) -> float:
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength: expected a number from 0 to 1, got {strength!r}.")
    return strength


class DropoutNormalHead(Configurable, nn.Module):
    r"""
    Diagonal Gaussian expert that reads its features through dropout:
    :math:`q(z \mid h) = \mathcal N(W \tilde h + b,\; \exp(s + \tanh(W' \tilde h))^2)`.

    In training each feature is 0 with probability r and divided by 1 - r otherwise; in evaluation mode
    :math:`\tilde h = h`. As ``family`` of an encoder without hidden layers it is input dropout, hence a penalty on the
    weights that grows with how much a single feature is relied on. Few features are not redundant, so that the rate
    grows with their number F: :math:`r = s\, F / (2 F + 40)` with the strength s, at most one half.

    In a linear-Gaussian model the scale of the posterior depends on what is observed and not on its values; here it
    moves by a factor e at most, so that an outlying cell cannot make it explode.

    Example::

        >>> from pyro_mmvae.nn import MLPEncoder
        >>> encoder = MLPEncoder(60, 2, hidden=(), family=DropoutNormalHead)
        >>> encoder(torch.zeros(5, 60)).event_shape, encoder.head.dropout.p
        (torch.Size([2]), 0.375)

    :param features: F, how many numbers it reads.
    :param latent_dim: width of the latent.
    :param strength: s, from 0 (no dropout) to 1.
    :raises ValueError: for sizes that are not positive, or a ``strength`` outside of [0, 1].
    """

    def __init__(self, features: int, latent_dim: int, *, strength: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = positive_int(latent_dim, "latent_dim")
        self.dropout = nn.Dropout(_share(strength) * positive_int(features, "features") / (2 * features + 40))
        self.loc = nn.Linear(features, latent_dim)
        self.change = nn.Linear(features, latent_dim, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(
        self,
        h: Tensor,  # shape: (*batch, features)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: (latent_dim,)
        h = self.dropout(h)
        return dist.Normal(self.loc(h), (self.log_scale + self.change(h).tanh()).exp()).to_event(1)


class DropoutFamily(Configurable):
    """
    ``family`` of an encoder: makes a :class:`DropoutNormalHead` of this strength.

    Example::

        >>> DropoutFamily(0.5)(60, 2).dropout.p, DropoutNormalHead(60, 2).dropout.p
        (0.1875, 0.375)

    :param strength: of dropout, from 0 (none) to 1.
    :raises ValueError: for a ``strength`` outside of [0, 1].
    """

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = _share(strength)

    def __call__(self, features: int, latent_dim: int) -> DropoutNormalHead:
        """A head that reads so many features."""
        return DropoutNormalHead(features, latent_dim, strength=self.strength)


class _LeadingDropout(nn.Module):
    """Dropout of the first ``width`` numbers; covariates, which follow them, are left alone."""

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.width, self.dropout = width, nn.Dropout(rate)

    def forward(self, h: Tensor) -> Tensor:  # both, shape: (*batch, width + extra)
        first, rest = h.tensor_split([self.width], -1)
        return self.dropout(first) if rest.shape[-1] == 0 else torch.cat([self.dropout(first), rest], -1)


class SmallDecoder(MLPDecoder):
    r"""
    Linear decoder with dropout on the latent: :math:`p(x \mid z, c) = \mathrm{likelihood}(W [\tilde z, c] + b)`.

    In training each coordinate of z is 0 with probability r and divided by 1 - r otherwise. That keeps loadings from
    fitting single rows, and learned scales from shrinking to the residuals of the training rows, which are too small
    by what was fitted: predictive intervals stay wide enough. The rate is :math:`r = 0.4\, s\, D / (D + 4)` for a
    latent of width D and a strength s.

    ``weight_decay`` is an attribute that the optimizer of :func:`pyro_mmvae.fit` looks for on every module: the
    gradient of :math:`\tfrac{1}{2}` ``weight_decay`` :math:`\lVert W \rVert^2` is added to that of the loss per row.
    With N rows it is a prior :math:`W_{ij} \sim \mathcal N(0, 1 / (N \cdot` ``weight_decay`` :math:`))`.

    Example::

        >>> decoder = SmallDecoder(4, 3, likelihood="normal_learned", weight_decay=0.5)
        >>> decoder(torch.zeros(5, 4)).mean.shape, decoder.weight_decay
        (torch.Size([5, 3]), 0.5)

    :param latent_dim: D, total width of what it is fed.
    :param shape: event shape.
    :param likelihood: as in :class:`MLPDecoder`.
    :param weight_decay: of W, not of b or of the likelihood's parameters; at least 0.
    :param context: as in :class:`MLPDecoder`; covariates are not dropped.
    :param strength: s, of dropout, from 0 (none) to 1.
    :raises ValueError: for sizes that are not positive, a negative ``weight_decay``, or a ``strength`` outside of
        [0, 1].
    """

    def __init__(
        self,
        latent_dim: int,
        shape: int | Sequence[int],
        *,
        likelihood: str | Likelihood = "normal",
        weight_decay: float = 0.0,
        context: Columns = None,
        strength: float = 1.0,
    ) -> None:
        super().__init__(latent_dim, shape, likelihood=likelihood, hidden=(), context=context)
        if not 0.0 <= weight_decay < float("inf"):
            raise ValueError(f"weight_decay: expected a number from 0 on, got {weight_decay!r}.")
        self.weight_decay = weight_decay
        rate = 0.4 * _share(strength) * latent_dim / (latent_dim + 4)
        self.net = nn.Sequential(_LeadingDropout(latent_dim, rate), *self.net)
