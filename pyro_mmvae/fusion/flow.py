"""Any fusion rule followed by a normalizing flow.

Layer: fusion.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pyro.distributions import TorchDistribution, TransformModule
from pyro.distributions.transforms import Permute
from torch import Tensor, nn
from torch.distributions.constraints import Constraint, independent, real
from torch.distributions.transforms import Transform

from pyro_mmvae.distributions import map_params
from pyro_mmvae.fusion.experts import Experts, Fusion
from pyro_mmvae.masks import Data, ObsMask
from pyro_mmvae.nn import Configurable

__all__ = ["Flow", "FlowPosterior", "Reorder"]


class Flow(Configurable, Fusion):
    r"""
    A rule whose fused posterior is sent through learned bijections, the same for all subsets.

    .. math:: z = T(u), \quad u \sim q_0(u \mid x_S), \qquad
        \log q(z \mid x_S) = \log q_0(T^{-1}(z) \mid x_S) - \log \bigl| \det \partial T / \partial u \bigr|

    with q_0 the posterior of ``rule``, mixture or not. Samples that observe nothing keep the rule's posterior, which is
    the prior. No divergence is known in closed form: objectives use densities at the draws.

    Laws: commutative if the rule is; transforms that do nothing give the rule; nothing observed gives the story's
    prior.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_mmvae.fusion import Product
        >>> flow = Flow(Product(), [dist.transforms.spline(2), dist.transforms.affine_autoregressive(2)])
        >>> experts = Experts(("a",), (dist.Normal(torch.ones(3, 2), 1.0).to_event(1),))
        >>> prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> q = flow(prior, experts, torch.tensor([[True, True, False]]))
        >>> q.log_prob(q.rsample((5,))).shape
        torch.Size([5, 3])

    :param rule: the rule that fuses, whose parameters are trained too.
    :param transforms: bijections of ``(*batch, D)`` that treat rows alone (no batch norm), as
        ``pyro.distributions.transforms`` makes them, applied in this order; a ``Permute`` becomes a :class:`Reorder`.
        Densities at values that the flow has not drawn itself (mixture densities, importance weights, q(z | x_T) as a
        prior) need the inverse: couplings and splines have a quick one, autoregressive transforms one in D passes,
        planar and radial ones none (NotImplementedError).
    :raises TypeError: if ``rule`` is no rule, or a transform is no ``TransformModule``.
    :raises ValueError: if there are no transforms, or one is not of real vectors.
    """

    def __init__(self, rule: Fusion, transforms: Sequence[TransformModule | Permute]) -> None:
        super().__init__()
        if not isinstance(rule, Fusion):
            raise TypeError(f"rule: a fusion rule expected, got {type(rule).__name__}.")
        self.rule = rule
        self.transforms = nn.ModuleList(_module(i, t) for i, t in enumerate(transforms))
        if not len(self.transforms):
            raise ValueError("transforms: at least one expected, got none. Fix: the rule alone.")
        self.takes_single_rows = rule.takes_single_rows

    @property
    def modalities(self) -> tuple[str, ...] | None:
        """Those of the rule."""
        return self.rule.modalities

    @property
    def covariates(self) -> tuple[str, ...]:
        """Those of the rule."""
        return self.rule.covariates

    @property
    def counts(self) -> Literal["observed", "inferred"] | None:
        """As the rule: where the densities of draws count in a term."""
        return self.rule.counts

    def options(self) -> Mapping[str, Any]:
        """The rule with its options, and the names of the transforms, which the parameters alone do not make."""
        rule = [type(self.rule).__name__, dict(self.rule.options())]
        return {"rule": rule, "transforms": [type(t).__name__ for t in self.transforms]}

    def features(self, data: Data, obs_mask: ObsMask) -> Any:
        return self.rule.features(data, obs_mask)

    def forward(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        return FlowPosterior(self.rule(prior, experts, mask), tuple(self.transforms), mask.any(0))

    def component(self, prior: Any, experts: Experts, mask: Tensor) -> Any:
        """The flow of the rule's component."""
        return FlowPosterior(self.rule.component(prior, experts, mask), tuple(self.transforms), mask.any(0))


class Reorder(TransformModule):
    """
    Vectors with their entries in another order, which is saved with the model.

    Example::

        >>> Reorder(torch.tensor([2, 0, 1]))(torch.tensor([5.0, 6.0, 7.0]))
        tensor([7., 5., 6.])

    :param order: permutation of 0, ..., D - 1.
    :raises ValueError: if it is none.
    """

    domain = independent(real, 1)
    codomain = independent(real, 1)
    bijective = True
    order: Tensor

    def __init__(self, order: Tensor) -> None:  # shape: (D,)
        super().__init__()
        places = order.new_ones(order.shape).cumsum(0) - 1
        if order.dim() != 1 or order.is_floating_point() or not torch.equal(order.sort().values, places):
            raise ValueError(f"order: a permutation of 0, ..., D - 1 expected, got {order.tolist()}.")
        self.register_buffer("order", order.clone())

    def _call(self, x: Tensor) -> Tensor:  # shape: (*batch, D)
        return x.index_select(-1, self.order)

    def _inverse(self, y: Tensor) -> Tensor:  # shape: (*batch, D)
        return y.index_select(-1, self.order.argsort())

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # shape: batch
        """Zero: no volume changes."""
        return x.new_zeros(x.shape[:-1])


class FlowPosterior(TorchDistribution):
    r"""
    The distribution of T(u), u from ``base``, in rows where ``condition`` is True, and of u elsewhere.

    Semantically equivalent to ``Where(condition, TransformedDistribution(base, transforms), base)``, but draws are
    scored without an inverse, while gradients are on and the parameters are those they were drawn with. Transforms
    keep nothing of a batch.

    Example::

        >>> import pyro.distributions as dist
        >>> base = dist.Normal(torch.tensor([[2.0, 3.0], [2.0, 3.0]]), 1e-9).to_event(1)
        >>> q = FlowPosterior(base, (Reorder(torch.tensor([1, 0])),), torch.tensor([True, False]))
        >>> q.sample().round().tolist()
        [[3.0, 2.0], [2.0, 3.0]]

    :param base: distribution with event shape ``(D,)``.
    :param transforms: bijections of ``(*batch, D)``, in order.
    :param condition: bool, broadcastable to the batch shape.
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(self, base: Any, transforms: Sequence[Any], condition: Tensor) -> None:
        shape = torch.broadcast_shapes(condition.shape, base.batch_shape)
        self.base, self.transforms, self.condition = base.expand(shape), tuple(transforms), condition
        self.has_rsample = bool(base.has_rsample)
        self._drawn: tuple[Tensor, Tensor, Tensor, list[Tensor]] | None = None
        super().__init__(shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return self.base.support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowPosterior:
        return FlowPosterior(self.base.expand(torch.Size(batch_shape)), self.transforms, self.condition)

    def map_params(self, f: Callable[[Tensor, Any, int], Tensor], event_dim: int) -> FlowPosterior:
        """
        The same flow with ``f`` applied to every parameter of the base and to the condition.

        Parameters of the transforms belong to no row; they follow to another device.
        """
        condition = f(self.condition.expand(self.batch_shape), None, event_dim)
        transforms = self.transforms
        if condition.device != self.condition.device:
            transforms = tuple(copy.deepcopy(t).to(condition.device) for t in transforms)
        return FlowPosterior(map_params(self.base, f, event_dim), transforms, condition)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        u = self.base.rsample(torch.Size(sample_shape))
        z, log_det = self._forward(u)
        if torch.is_grad_enabled():
            self._drawn = (z, u, log_det, self._parameters())
        return z

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self._forward(self.base.sample(torch.Size(sample_shape)))[0]

    def log_prob(self, value: Tensor) -> Tensor:
        u, log_det = self._known(value)
        return self.base.log_prob(u) - log_det

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError("The mean of a flow has no closed form. Fix: q.sample((1000,)).mean(0).")

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError("The variance of a flow has no closed form. Fix: q.sample((1000,)).var(0).")

    def _parameters(self) -> list[Tensor]:
        return [p for t in self.transforms for p in t.parameters()]

    def _known(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The base's value and the log-determinant, kept from the draw if this is it."""
        if self._drawn is not None:
            z, u, log_det, before = self._drawn
            now = self._parameters()
            if z is value and len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
                return u, log_det
        return self._backward(value)

    def _forward(self, u: Tensor) -> tuple[Tensor, Tensor]:  # shapes: (*batch, D), batch
        z, log_det = u, u.new_zeros(u.shape[:-1])
        for t in self.transforms:
            x, z = z, t(z)
            log_det = log_det + _log_det(t, x, z)
        return self._rows(z, u, log_det)

    def _backward(self, value: Tensor) -> tuple[Tensor, Tensor]:  # shapes: (*batch, D), batch
        u, log_det = value, value.new_zeros(value.shape[:-1])
        for t in reversed(self.transforms):
            y, u = u, _inverse(t, u)
            log_det = log_det + _log_det(t, u, y)
        return self._rows(u, value, log_det)

    def _rows(self, moved: Tensor, still: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(self.condition.unsqueeze(-1), moved, still), torch.where(self.condition, log_det, 0.0)


def _inverse(t: Any, y: Tensor) -> Tensor:  # shapes: (*batch, D)
    try:
        return t.inv(y)
    except (KeyError, NotImplementedError) as error:  # what transforms of Pyro and torch say that have none
        raise NotImplementedError(
            f"{type(t).__name__} has no inverse, which the density at values needs that this distribution has not just "
            "drawn. Fix: couplings, splines or affine autoregressive transforms; or objectives that score draws only."
        ) from error


def _log_det(t: Any, x: Tensor, y: Tensor) -> Tensor:  # shape: batch
    """Of a transform of vectors or of single entries; what it has kept of these values is dropped."""
    found = t.log_abs_det_jacobian(x, y)
    _forget(t)
    return found if found.dim() < x.dim() else found.sum(-1)


def _forget(t: Any) -> None:
    """Drop what transforms keep of the last batch: graphs that neither live on nor can be copied."""
    for part in t.modules():
        if not isinstance(part, Transform):
            continue
        part._cached_x_y = None, None
        for name, value in list(vars(part).items()):
            if name.startswith("_cache") and isinstance(value, Tensor):
                setattr(part, name, None)


def _module(i: int, t: Any) -> nn.Module:
    """A transform with its parameters and buffers."""
    if isinstance(t, Permute) and t.dim == -1:
        return Reorder(t.permutation)
    if not isinstance(t, TransformModule):
        raise TypeError(
            f"transforms[{i}]: a TransformModule expected, got {type(t).__name__}. Fix: one that "
            "pyro.distributions.transforms makes without a context: spline, affine_coupling, affine_autoregressive."
        )
    if t.domain.event_dim > 1 or not t.bijective:
        raise ValueError(f"transforms[{i}]: {type(t).__name__} is no bijection of vectors.")
    return t
