"""Gradients of mixture draws with respect to the mixture weights, by implicit reparametrization.

Layer: distributions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_mmvae.distributions.params import unwrap

__all__ = ["follow_weights", "has_weight_velocity", "weight_velocity"]


def has_weight_velocity(components: Any) -> bool:
    """
    Whether draws from a mixture of these components can follow its weights: independent Normals or Laplaces.

    Example::

        >>> import pyro.distributions as dist
        >>> has_weight_velocity(dist.Laplace(torch.zeros(2, 3), 1.0).to_event(1)), has_weight_velocity(
        ...     dist.Gamma(torch.ones(2), 1.0))
        (True, False)
    """
    return isinstance(unwrap(components), torch.distributions.Normal | torch.distributions.Laplace)


def follow_weights(
    components: Any,  # batch_shape: (E, *batch), event_shape: event
    log_weights: Tensor,  # shape: (E, *batch)
    draws: Tensor,  # shape: (*sample, *batch, *event)
) -> Tensor:  # shape: (*sample, *batch, *event)
    r"""
    The same draws, with a gradient with respect to the weights of the mixture they come from.

    .. math:: z + \sum_c v_c \, (\log \pi_c - \mathrm{stop} \log \pi_c), \qquad v_c = \mathrm{stop}\,
        \frac{\partial z}{\partial \log \pi_c}

    with v of :func:`weight_velocity`. What the draws already follow stays: a total derivative is the sum of the partial
    ones, so draws reparametrized within their component carry the gradient of the components at fixed weights, and the
    term added here that of the weights at fixed components.
    Laws: the values are those of ``draws``, bit for bit; absent components (log-weight -inf) get exactly 0.

    Example::

        >>> import pyro.distributions as dist
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> z = follow_weights(dist.Normal(torch.tensor([-1.0, 1.0]), 1.0), logits.log_softmax(0), torch.zeros(()))
        >>> z.backward()
        >>> logits.grad  # the draw at 0 is pulled to the component whose weight grows
        tensor([-0.7053,  0.7053])

    :param components: independent Normal or Laplace features.
    :param log_weights: normalized over E, in nats; -inf for absent components.
    :param draws: draws from the mixture.
    :raises NotImplementedError: for components of another family.
    """
    velocity = weight_velocity(components, log_weights, draws.detach())
    moved = torch.where(log_weights.isneginf(), 0.0, log_weights - log_weights.detach())
    event = len(components.event_shape)
    lead = velocity.dim() - moved.dim() - event
    moved = moved.reshape(moved.shape[:1] + (1,) * lead + moved.shape[1:] + (1,) * event)
    return draws + (velocity * moved).sum(0)


@torch.no_grad()
def weight_velocity(
    components: Any,  # batch_shape: (E, *batch), event_shape: event
    log_weights: Tensor,  # shape: (E, *batch)
    value: Tensor,  # shape: (*sample, *batch, *event)
) -> Tensor:  # shape: (E, *sample, *batch, *event)
    r"""
    How a draw moves with the log-weights, :math:`\partial z / \partial \log \pi_c`, at fixed uniform noise [1, 2].

    The noise is the distributional transform of z, feature by feature:

    .. math:: F_d(z) = \sum_c \omega_{c,d} \Phi_{c,d}(z_d), \quad \omega_{c,d} \propto \pi_c \prod_{e<d} q_{c,e}(z_e)

    with :math:`\Phi_{c,d}` and :math:`q_{c,d}` distribution function and density of feature d in component c. With
    :math:`a_{c,d} = \omega_{c,d} (\Phi_{c,d} - F_d)`, which is :math:`\partial F_d / \partial \log \pi_c`,

    .. math:: v_c = -J^{-1} a_c, \quad J_{dd} = \sum_c \omega_{c,d} \, q_{c,d}, \quad
        J_{de} = \sum_c a_{c,d} \, \partial_e \log q_{c,e}(z_e) \quad (e < d)

    J being the Jacobian of F, lower triangular: one solve per draw, memory of D squared. Where the upper tail is the
    smaller one, :math:`1 - \Phi` takes the place of :math:`\Phi` (signs of a row cancel), which keeps its relative
    accuracy in single precision. Diagonal entries are bounded below by eps squared over the largest scale: between
    separate components the conditional density may underflow, but draws land there with probability of that order.
    Law: the velocities of the components sum to 0 (the weights are normalized).

    :math:`\mathbb E[v_c \cdot \nabla f]` is exact, its variance is not small: mass moves between components through
    the gap that separates them, so in one feature the second moment is :math:`\int a_c^2 / q \, dz`; of the order of
    :math:`\exp(\Delta^2 / 8)` for Normals :math:`\Delta` scales apart. Stratified terms, one draw per component with
    the weights outside, have no such factor.

    Example::

        >>> import pyro.distributions as dist
        >>> weights = torch.tensor([0.5, 0.5])
        >>> weight_velocity(dist.Normal(torch.tensor([-1.0, 1.0]), 1.0), weights.log(), torch.tensor(0.0))
        tensor([-0.7053,  0.7053])

    :param components: independent Normal or Laplace features.
    :param log_weights: normalized over E, in nats; -inf for absent components.
    :param value: draws from the mixture.
    :raises NotImplementedError: for components of another family.

    [1] *Stochastic Backpropagation through Mixture Density Distributions*, Graves, 2016, arXiv:1607.05690.

    [2] *Implicit Reparameterization Gradients*, Figurnov, Mohamed and Mnih, NeurIPS 2018, arXiv:1805.08498.
    """
    if not has_weight_velocity(components):
        raise NotImplementedError(
            f"weight_velocity: expected components of independent Normal or Laplace features, got "
            f"{type(unwrap(components)).__name__}. Fix: stratify the terms (one draw per component, weights outside)."
        )
    event = components.event_shape
    flat = value.reshape((*value.shape[: value.dim() - len(event)], event.numel()))  # (*sample, *batch, D)
    scores, slopes, lower, upper, floor = _features(components, log_weights, flat)
    weights = log_weights.reshape((*_padded(log_weights.shape, flat.dim() - log_weights.dim()), 1))
    omega = (weights + pad(scores[..., :-1].cumsum(-1), (1, 0))).softmax(0)  # (E, *sample, *batch, D)
    density = (omega * scores.exp()).sum(0).maximum(floor)
    below, above = (omega * lower).sum(0), (omega * upper).sum(0)
    ratio = omega * torch.where(below <= above, lower - below, above - upper) / density
    jacobian = torch.einsum("c...d,c...e->...de", ratio, slopes)  # rows divided by their diagonal
    velocity = torch.linalg.solve_triangular(jacobian, -ratio.movedim(0, -1), upper=False, unitriangular=True)
    return velocity.movedim(-1, 0).reshape(log_weights.shape[:1] + value.shape)


def _features(
    components: Any,
    log_weights: Tensor,  # shape: (E, *batch)
    value: Tensor,  # shape: (*sample, *batch, D)
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # four of shape (E, *sample, *batch, D), last (*sample, *batch, D)
    """
    Of each feature in each component: log-density, its slope, both tails; and the least density divided by.

    Absent components hold zeros, so that nothing of theirs, however extreme, meets a weight of 0.
    """
    base = unwrap(components)
    shape = _padded(log_weights.shape, value.dim() - log_weights.dim())
    loc, scale = (p.reshape((*shape, value.shape[-1])) for p in (base.loc, base.scale))
    absent = log_weights.isneginf().reshape((*shape, 1))
    u = torch.where(absent, 0.0, (value - loc) / scale)
    if isinstance(base, torch.distributions.Normal):
        scores, slopes = -0.5 * u.square() - 0.5 * math.log(2 * math.pi), -u
        lower, upper = (0.5 * torch.erfc(x * math.sqrt(0.5)) for x in (-u, u))
    else:
        scores, slopes = -u.abs() - math.log(2), -u.sign()
        tail = scores.exp()
        lower, upper = (torch.where(inside, tail, 1 - tail) for inside in (u <= 0, u > 0))
    scores = torch.where(absent, 0.0, scores - scale.log())
    floor = torch.finfo(value.dtype).eps ** 2 / scale.masked_fill(absent, 0.0).amax(0)
    return scores, slopes / scale, lower, upper, floor


def _padded(
    shape: torch.Size,  # (E, *batch)
    new: int,
) -> tuple[int, ...]:  # (E, *ones, *batch)
    return (*shape[:1], *(1,) * new, *shape[1:])
