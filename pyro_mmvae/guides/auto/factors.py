"""Gaussian factors: each observed channel multiplies one into the posterior of all latents together.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Conditional", "GaussianFactors", "conditionals", "lower_root"]

_GAIN = 5.0  # weights are stored smaller, so that an optimizer of unit steps moves them faster
_LARGEST = 3.0  # of the logarithm of a channel's own weight
_NOISE = 0.05  # least residual standard deviation of a channel, in its own units
_RIDGE = 1e-3


class Conditional:
    r"""
    :math:`N(y_l;\; c + K y_{<l},\; S S^\top)`, one latent given those before it.

    :ivar offset: c, shape ``(*batch, D)``.
    :ivar slope: K, shape ``(*batch, D, D_before)``; None: zero.
    :ivar root: S, lower triangular, shape ``(*batch, D, D)``, or its diagonal, ``(*batch, D)``.
    """

    def __init__(self, offset: Tensor, slope: Tensor | None, root: Tensor) -> None:
        self.offset, self.slope, self.root = offset, slope, root

    def loc(self, before: Sequence[Tensor]) -> Tensor:  # each shape: (*batch, D_k); shape: (*batch, D)
        """The mean, given the values before."""
        if not before or self.slope is None:
            return self.offset
        shape = torch.broadcast_shapes(*(y.shape[:-1] for y in before))
        y = torch.cat([y.expand((*shape, y.shape[-1])) for y in before], -1)
        return self.offset + (self.slope @ y.unsqueeze(-1)).squeeze(-1)


class GaussianFactors(nn.Module):
    r"""
    The posterior precision and its product with the mean, in coordinates where the prior of all latents is N(0, I):

    .. math:: P = I + \sum_c w_c \, a_c a_c^\top, \qquad \eta = \sum_c w_c \, (f_c + G_c k + g_c) \, b_c, \qquad
        w_c = 1_{c \in S} \, e^{h_c f_c}

    over channels c with values :math:`f_c`; k is the context (covariates and global latents). Exact, for every
    mask, for a linear-Gaussian story; :meth:`regress` finds the numbers from draws of the story.

    :param loads: bool ``(C, D)``, which channels speak of which latent coordinates: the others stay zero.
    :param context: width of k.
    :param diagonal: P without what is off its diagonal, for wide latents.
    """

    loads: Tensor

    def __init__(self, loads: Tensor, context: int, *, diagonal: bool = False) -> None:
        super().__init__()
        self.diagonal = diagonal
        count, size = loads.shape
        self.register_buffer("loads", loads, persistent=False)
        start = torch.where(loads, 0.1 * torch.randn(count, size), 0.0) / _GAIN
        self.precision = nn.Parameter(start)
        self.weight = nn.Parameter(start.clone())
        self.shift = nn.Parameter(torch.zeros(count))
        self.by_context = nn.Parameter(torch.zeros(count, context)) if context else None
        self.own = nn.Parameter(torch.zeros(count))

    @torch.no_grad()
    def regress(
        self,
        y: Tensor,  # shape: (N, D)
        f: Tensor,  # shape: (N, C)
        context: Tensor,  # shape: (N, K)
    ) -> None:
        """Least squares of each channel on the coordinates and the context: the story seen as linear-Gaussian."""
        y, f, context = y.double(), f.double(), context.double()
        left = torch.cat([torch.ones_like(f[:, :1]), context], -1)
        patterns, which = self.loads.unique(dim=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            own = (which == i).nonzero().squeeze(-1)
            x = torch.cat([left, y[:, pattern]], -1)
            gram = x.T @ x + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
            found = torch.linalg.solve(gram, x.T @ f[:, own])  # shape: (1 + K + D', C')
            noise = (f[:, own] - x @ found).std(0).clamp(min=_NOISE)
            slope = torch.zeros(len(own), y.shape[1], dtype=y.dtype, device=y.device)
            slope[:, pattern] = found[left.shape[1] :].T / noise.unsqueeze(-1)
            self.precision[own] = (slope / _GAIN).to(self.precision)
            self.weight[own] = (slope / noise.unsqueeze(-1) / _GAIN).to(self.weight)
            self.shift[own] = -found[0].to(self.shift)
            if self.by_context is not None:
                self.by_context[own] = -found[1 : left.shape[1]].T.to(self.by_context)

    def forward(
        self,
        f: Tensor,  # shape: (B, C), zero where not observed
        mask: Tensor,  # shape: (*lead, B, C), bool
        context: Tensor | None,  # shape: (*lead, B, K)
    ) -> tuple[Tensor, Tensor]:  # shapes: (*lead, B, D, D), or (*lead, B, D) if diagonal; (*lead, B, D)
        a = torch.where(self.loads, _GAIN * self.precision, 0.0)
        b = torch.where(self.loads, _GAIN * self.weight, 0.0)
        weight = torch.where(mask, (_LARGEST * torch.tanh(self.own * f / _LARGEST)).exp(), 0.0)
        residual = f + self.shift
        if context is not None and self.by_context is not None:
            residual = residual + context @ self.by_context.T
        natural = (weight * residual) @ b
        if self.diagonal:
            return 1 + weight @ a.square(), natural
        size = a.shape[-1]
        outer = (a.unsqueeze(-1) * a.unsqueeze(-2)).flatten(-2)
        own = (weight @ outer).unflatten(-1, (size, size))
        return own + torch.eye(size, dtype=a.dtype, device=a.device), natural


def lower_root(precision: Tensor) -> Tensor:  # shapes: (*batch, D, D)
    r"""
    The lower triangular S with :math:`S S^\top = P^{-1}`.

    Example::

        >>> lower_root(torch.tensor([[4.0]]))
        tensor([[0.5000]])
    """
    upper = torch.linalg.cholesky(precision.flip(-1, -2)).flip(-1, -2)  # P = U U^T
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return torch.linalg.solve_triangular(upper.mT, eye, upper=False)


def conditionals(
    precision: Tensor,  # shape: (*batch, D, D), or its diagonal
    natural: Tensor,  # shape: (*batch, D), precision times mean
    sizes: Sequence[int],
    *,
    diagonal: bool = False,
) -> list[Conditional]:
    r"""
    A joint Gaussian as a chain :math:`q(y_1) q(y_2 \mid y_1) \dots`, by eliminating blocks from the last.

    Each factor involves only what its own block is connected to, bit by bit: zeros of the precision stay zeros.

    Example::

        >>> last = conditionals(torch.tensor([[2.0, -1.0], [-1.0, 1.0]]), torch.zeros(2), [1, 1])[1]
        >>> last.loc([torch.tensor([3.0])])
        tensor([3.])
    """
    if diagonal:
        blocks = zip(precision.split(list(sizes), -1), natural.split(list(sizes), -1), strict=True)
        return [Conditional(n / p, None, p.rsqrt()) for p, n in blocks]
    out: list[Conditional] = []
    end = sum(sizes)
    for size in reversed(sizes):
        start = end - size
        root = lower_root(precision[..., start:, start:])
        cross = precision[..., start:, :start]
        slope = root @ (root.mT @ cross)
        offset = (root @ (root.mT @ natural[..., start:].unsqueeze(-1))).squeeze(-1)
        out.append(Conditional(offset, -slope, root))
        precision = precision[..., :start, :start] - cross.mT @ slope
        natural = natural[..., :start] - (cross.mT @ offset.unsqueeze(-1)).squeeze(-1)
        end = start
    return out[::-1]
