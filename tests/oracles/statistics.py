"""Comparing a Monte Carlo mean with an exact value, with figures when it fails.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def mean_and_se(draws: Tensor) -> tuple[Tensor, Tensor]:  # shapes: (N, *batch) -> (*batch), (*batch)
    """
    Mean over the first dimension and its standard error.

    Example::

        >>> mean_and_se(torch.tensor([1.0, 3.0]))
        (tensor(2.), tensor(1.))

    :raises ValueError: for fewer than two draws, which have no standard error.
    """
    if draws.shape[0] < 2:
        raise ValueError(f"expected at least 2 draws, got {draws.shape[0]}; draw more")
    return draws.mean(0), draws.std(0) / draws.shape[0] ** 0.5


def z_scores(
    mean: Tensor,  # shape: (*batch)
    se: Tensor,  # shape: (*batch), standard error
    exact: Tensor,  # shape: (*batch)
) -> Tensor:  # shape: (*batch)
    """
    (mean - exact) / se; where se is 0, 0 if equal to rounding (1e-9 relative) and infinite otherwise; NaN stays NaN.

    Example::

        >>> z_scores(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]), torch.tensor([0.0, 2.0]))
        tensor([2., 0.], dtype=torch.float64)

    :raises ValueError: if the shapes differ (broadcasting would hide a missing dimension).
    """
    mean, se, exact = (torch.as_tensor(t).detach().double() for t in (mean, se, exact))
    if not mean.shape == se.shape == exact.shape:
        raise ValueError(f"expected equal shapes, got {mean.shape}, {se.shape}, {exact.shape}")
    delta = mean - exact
    certain = torch.where(delta.abs() <= 1e-9 * (1 + exact.abs()), 0.0, delta.sign() * torch.inf)
    return torch.where(se == 0, certain, delta / torch.where(se == 0, 1.0, se))


def within(
    mean: Tensor,  # shape: (*batch)
    se: Tensor,  # shape: (*batch), standard error
    exact: Tensor,  # shape: (*batch)
    sigmas: float = 4.0,
    *,
    resolution: float | None = None,
    label: str = "",
) -> None:
    """
    Fails unless every mean lies within ``sigmas`` standard errors of the exact value. NaN fails.

    Example::

        >>> within(torch.tensor(1.0), torch.tensor(0.1), torch.tensor(1.2))
        >>> within(torch.tensor(1.0), torch.tensor(0.1), torch.tensor(2.0))
        Traceback (most recent call last):
        ...
        AssertionError: 1 of 1 beyond 4 standard errors; worst at (): mean 1, se 0.1, exact 2, z -10

    :param resolution: if given, ``sigmas`` standard errors must also stay below this fraction of the norm of the exact
        value, so that the comparison could have failed.
    :param label: opens the message.
    :raises AssertionError: with the worst figures.
    """
    z = z_scores(mean, se, exact)
    mean, se, exact = (torch.as_tensor(t).detach().double() for t in (mean, se, exact))
    prefix = f"{label}: " if label else ""
    bad = ~(z.abs() <= sigmas)
    if bad.any():
        badness = torch.where(z.isnan(), torch.inf, z.abs())
        worst = tuple(int(i) for i in torch.unravel_index(badness.argmax(), z.shape))
        raise AssertionError(
            f"{prefix}{int(bad.sum())} of {z.numel()} beyond {sigmas:g} standard errors; worst at {worst}: "
            f"mean {mean[worst].item():g}, se {se[worst].item():g}, exact {exact[worst].item():g}, "
            f"z {z[worst].item():.3g}"
        )
    if resolution is not None and not sigmas * se.norm() <= resolution * exact.norm():
        raise AssertionError(
            f"{prefix}{sigmas:g} standard errors are {sigmas * se.norm().item():g}, over {resolution:g} of the exact "
            f"norm {exact.norm().item():g}: the comparison could not fail; draw more"
        )


def repeat(fn: Callable[[], Tensor], n: int) -> Tensor:  # shape: (n, *batch)
    """
    ``fn()`` n times, stacked and detached.

    Example::

        >>> repeat(lambda: torch.ones(2), 3).shape
        torch.Size([3, 2])
    """
    return torch.stack([torch.as_tensor(fn()).detach() for _ in range(n)])
