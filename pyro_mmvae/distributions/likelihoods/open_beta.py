"""The Beta distribution on the open interval.

Layer: distributions.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import SigmoidTransform, Transform

__all__ = ["OpenBeta", "open_unit_interval"]


class _OpenUnitInterval(constraints.Constraint):
    """Strictly between 0 and 1."""

    lower_bound = 0.0
    upper_bound = 1.0

    def check(self, value: Tensor) -> Tensor:
        return (value > self.lower_bound) & (value < self.upper_bound)


open_unit_interval = _OpenUnitInterval()


@biject_to.register(_OpenUnitInterval)
@transform_to.register(_OpenUnitInterval)
def _open_unit_transform(constraint: constraints.Constraint) -> Transform:
    return SigmoidTransform()


class OpenBeta(dist.Beta):
    """
    ``Beta(concentration1, concentration0)`` whose support is open, so that validation refuses 0 and 1.

    The density at 0 and 1 is 0 or infinite; draws that round to them are moved to the nearest inner value.

    Example::

        >>> OpenBeta(torch.ones(2), torch.ones(2)).log_prob(torch.tensor([0.2, 0.8]))
        tensor([0., 0.])
    """

    support = open_unit_interval  # type: ignore[assignment]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        draw = super().rsample(torch.Size(sample_shape))
        eps = torch.finfo(draw.dtype).eps
        return draw.clamp(eps, 1 - eps)
