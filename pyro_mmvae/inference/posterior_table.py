"""A posterior over the rows of a table, which becomes a DataFrame.

Layer: inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_mmvae._optional import optional_import

__all__ = ["PosteriorTable"]


class PosteriorTable(TorchDistribution):
    """
    A posterior over the rows of a table: the distribution itself, and :meth:`to_frame`.

    Example::

        >>> import pandas as pd, pyro.distributions as dist
        >>> q = PosteriorTable(dist.Normal(torch.zeros(2, 1), 0.5).to_event(1), pd.Index(["p1", "p2"]))
        >>> q.to_frame()
            z_0  z_0_sd
        p1  0.0     0.5
        p2  0.0     0.5

    :param distribution: batch shape ``(N,)``, event shape ``(D,)``.
    :param index: of the rows.
    :param site: name of the latent.
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(self, distribution: TorchDistribution, index: Any, site: str = "z") -> None:
        self.distribution, self.index, self.site = distribution, index, site
        self.has_rsample = bool(distribution.has_rsample)
        super().__init__(distribution.batch_shape, distribution.event_shape, validate_args=False)

    def to_frame(self) -> Any:  # pandas.DataFrame
        """
        Means and standard deviations, columns ``z_0``, ``z_1``, ..., then ``z_0_sd``, ...

        :raises NotImplementedError: where the distribution knows no mean: flows, classes.
        :raises ValueError: for a latent of the whole data set, which has no rows.
        """
        pandas = optional_import("pandas", "tables")
        if self.batch_shape != (len(self.index),):
            raise ValueError(
                f"latent {self.site!r}: batch shape {tuple(self.batch_shape)}, not one entry for each of the "
                f"{len(self.index)} rows. Fix: .mean and .variance."
            )
        try:
            mean, sd = self.mean, self.variance.sqrt()
        except NotImplementedError:
            mean = sd = torch.full((), torch.nan, device="cpu")
        if bool(mean.isnan().any()):
            raise NotImplementedError(
                f"latent {self.site!r}: its posterior has no mean in closed form. Fix: q.sample((1000,)), or, for "
                "classes, q.distribution.probs."
            )
        names = [f"{self.site}_{i}" for i in range(mean[0].numel())]
        values = torch.cat([mean.flatten(1), sd.flatten(1)], 1).detach().cpu().numpy()
        return pandas.DataFrame(values, index=self.index, columns=[*names, *(f"{name}_sd" for name in names)])

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return self.distribution.support  # type: ignore[return-value]

    @property
    def mean(self) -> Tensor:
        return self.distribution.mean

    @property
    def variance(self) -> Tensor:
        return self.distribution.variance

    def __repr__(self) -> str:
        return f"PosteriorTable of {self.site!r}: {len(self.index)} rows, event shape {tuple(self.event_shape)}"

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> TorchDistribution:
        return self.distribution.expand(torch.Size(batch_shape))  # type: ignore[no-any-return]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.distribution.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.distribution.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.distribution.log_prob(value)
