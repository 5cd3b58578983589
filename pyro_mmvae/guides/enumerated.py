"""Discrete latents that a guide leaves to enumeration: later latents see the marginal over their values.

Layer: guides.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.runtime import Message, get_plates
from torch import Tensor

from pyro_mmvae.distributions import Mixture, map_params

__all__ = ["Enumerated"]


class Enumerated:
    r"""
    The sites marked ``infer={"enumerate": ...}`` that a guide does not sample.

    Each takes all its values at once, at a batch dimension left of all plates. A later latent that depends on them
    gets as its prior

    .. math:: p(z_l \mid z_{<l}) = \sum_c p(c \mid z_{<l}) \, p(z_l \mid c, z_{<l})

    with p(c | z) exact, so that a guide which observes nothing is the story's prior, the discrete latents summed out.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     c = pyro.sample("c", dist.Bernoulli(0.7), infer={"enumerate": "parallel"})
        ...     z = pyro.sample("z", dist.Normal(10 * c.unsqueeze(-1), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> guide = mm.guides.Product(model, {"x": mm.nn.MLPEncoder(1, 1)})
        >>> missing = {"x": torch.tensor([False])}
        >>> trace = pyro.poutine.trace(guide).get_trace({"x": torch.zeros(1, 1)}, missing)
        >>> "c" in trace.nodes, trace.nodes["z"]["fn"].mean.detach()
        (False, tensor([[7.]]))

    :param nesting: plates of the story, ``data`` included.
    """

    def __init__(self, nesting: int) -> None:
        self.nesting = nesting
        self.dims: list[int] = []  # right to left, in the order of sampling
        self.factors: list[tuple[Tensor, frozenset[str]]] = []  # log-densities with enumeration dims, and their plates
        self._own: dict[str, Any] = {}

    def hide(self, msg: Message) -> None:
        """Give the site all its values, unseen by outer handlers."""
        fn: Any = msg["fn"]
        if not self.dims:
            self._first = min([-self.nesting, *(f.dim for f in get_plates() if f.dim is not None)]) - 1
        dim = self._first - len(self.dims)
        values = fn.enumerate_support(expand=False)
        values = values.reshape(values.shape[:1] + (1,) * (-dim - 1) + fn.event_shape)
        self.dims.append(dim)
        self.factors.append((fn.log_prob(values), _plates()))
        msg["value"] = values
        msg["done"] = msg["stop"] = True

    def prior(self, site: str, fn: Any) -> Any:
        """
        The story's distribution of a latent, enumerated sites summed out.

        :raises NotImplementedError: if it depends on discrete latents of a plate that it does not live in.
        """
        if not self.dims or len(fn.batch_shape) < -self._first:
            return fn
        self._own[site] = fn
        touched = self._connected(fn.batch_shape)
        foreign = frozenset[str]().union(*(plates for _, plates in touched)) - _plates()
        if foreign:
            raise NotImplementedError(
                f"latent {site!r} depends on enumerated latents inside the plates {sorted(foreign)}, in which it does "
                "not live. Fix: a guide of your own for this story."
            )
        log_weights = torch.stack(torch.broadcast_tensors(*(score for score, _ in touched))).sum(0)
        shape = torch.broadcast_shapes(fn.batch_shape, log_weights.shape)
        rest = shape[len(shape) + self._first + 1 :]

        def stacked(p: Tensor, constraint: Any, event_dim: int) -> Tensor:
            event = p.shape[p.dim() - event_dim :]
            return p.expand(shape + event).reshape((-1, *rest, *event))

        log_weights = log_weights.expand(shape).reshape((-1, *rest))
        return Mixture(map_params(fn, stacked), log_weights.log_softmax(0))

    def drawn(self, site: str, value: Tensor) -> None:
        """What the draw of a latent tells about the enumerated sites it depends on."""
        fn = self._own.pop(site, None)
        if fn is not None:
            self.factors.append((fn.log_prob(value), _plates()))

    def _connected(self, batch_shape: torch.Size) -> list[tuple[Tensor, frozenset[str]]]:
        """The factors that share an enumeration dimension with ``batch_shape``, directly or through each other."""
        dims, left = self._touched(batch_shape), list(self.factors)
        found: list[tuple[Tensor, frozenset[str]]] = []
        while True:
            near = [f for f in left if dims & self._touched(f[0].shape)]
            if not near:
                return found
            found += near
            left = [f for f in left if not dims & self._touched(f[0].shape)]
            dims = dims.union(*(self._touched(score.shape) for score, _ in near))

    def _touched(self, shape: torch.Size) -> set[int]:
        reached = {d for d in self.dims if -d <= len(shape)}
        wide = {d for d in reached if shape[d] > 1}
        return wide if wide else reached


def _plates() -> frozenset[str]:
    """Names of the enclosing plates."""
    return frozenset(f.name for f in get_plates())
