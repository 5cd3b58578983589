"""Conjugate models beyond the Gaussian: Gamma-Poisson and Dirichlet-Categorical, solved exactly.

Test layer: plain torch in float64, one row at a time, independent of the library.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .linear_gaussian import Masks, batch_size, features


class GammaPoisson:
    r"""
    One rate per sample behind the counts of every modality.

    .. math:: z \sim Gamma(a, b), \qquad x_{md} \mid z \sim Poisson(e_{md} z)

    Example::

        >>> model = GammaPoisson(2.0, 1.0, {"a": torch.ones(1)})
        >>> [t.item() for t in model.posterior({"a": torch.tensor([[3]])})]
        [5.0, 2.0]

    :param concentration: a. :param rate: b, inverse scale.
    :param exposure: e_m, shape (D_m,), positive.
    """

    def __init__(self, concentration: float, rate: float, exposure: Mapping[str, Tensor]) -> None:
        self.concentration = torch.tensor(concentration, dtype=torch.float64)
        self.rate = torch.tensor(rate, dtype=torch.float64)
        self.exposure = {m: e.double() for m, e in exposure.items()}

    def _observed(self, data: Mapping[str, Tensor], mask: Masks | None, row: int) -> tuple[Tensor, Tensor]:
        """One row's counts and exposures in a line."""
        counts, exposures = [], []
        for name, exposure in self.exposure.items():
            keep = features(mask, name, row, exposure.shape[0])
            if keep.any():
                counts.append(data[name][row][keep].double())
                exposures.append(exposure[keep])
        empty = torch.zeros(0, dtype=torch.float64)
        return torch.cat([empty, *counts]), torch.cat([empty, *exposures])

    def posterior(self, data: Mapping[str, Tensor], mask: Masks | None = None) -> tuple[Tensor, Tensor]:
        """Concentration and rate of the Gamma posterior, shapes (B,): a + sum x, b + sum e."""
        rows = [self._observed(data, mask, row) for row in range(batch_size(data))]
        return (
            torch.stack([self.concentration + x.sum() for x, _ in rows]),
            torch.stack([self.rate + e.sum() for _, e in rows]),
        )

    def log_evidence(self, data: Mapping[str, Tensor], mask: Masks | None = None) -> Tensor:  # shape: (B,)
        """log p(x_O) in nats: ratio of Gamma normalizers times sum x log e - log x!."""
        a, b = self.posterior(data, mask)
        prior = self.concentration * self.rate.log() - torch.lgamma(self.concentration)
        extra = []
        for row in range(batch_size(data)):
            x, e = self._observed(data, mask, row)
            extra.append((x * e.log() - torch.lgamma(x + 1)).sum())
        return prior + torch.lgamma(a) - a * b.log() + torch.stack(extra)

    def elbo(
        self,
        concentration: Tensor,  # shape: (B,)
        rate: Tensor,  # shape: (B,)
        data: Mapping[str, Tensor],
        mask: Masks | None = None,
    ) -> Tensor:  # shape: (B,)
        """E_q[log p(x_O | z)] - KL(q || p) in nats for q = Gamma(concentration, rate)."""
        q_a, q_b = concentration.double(), rate.double()
        log_z, mean_z = torch.digamma(q_a) - q_b.log(), q_a / q_b
        values = []
        for row in range(batch_size(data)):
            x, e = self._observed(data, mask, row)
            values.append((x * (e.log() + log_z[row]) - e * mean_z[row] - torch.lgamma(x + 1)).sum())
        return torch.stack(values) - self.kl((q_a, q_b), (self.concentration, self.rate))

    @staticmethod
    def kl(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> Tensor:  # shapes: (B,) or ()
        """KL(Gamma(q) || Gamma(p)) in nats, pairs of concentration and rate."""
        (a, b), (c, d) = q, p
        return (a - c) * torch.digamma(a) - torch.lgamma(a) + torch.lgamma(c) + c * (b / d).log() + a * (d - b) / b


class DirichletCategorical:
    r"""
    One vector of class probabilities per sample behind the labels of every modality.

    .. math:: z \sim Dirichlet(\alpha), \qquad x_{md} \mid z \sim Categorical(z)

    Example::

        >>> model = DirichletCategorical(torch.tensor([1.0, 1.0]), {"a": 2})
        >>> model.posterior({"a": torch.tensor([[0, 0]])})
        tensor([[3., 1.]], dtype=torch.float64)

    :param concentration: alpha, shape (C,).
    :param sizes: D_m, the number of labels of each modality.
    """

    def __init__(self, concentration: Tensor, sizes: Mapping[str, int]) -> None:
        self.concentration = concentration.double()
        self.sizes = dict(sizes)

    def counts(self, data: Mapping[str, Tensor], mask: Masks | None = None) -> Tensor:  # shape: (B, C)
        """How often each class occurs among the counted labels of each row; data holds integers (B, D_m)."""
        rows = []
        for row in range(batch_size(data)):
            count = torch.zeros_like(self.concentration)
            for name, size in self.sizes.items():
                for label in data[name][row][features(mask, name, row, size)].tolist():
                    count[int(label)] += 1
            rows.append(count)
        return torch.stack(rows)

    def posterior(self, data: Mapping[str, Tensor], mask: Masks | None = None) -> Tensor:  # shape: (B, C)
        """Concentration of the Dirichlet posterior: alpha + counts."""
        return self.concentration + self.counts(data, mask)

    def log_evidence(self, data: Mapping[str, Tensor], mask: Masks | None = None) -> Tensor:  # shape: (B,)
        """log p(x_O) in nats of the labels in their order: log B(alpha + counts) - log B(alpha)."""
        return _log_beta(self.posterior(data, mask)) - _log_beta(self.concentration)

    def elbo(
        self,
        concentration: Tensor,  # shape: (B, C)
        data: Mapping[str, Tensor],
        mask: Masks | None = None,
    ) -> Tensor:  # shape: (B,)
        """E_q[log p(x_O | z)] - KL(q || p) in nats for q = Dirichlet(concentration)."""
        q = concentration.double()
        expected = torch.digamma(q) - torch.digamma(q.sum(-1, keepdim=True))
        return (self.counts(data, mask) * expected).sum(-1) - self.kl(q, self.concentration)

    @staticmethod
    def kl(q: Tensor, p: Tensor) -> Tensor:  # shapes: (*batch, C) -> (*batch)
        """KL(Dirichlet(q) || Dirichlet(p)) in nats."""
        expected = torch.digamma(q) - torch.digamma(q.sum(-1, keepdim=True))
        return _log_beta(p) - _log_beta(q) + ((q - p) * expected).sum(-1)


def _log_beta(concentration: Tensor) -> Tensor:  # shapes: (*batch, C) -> (*batch)
    """Log of the multivariate Beta function."""
    return torch.lgamma(concentration).sum(-1) - torch.lgamma(concentration.sum(-1))
