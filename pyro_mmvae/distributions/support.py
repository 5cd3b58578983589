"""What a distribution's support says: an in-support constant, and which observed values lie outside.

Layer: distributions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

__all__ = ["base_support", "bounds", "fill_value", "outside"]


#: Constraints around that of a single feature; torch has the second one since 2.7.
_WRAPPERS = tuple(
    c for c in (constraints.independent, getattr(constraints, "MixtureSameFamilyConstraint", None)) if c is not None
)


def base_support(support: Constraint) -> Constraint:
    """The support of a single feature: the wrappers of ``Independent`` and of mixtures removed."""
    while isinstance(support, _WRAPPERS):
        support = support.base_constraint
    return support


def bounds(support: Constraint) -> list[Tensor]:
    """The bounds of a support that are tensors: parameters of a distribution rather than constants."""
    base = base_support(support)
    found = [getattr(base, name, None) for name in ("lower_bound", "upper_bound")]
    return [b for b in found if isinstance(b, Tensor)]


def fill_value(
    support: Constraint,
    event_shape: torch.Size,
) -> Tensor:  # shape: broadcastable to event_shape
    """
    A constant inside the support, for entries that nobody observed.

    Example::

        >>> fill_value(constraints.positive, torch.Size([3]))
        tensor(1.)

    :raises NotImplementedError: for a support without a known constant.
    """
    base = base_support(support)
    own = getattr(base, "inside", None)
    if isinstance(own, Tensor):
        return own
    if base in (constraints.real, constraints.boolean, constraints.nonnegative_integer, constraints.real_vector):
        return torch.tensor(0.0, device="cpu")
    if base in (constraints.positive, constraints.nonnegative, constraints.positive_integer):
        return torch.tensor(1.0, device="cpu")
    if base is constraints.one_hot:
        value = torch.zeros(event_shape[-1:], device="cpu")
        value[0] = 1.0
        return value
    if base is constraints.simplex:
        return torch.full(event_shape[-1:], 1.0 / event_shape[-1], device="cpu")
    if isinstance(base, type(constraints.multinomial(1))):
        value = torch.zeros(event_shape[-1:], device="cpu")
        value[0] = torch.as_tensor(base.upper_bound).max()  # all trials in the first class
        return value
    if hasattr(base, "lower_bound") and hasattr(base, "upper_bound"):
        low, high = torch.as_tensor(base.lower_bound), torch.as_tensor(base.upper_bound)
        return low.max().to(torch.get_default_dtype()) if base.is_discrete else (low.max() + high.min()) / 2
    if hasattr(base, "lower_bound"):
        low = torch.as_tensor(base.lower_bound).max()
        return low.to(torch.get_default_dtype()) + (0.0 if base.is_discrete else 1.0)
    if hasattr(base, "upper_bound"):
        return torch.as_tensor(base.upper_bound).min().to(torch.get_default_dtype()) - 1.0
    value = torch.zeros(event_shape, device="cpu")
    if bool(torch.as_tensor(support.check(value)).all()):
        return value
    raise NotImplementedError(
        f"No constant inside the support {support} is known. Fix: give the distribution a support from "
        "torch.distributions.constraints that contains 0."
    )


def outside(
    support: Constraint,
    value: Tensor,  # shape: (B, *event), filled
) -> Tensor | None:  # shape: (B,), bool
    """Rows with an entry outside the support; None where the support depends on the sample and cannot be read here."""
    base = base_support(support)
    for bound in bounds(support):
        if bound.shape[: max(bound.dim() - value.dim() + 1, 0)].numel() > 1:
            return None
    if base is constraints.real or base is constraints.real_vector:
        return None
    good = torch.as_tensor(base.check(value), device=value.device)
    return ~good.reshape(value.shape[0], -1).all(-1)
