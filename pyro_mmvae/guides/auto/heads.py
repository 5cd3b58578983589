"""The head of one latent: from what it sees, and what the Gaussian factors say, to its posterior.

Layer: guides.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mmvae.distributions import Mixture
from pyro_mmvae.guides.auto.coordinates import Coordinates
from pyro_mmvae.guides.auto.factors import lower_root
from pyro_mmvae.guides.auto.shaped import Bend, Mapped, ShapedNormal, apply_root

__all__ = ["Head"]

_LOG_SCALE = 5.0  # how far the logarithm of a scale can be moved
_SKEW = 2.0
_LOG_TAIL = 0.8
_FAR = 8.0  # inputs beyond are cut


class Head(nn.Module):
    r"""
    A Normal, or a flow, around what the Gaussian factors say.

    .. math:: y = c + S (\delta + R\, g(e)), \qquad z = T(\mu_0 + S_0 y)

    with c and S of the factors' conditional, and the shift :math:`\delta`, the root R and the bends g functions of the
    inputs, at first 0, I and the identity.

    :param inputs: width of what it sees.
    :param size: D of the latent in unconstrained space.
    :param hidden: width of its hidden layer.
    :param flow: number of bends; mixtures have none.
    :param components: of the prior, where summed-out latents make it a mixture; 0: it is none.
    :param diagonal: no correlations.
    """

    def __init__(
        self, inputs: int, size: int, hidden: int, *, flow: int, components: int = 0, diagonal: bool = False
    ) -> None:
        super().__init__()
        flow = 0 if components else flow
        self.size, self.flow, self.components, self.diagonal = size, flow, components, diagonal
        self.root_size = size if diagonal else size * (size + 1) // 2
        self.sizes = [size, self.root_size * max(flow, 1), 2 * size * flow]
        self.sizes += [components, components * size, components * size] if components else []
        self.net = nn.Sequential(nn.Linear(inputs + 2 * size, hidden), nn.SiLU(), nn.Linear(hidden, sum(self.sizes)))
        last: Any = self.net[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        places = torch.tril_indices(size, size)
        self.register_buffer("places", places[0] * size + places[1], persistent=False)

    def forward(
        self,
        seen: Tensor,  # shape: (*batch, inputs)
        loc: Tensor,  # shape: (*batch, D), c
        root: Tensor,  # shape: (*batch, D, D) or (*batch, D), S
        coordinates: Coordinates,
        prior: Any,
    ) -> Any:  # batch_shape: batch, event_shape: that of the prior
        """The posterior."""
        spread = root if self.diagonal else root.diagonal(dim1=-2, dim2=-1)
        parts = torch.broadcast_tensors(seen[..., :1], loc[..., :1], spread[..., :1])
        shape = parts[0].shape[:-1]
        known = [loc.clamp(-_FAR, _FAR), spread.log()]
        h = torch.cat([x.expand((*shape, x.shape[-1])) for x in (seen, *known)], -1)
        shift, roots, bends, *mixed = self.net(h).split(self.sizes, -1)
        own = [self._root(r) for r in roots.split(self.root_size, -1)]
        made = [Bend(*_bounded(b)) for b in bends.split(2 * self.size, -1)] if self.flow else []
        base = None
        if mixed and isinstance(prior, Mixture):
            loc, root, base = self._mixture(loc, root, coordinates, prior, mixed)
        loc = loc + apply_root(root, shift, self.diagonal)
        root = self._product(root, own[-1])
        loc, root = self._outside(loc, root, coordinates)
        options: Any = {"shape": coordinates.shape, "diagonal": self.diagonal}
        q = ShapedNormal(loc, root, bends=made, inner=own[:-1], base=base, **options)
        return q if coordinates.transform is None else Mapped(q, coordinates.transform)

    def _root(self, raw: Tensor) -> Tensor:
        if self.diagonal:
            return (_LOG_SCALE * (raw / _LOG_SCALE).tanh()).exp()
        flat = raw.new_zeros((*raw.shape[:-1], self.size**2))
        lower = flat.index_copy(-1, self.places, raw).unflatten(-1, (self.size, self.size))  # type: ignore[arg-type]
        diagonal = lower.diagonal(dim1=-2, dim2=-1)
        return lower.tril(-1) + (_LOG_SCALE * (diagonal / _LOG_SCALE).tanh()).exp().diag_embed()

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        return left * right if self.diagonal else left @ right

    def _outside(self, loc: Tensor, root: Tensor, coordinates: Coordinates) -> tuple[Tensor, Tensor]:
        """From y to u."""
        scale = coordinates.scale
        if coordinates.matrix:
            return coordinates.loc + apply_root(scale, loc, False), scale @ root
        return coordinates.loc + scale * loc, (scale if self.diagonal else scale.unsqueeze(-1)) * root

    def _mixture(
        self, loc: Tensor, root: Tensor, coordinates: Coordinates, prior: Mixture, mixed: list[Tensor]
    ) -> tuple[Tensor, Tensor, Any]:
        r"""
        The factors' likelihood of y times each component of the prior.

        All share one root, that of the average precision, in whose coordinates each is a diagonal Normal.
        """
        logits, shifts, scales = mixed
        full = (*prior.components.batch_shape, self.size)
        lead = (1,) * (logits.dim() - len(full) + 1)  # dimensions that only the posterior has
        own = (1,) * (len(full) - 1 - logits.dim())  # and those that only the prior has
        m, v = (
            p.expand(prior.components.batch_shape + prior.event_shape).reshape((full[0], *lead, *full[1:]))
            for p in (prior.components.mean, prior.components.variance)
        )
        m, v = (m - coordinates.loc) / coordinates.scale, v / coordinates.scale.square()  # shape: (E, *batch, D)
        weights = prior.log_weights.reshape((full[0], *lead, *full[1:-1]))
        inverse = 1 / v
        if self.diagonal:
            likelihood, natural = root.square().reciprocal() - 1, loc / root.square()
            precision = likelihood + inverse
            center = (natural + m * inverse) / precision
            common = precision.mean(0).rsqrt()
            width, log_det = precision.rsqrt() / common, precision.log().sum(-1)
            local = center / common
        else:
            eye = torch.eye(self.size, dtype=root.dtype, device=root.device)
            back = torch.linalg.solve_triangular(root, eye, upper=False)
            whole = back.mT @ back  # the precision with the prior N(0, I)
            natural = (whole @ loc.unsqueeze(-1)).squeeze(-1)
            precision = whole - eye + inverse.diag_embed()
            lower = torch.linalg.cholesky(precision)
            center = torch.cholesky_solve((natural + m * inverse).unsqueeze(-1), lower).squeeze(-1)
            common = lower_root(precision.mean(0))
            inside = common.mT @ precision @ common
            width = inside.diagonal(dim1=-2, dim2=-1).rsqrt()
            log_det = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            shape = torch.broadcast_shapes(common.shape[:-2], center.shape[:-1])
            column, wide = center.unsqueeze(-1).expand((*shape, self.size, 1)), common.expand(shape + common.shape[-2:])
            local = torch.linalg.solve_triangular(wide, column, upper=False).squeeze(-1)
        evidence = ((natural + m * inverse) * center).sum(-1) - (m.square() * inverse + v.log()).sum(-1) - log_det
        logits = logits.reshape((*own, *logits.shape))
        log_weights = weights + 0.5 * evidence + logits.movedim(-1, 0)
        move, stretch = (
            x.reshape((*own, *x.shape[:-1], self.components, self.size)).movedim(-2, 0) for x in (shifts, scales)
        )
        stretch = (_LOG_SCALE * (stretch / _LOG_SCALE).tanh()).exp()
        local, width = torch.broadcast_tensors(local + width * move, width * stretch)
        components = dist.Normal(local, width).to_event(1)
        return torch.zeros_like(loc), common, Mixture(components, log_weights.log_softmax(0))


def _bounded(raw: Tensor) -> tuple[Tensor, Tensor]:
    skew, tail = raw.chunk(2, -1)
    return _SKEW * (skew / _SKEW).tanh(), (_LOG_TAIL * (tail / _LOG_TAIL).tanh()).exp()
