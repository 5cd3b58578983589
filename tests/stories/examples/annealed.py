"""Annealed importance sampling with Hamiltonian moves: a second, unbiased way to p(x_O).

Test layer: nothing of the library's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def annealed_log_weights(
    log_likelihood: Callable[[Tensor], Tensor],  # shape: (C, B, D) -> (C, B), nats
    shape: tuple[int, int, int],
    *,
    temperatures: int = 60,
    leapfrogs: int = 4,
    step: float = 0.25,
) -> Tensor:  # shape: (C, B)
    r"""
    Log-weights of C chains per row, from the standard normal to the posterior.

    .. math:: \log w = \sum_k (\beta_{k+1} - \beta_k) \log p(x \mid t_k), \qquad E[w] = p(x)

    The mean of w is unbiased whatever the moves do, as long as each leaves its target invariant; here one
    Hamiltonian trajectory per temperature, with a Metropolis decision.

    :param shape: chains, rows, dimensions.
    """
    t = torch.randn(shape)
    log_w = torch.zeros(shape[:2])
    betas = torch.linspace(0, 1, temperatures + 1) ** 3  # denser near the prior
    for low, high in pairwise(betas):
        with torch.no_grad():
            log_w = log_w + (high - low) * log_likelihood(t)
        t = _move(log_likelihood, t, float(high), leapfrogs, step)
    return log_w


def _energy(log_likelihood: Callable[[Tensor], Tensor], t: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Minus the log-target and its gradient."""
    t = t.detach().requires_grad_()
    energy = 0.5 * t.square().sum(-1) - beta * log_likelihood(t)
    return energy.detach(), torch.autograd.grad(energy.sum(), t)[0]


def _move(
    log_likelihood: Callable[[Tensor], Tensor], t: Tensor, beta: float, leapfrogs: int, step: float
) -> Tensor:  # shape: (C, B, D)
    momentum = torch.randn_like(t)
    start, gradient = _energy(log_likelihood, t, beta)
    new, kinetic = t, 0.5 * momentum.square().sum(-1)
    for _ in range(leapfrogs):
        momentum = momentum - 0.5 * step * gradient
        new = new + step * momentum
        end, gradient = _energy(log_likelihood, new, beta)
        momentum = momentum - 0.5 * step * gradient
    log_ratio = start + kinetic - end - 0.5 * momentum.square().sum(-1)
    accepted = torch.rand_like(log_ratio).log() < log_ratio
    return torch.where(accepted.unsqueeze(-1), new, t)
