"""Normal distributions with a full covariance, bent by invertible layers, over a latent of any shape.

Layer: guides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint, independent, real

from pyro_mmvae.distributions import map_params

__all__ = ["Bend", "Mapped", "ShapedNormal", "apply_root"]

_NODES = 40  # of the quadrature behind the moments
_POINTS = 1024  # of that behind moments of mapped distributions
_LARGEST = 60.0  # of what a hyperbolic sine is taken of: float32 ends at 88
_LOG_2 = math.log(2.0)


def apply_root(root: Tensor, x: Tensor, diagonal: bool) -> Tensor:  # shape: (*batch, D)
    """A lower triangular matrix ``(*batch, D, D)``, or a diagonal ``(*batch, D)``, times a vector."""
    return root * x if diagonal else (root @ x.unsqueeze(-1)).squeeze(-1)


@dataclass
class Bend:
    r"""
    The sinh-arcsinh map [1], entry by entry: :math:`y = \sinh(t \, (\mathrm{arcsinh}(e) + s))`.

    :ivar skew: s; 0 is symmetric.
    :ivar tail: t, positive; 1 with s = 0 is the identity.

    [1] *Sinh-arcsinh distributions*, Jones and Pewsey, Biometrika 2009, eq. (2).
    """

    skew: Tensor  # shape: (*batch, D)
    tail: Tensor  # shape: (*batch, D)

    def __call__(self, e: Tensor) -> Tensor:
        return (self.tail * (e.asinh() + self.skew)).clamp(-_LARGEST, _LARGEST).sinh()

    def inverse(self, y: Tensor) -> Tensor:
        """e from y."""
        return (y.asinh() / self.tail - self.skew).clamp(-_LARGEST, _LARGEST).sinh()

    def log_slope(self, e: Tensor) -> Tensor:
        """Logarithm of the derivative at e."""
        inner = (self.tail * (e.asinh() + self.skew)).abs()
        log_cosh = inner + (-2 * inner).exp().log1p() - _LOG_2
        return self.tail.log() + log_cosh - 0.5 * e.square().log1p()


class ShapedNormal(TorchDistribution):
    r"""
    .. math:: u = \mu + S\, g_K(S_{K-1} g_{K-1}(\dots g_1(e))), \qquad e \sim N(0, I)

    with S lower triangular and :math:`g_k` of :class:`Bend`; the vector u is given the event's shape. Without bends it
    is a Normal with covariance :math:`S S^\top`. A draw is scored without an inverse.

    Example::

        >>> q = ShapedNormal(torch.tensor([[1.0, 2.0]]), torch.eye(2).unsqueeze(0))
        >>> q.batch_shape, q.event_shape, q.mean.tolist()
        (torch.Size([1]), torch.Size([2]), [[1.0, 2.0]])

    :param loc: ``(*batch, D)``.
    :param root: S, ``(*batch, D, D)``, or its diagonal, ``(*batch, D)``.
    :param bends: first to last.
    :param inner: the roots between bends, one fewer.
    :param base: of e, with batch shape ``batch``; None: standard normal.
    :param shape: event shape, D numbers; None: ``(D,)``.
    :param diagonal: which of the two forms roots have.
    """

    arg_constraints: dict[str, Constraint] = {}
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        root: Tensor,
        *,
        bends: Sequence[Bend] = (),
        inner: Sequence[Tensor] = (),
        base: Any = None,
        shape: torch.Size | None = None,
        diagonal: bool = False,
    ) -> None:
        k = 1 if diagonal else 2
        parts = [loc.shape[:-1], root.shape[:-k], *(b.skew.shape[:-1] for b in bends)]
        batch = torch.broadcast_shapes(*parts, *(() if base is None else (base.batch_shape,)))
        self.loc, self.root, self.bends, self.inner, self.base = loc, root, tuple(bends), tuple(inner), base
        self.diagonal = diagonal
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(batch, loc.shape[-1:] if shape is None else shape, validate_args=False)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        dims = len(self.event_shape)
        return independent(real, dims) if dims else real

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ShapedNormal:
        shape = torch.Size(batch_shape)
        base = None if self.base is None else self.base.expand(shape)
        loc = self.loc.expand((*shape, self.loc.shape[-1]))
        return self._like(loc, self.root, self.bends, self.inner, base)

    def map_params(self, f: Callable[[Tensor, Any, int], Tensor], event_dim: int) -> ShapedNormal:
        """The same with ``f`` applied to every parameter, see :func:`pyro_mmvae.distributions.map_params`."""

        def mapped(p: Tensor, own: int) -> Tensor:
            full = p.expand(self.batch_shape + p.shape[p.dim() - own :])
            return f(full, None, event_dim + own)

        k = 1 if self.diagonal else 2
        bends = [Bend(mapped(b.skew, 1), mapped(b.tail, 1)) for b in self.bends]
        base = None if self.base is None else map_params(self.base, f, event_dim)
        return self._like(mapped(self.loc, 1), mapped(self.root, k), bends, [mapped(r, k) for r in self.inner], base)

    def _like(self, loc: Tensor, root: Tensor, bends: Any, inner: Any, base: Any) -> ShapedNormal:
        options: Any = {"shape": self.event_shape, "diagonal": self.diagonal}
        return ShapedNormal(loc, root, bends=bends, inner=inner, base=base, **options)

    def _forward(self, e: Tensor) -> tuple[Tensor, Tensor]:  # shapes: (*batch, D), batch
        """u, and the logarithm of the volume change."""
        volume = self._log_volume(self.root)
        for i, bend in enumerate(self.bends):
            volume = volume + bend.log_slope(e).sum(-1)
            e = bend(e)
            if i < len(self.inner):
                volume = volume + self._log_volume(self.inner[i])
                e = apply_root(self.inner[i], e, self.diagonal)
        return self.loc + apply_root(self.root, e, self.diagonal), volume

    def _backward(self, u: Tensor) -> tuple[Tensor, Tensor]:  # shapes: (*batch, D), batch
        """e, and the logarithm of the volume change from it to u."""
        e, volume = self._solve(self.root, u - self.loc), self._log_volume(self.root)
        for i in reversed(range(len(self.bends))):
            if i < len(self.inner):
                volume = volume + self._log_volume(self.inner[i])
                e = self._solve(self.inner[i], e)
            e = self.bends[i].inverse(e)
            volume = volume + self.bends[i].log_slope(e).sum(-1)
        return e, volume

    def _log_volume(self, root: Tensor) -> Tensor:
        diagonal = root if self.diagonal else root.diagonal(dim1=-2, dim2=-1)
        return diagonal.log().sum(-1)

    def _solve(self, root: Tensor, x: Tensor) -> Tensor:
        if self.diagonal:
            return x / root
        shape = torch.broadcast_shapes(root.shape[:-2], x.shape[:-1])
        root = root.expand(shape + root.shape[-2:])
        x = x.expand(shape + x.shape[-1:])
        return torch.linalg.solve_triangular(root, x.unsqueeze(-1), upper=False).squeeze(-1)

    def _score(self, e: Tensor) -> Tensor:  # shape: batch
        if self.base is not None:
            return self.base.log_prob(e)
        return -0.5 * (e.square() + math.log(2 * math.pi)).sum(-1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        if self.base is not None:
            e = self.base.rsample(shape)
        else:
            e = torch.randn(
                shape + self.batch_shape + self.loc.shape[-1:], dtype=self.loc.dtype, device=self.loc.device
            )
        u, volume = self._forward(e)
        value = u.reshape(u.shape[:-1] + self.event_shape)
        self._drawn = value, self._score(e) - volume
        return value

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._drawn is not None and self._drawn[0] is value:
            return self._drawn[1]
        flat = value.reshape(value.shape[: value.dim() - len(self.event_shape)] + self.loc.shape[-1:])
        e, volume = self._backward(flat)
        return self._score(e) - volume

    @property
    def mean(self) -> Tensor:
        u = self.loc + apply_root(self.root, self._moments()[0], self.diagonal)
        return u.expand(self.batch_shape + u.shape[-1:]).reshape(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        own, square = self._moments()[1], self.root.square()
        if self.diagonal:
            u = square * own.diagonal(dim1=-2, dim2=-1) if own.dim() > self.loc.dim() else square * own
        elif own.dim() > self.loc.dim():
            u = (self.root @ own @ self.root.mT).diagonal(dim1=-2, dim2=-1)
        else:
            u = (square @ own.unsqueeze(-1)).squeeze(-1)
        return u.expand(self.batch_shape + u.shape[-1:]).reshape(self._extended_shape())

    def _moments(self) -> tuple[Tensor, Tensor]:  # shapes: (*batch, D), (*batch, D) or (*batch, D, D)
        """Mean and variances, or covariance, of what the root multiplies."""
        if self.base is not None and self.bends:
            raise NotImplementedError("The moments of a bent mixture have no closed form. Fix: q.sample((1000,)).")
        if self.base is not None:
            weights = self.base.log_weights.exp().unsqueeze(-1)
            m, v = self.base.components.mean, self.base.components.variance
            mean = (weights * m).sum(0)
            outer = (weights.unsqueeze(-1) * (v.diag_embed() + m.unsqueeze(-1) * m.unsqueeze(-2))).sum(0)
            return mean, outer - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        if not self.bends:
            return torch.zeros_like(self.loc), torch.ones_like(self.loc)
        if self.inner:
            raise NotImplementedError("The moments of several bends have no closed form. Fix: q.sample((1000,)).")
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        e = self.loc.new_tensor(nodes).reshape(-1, *(1,) * self.bends[0].skew.dim())
        w = self.loc.new_tensor(weights / weights.sum()).reshape(e.shape)
        y = self.bends[0](e)
        mean = (w * y).sum(0)
        return mean, (w * (y - mean).square()).sum(0)

    def spread_out(self, count: int) -> Tensor:  # shape: (count, *batch, *event)
        """
        Values at quasi-random points of e, the same at every call: their means are expectations, nearly.

        :raises NotImplementedError: for a mixture.
        """
        if self.base is not None:
            raise NotImplementedError("The moments of a mapped mixture have no closed form. Fix: q.sample((1000,)).")
        with torch.device("cpu"):
            engine = torch.quasirandom.SobolEngine(self.loc.shape[-1], scramble=True, seed=0)
            points = engine.draw(count, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        e = (math.sqrt(2.0) * torch.erfinv(2 * points - 1)).to(self.loc)
        u, _ = self._forward(e.reshape((count, *(1,) * len(self.batch_shape), e.shape[-1])))
        u = u.expand((count, *self.batch_shape, u.shape[-1]))
        return u.reshape((count, *self._extended_shape()))


class Mapped(TransformedDistribution):
    """
    A :class:`ShapedNormal` mapped to the support of a latent; mean and variance by quasi-Monte Carlo, 1,024 points.

    Example::

        >>> u = ShapedNormal(torch.zeros(3, 1), torch.full((3, 1, 1), 0.5), shape=torch.Size())
        >>> Mapped(u, torch.distributions.ExpTransform()).mean  # exp(1 / 8) = 1.133
        tensor([1.13..., 1.13..., 1.13...])

    :param base: in unconstrained space.
    :param transform: of its events.
    """

    base_dist: Any
    transforms: Any

    def __init__(self, base: Any, transform: Any) -> None:
        super().__init__(base, [transform])

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Mapped:
        return Mapped(self.base_dist.expand(torch.Size(batch_shape)), self.transforms[0])

    def map_params(self, f: Callable[[Tensor, Any, int], Tensor], event_dim: int) -> Mapped:
        """The same with ``f`` applied to every parameter, see :func:`pyro_mmvae.distributions.map_params`."""
        return Mapped(map_params(self.base_dist, f, event_dim), self.transforms[0])

    @property
    def mean(self) -> Tensor:
        return self.transforms[0](self.base_dist.spread_out(_POINTS)).mean(0)

    @property
    def variance(self) -> Tensor:
        return self.transforms[0](self.base_dist.spread_out(_POINTS)).var(0)
