"""What a guide's networks see of a modality: real channels, near standard scale, chosen from support and shape.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_mmvae.distributions import base_support

__all__ = ["Channels", "kinds_of"]

Kind = Literal["real", "log", "log1p", "logit", "sign", "classes"]

_MOST_CLASSES = 64  # more class numbers than this are looked at as counts
_TINY = 1e-6  # of a number whose logarithm is taken
_FLOOR = 1e-3  # of a scale
_FAR = 3.0  # scales off, or times too wide or narrow: then the first training batch sets a channel's scale anew

_COLUMNS: dict[str, Kind] = {
    "real": "real", "positive": "log", "count": "log1p", "binary": "sign", "category": "classes", "ordinal": "classes",
}  # fmt: skip


def kinds_of(
    support: Any,
    event_shape: Sequence[int],
    likelihood: str = "",
) -> list[tuple[Kind, int]]:
    """
    For each entry of the flattened event, how it is looked at, and its number of classes (0: it has none).

    Example::

        >>> kinds_of(constraints.independent(constraints.nonnegative_integer, 1), (2,))
        [('log1p', 0), ('log1p', 0)]
        >>> kinds_of(constraints.integer_interval(0, 3), ())
        [('classes', 4)]

    :param likelihood: name of the likelihood's class; numbers of successes are no class numbers.
    """
    base = base_support(support)
    columns = getattr(base, "columns", None)
    if columns is not None:
        return [(_COLUMNS[c.kind], len(c.levels)) for c in columns]
    return [_kind(base, likelihood)] * torch.Size(event_shape).numel()


def _kind(base: Any, likelihood: str) -> tuple[Kind, int]:
    if base in (constraints.boolean, constraints.one_hot):
        return "sign", 0
    low, high = (getattr(base, name, None) for name in ("lower_bound", "upper_bound"))
    if base.is_discrete:
        if low is None or high is None or "Binomial" in likelihood:
            return "log1p", 0
        classes = int(torch.as_tensor(high).max()) + 1
        return ("classes", classes) if classes <= _MOST_CLASSES else ("log1p", 0)
    if base is constraints.simplex or base is constraints.positive:
        return "log", 0
    if low is not None and high is not None:
        unit = float(torch.as_tensor(low).min()) == 0 and float(torch.as_tensor(high).max()) == 1
        return ("logit", 0) if unit else ("real", 0)
    if low is not None and float(torch.as_tensor(low).min()) == 0:
        return "log1p", 0
    return "real", 0


class Channels(nn.Module):
    """
    Entries ``(*batch, P)`` as channels ``(*batch, C)``: reals standardized, counts log1p, positive numbers and
    simplices log, class numbers one-hot, bits -1 and 1.

    Example::

        >>> channels = Channels([("real", 0), ("classes", 3)])
        >>> channels.fit(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([True, True]))
        >>> channels(torch.tensor([[3.0, 2.0]]))
        tensor([[1., 0., 0., 1.]])
        >>> channels.owner.tolist()
        [0, 1, 1, 1]

    :param kinds: of each entry, see :func:`kinds_of`.
    :ivar owner: channel -> its entry.
    """

    owner: Tensor
    order: Tensor
    scaled: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(self, kinds: Sequence[tuple[Kind, int]]) -> None:
        super().__init__()
        self.size = len(kinds)
        self.groups: dict[tuple[Kind, int], list[int]] = {}
        for i, kind in enumerate(kinds):
            self.groups.setdefault(kind, []).append(i)
        owner = [i for (_, k), own in self.groups.items() for i in own for _ in range(max(k, 1))]
        scaled = [kind not in ("sign", "classes") for (kind, k), own in self.groups.items() for _ in own * max(k, 1)]
        self.register_buffer("owner", torch.tensor(owner), persistent=False)
        self.register_buffer("scaled", torch.tensor(scaled), persistent=False)
        for i, own in enumerate(self.groups.values()):
            self.register_buffer(f"group_{i}", torch.tensor(own), persistent=False)
        self.register_buffer("loc", torch.zeros(len(owner)))
        self.register_buffer("scale", torch.ones(len(owner)))

    def raw(self, x: Tensor) -> Tensor:  # shapes: (*batch, P), (*batch, C)
        """The channels before standardization."""
        parts = []
        for i, (kind, classes) in enumerate(self.groups):
            own = x.index_select(-1, getattr(self, f"group_{i}"))
            if kind == "classes":
                every = torch.arange(classes, device=x.device)
                parts.append((own.long().unsqueeze(-1) == every).to(self.loc.dtype).flatten(-2))
            else:
                parts.append(_looked_at(own.to(self.loc.dtype), kind))
        return torch.cat(parts, -1)

    def forward(self, x: Tensor) -> Tensor:  # shapes: (*batch, P), (*batch, C)
        return (self.raw(x) - self.loc) / self.scale

    def spread(self, mask: Tensor) -> Tensor:  # shapes: (*batch, P or 1), (*batch, C)
        """A mask of entries as one of channels."""
        return mask.expand((*mask.shape[:-1], self.size)).index_select(-1, self.owner)

    @torch.no_grad()
    def fit(
        self,
        x: Tensor,  # shape: (N, P), filled
        rows: Tensor,  # shape: (N,) or (N, P), bool, True = observed
        *,
        only_far: bool = False,
    ) -> None:
        """
        Take location and scale from observed entries.

        :param only_far: leave channels as they are whose scale is about right.
        """
        mask = self.spread(rows if rows.dim() == x.dim() else rows.unsqueeze(-1))
        raw = self.raw(x)
        count = mask.sum(0)
        some = count.clamp(min=1)
        loc = torch.where(mask, raw, 0.0).sum(0) / some
        scale = (torch.where(mask, raw - loc, 0.0).square().sum(0) / some).sqrt()
        scale = torch.maximum(scale, _FLOOR * loc.abs().clamp(min=1.0))
        new = self.scaled & (count > 1)
        if only_far:
            ratio = scale / self.scale
            new = new & ((loc - self.loc).abs() > _FAR * self.scale) | new & ((ratio > _FAR) | (ratio < 1 / _FAR))
        self.loc.copy_(torch.where(new, loc, self.loc))
        self.scale.copy_(torch.where(new, scale, self.scale))


def _looked_at(x: Tensor, kind: Kind) -> Tensor:
    if kind == "sign":
        return 2 * x - 1
    if kind == "log":
        return x.clamp(min=_TINY).log()
    if kind == "log1p":
        return x.clamp(min=0).log1p()
    if kind == "logit":
        inside = x.clamp(_TINY, 1 - _TINY)
        return inside.log() - (-inside).log1p()
    return x
