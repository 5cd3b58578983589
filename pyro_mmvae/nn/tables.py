"""Tables as networks read them: standardized cells, covariates by name, the expert of a table modality.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mmvae.columns import Column, as_columns
from pyro_mmvae.nn.config import Configurable
from pyro_mmvae.nn.heads import Family, make_head
from pyro_mmvae.nn.mlp import mlp

__all__ = ["ColumnFeatures", "Context", "TableEncoder", "TableFeatures"]

_FARTHEST = 10.0  # standardized cells beyond this are cut: one wild cell must not drown the others


class ColumnFeatures(Configurable, nn.Module):
    r"""
    Cells of a table as the numbers that a network reads.

    With l and s a column's ``loc`` and ``scale``: a real cell is :math:`(x - l) / s`, a positive one
    :math:`(\log x - l) / s`, a count :math:`(\log(1 + x) - l) / s`, each cut at :math:`\pm 10`; a binary one is -1 or
    1; ordered classes are evenly spaced from -1 to 1; unordered ones are one-hot. These numbers come in the order of
    the columns, then the one-hot vectors. Cells that are missing give 0 whatever they hold; with ``mask=True`` the
    mask follows, one number per column.

    Example::

        >>> columns = [Column("age", "normal", loc=50.0, scale=10.0), Column("sex", "categorical", ("f", "m"))]
        >>> features = ColumnFeatures(columns, mask=True)
        >>> features(torch.tensor([[65.0, 1.0]]), torch.tensor([True, False])).tolist()
        [[1.5, 0.0, 0.0, 1.0, 0.0]]

    :param columns: the P columns, or their JSON form.
    :param mask: whether the mask is a part of the features.
    :ivar width: F, how many features there are; ``num_cells``: without the mask.
    """

    loc: Tensor
    scale: Tensor
    numbers: Tensor
    owners: Tensor
    classes: Tensor
    positive: Tensor | None
    count: Tensor | None

    def __init__(self, columns: Sequence[Column | Mapping[str, Any]], *, mask: bool = False) -> None:
        super().__init__()
        self.columns, self.mask = as_columns(columns), mask
        kinds = [c.kind for c in self.columns]
        numbers = [i for i, kind in enumerate(kinds) if kind != "category"]
        owners = [i for i, kind in enumerate(kinds) if kind == "category" for _ in self.columns[i].levels]
        classes = [k for c in self.columns if c.kind == "category" for k in range(len(c.levels))]
        self.num_cells = len(numbers) + len(owners)
        self.width = self.num_cells + (len(kinds) if mask else 0)
        locs, scales = zip(*(_standard(c) for c in self.columns), strict=True)
        self.register_buffer("loc", torch.tensor(locs)[numbers])
        self.register_buffer("scale", torch.tensor(scales)[numbers])
        self._constant("numbers", torch.tensor(numbers, dtype=torch.long))
        self._constant("owners", torch.tensor(owners, dtype=torch.long))
        self._constant("classes", torch.tensor(classes, dtype=torch.long))
        for kind in ("positive", "count"):
            chosen = torch.tensor([kinds[i] == kind for i in numbers], dtype=torch.bool)
            self._constant(kind, chosen if chosen.any() else None)

    def _constant(self, name: str, value: Tensor | None) -> None:
        """A buffer that follows the device and is made again from the columns rather than saved."""
        self.register_buffer(name, value, persistent=False)

    def forward(
        self,
        x: Tensor,  # shape: (*batch, P), cells
        mask: Tensor | None = None,  # shape: broadcastable to x, bool, True = observed
    ) -> Tensor:  # shape: (*batch, F)
        if x.dim() == 0 or x.shape[-1] != len(self.columns):
            raise ValueError(f"Expected cells of shape (*batch, {len(self.columns)}), got {tuple(x.shape)}.")
        x = x.to(self.loc.dtype)
        seen = None if mask is None else mask.expand(x.shape)
        parts = [self._standardized(x.index_select(-1, self.numbers))] if self.numbers.numel() else []
        if self.owners.numel():
            parts.append((x.index_select(-1, self.owners) == self.classes).to(x.dtype))
        features = torch.cat(parts, -1)
        if seen is not None:
            whose = seen.index_select(-1, torch.cat([self.numbers, self.owners]))
            features = torch.where(whose, features, torch.zeros_like(features))
        if not self.mask:
            return features
        return torch.cat([features, torch.ones_like(x) if seen is None else seen.to(x.dtype)], -1)

    def _standardized(self, x: Tensor) -> Tensor:  # both, shape: (*batch, Q), the columns that are numbers
        if self.positive is not None:
            x = torch.where(self.positive, x.clamp(min=torch.finfo(x.dtype).tiny).log(), x)
        if self.count is not None:
            x = torch.where(self.count, x.clamp(min=0.0).log1p(), x)
        return ((x - self.loc) / self.scale).clamp(-_FARTHEST, _FARTHEST)


def _standard(column: Column) -> tuple[float, float]:
    """What is taken off a cell, and what the rest is divided by."""
    if column.kind in ("real", "positive", "count"):
        return column.loc, column.scale
    half = 0.5 * max(len(column.levels) - 1, 1) if column.kind == "ordinal" else 0.5
    return (half if len(column.levels) != 1 else 0.0), half


class Context(Configurable, nn.Module):
    """
    Covariates, given by name, as the numbers that a network reads: their :class:`ColumnFeatures` side by side.

    Example::

        >>> age, site = Column("age", "normal", loc=50.0, scale=10.0), Column("site", "categorical", ("A", "B"))
        >>> context = Context([age, site])
        >>> context.names, context(age=torch.tensor([40.0, 50.0]), site=torch.tensor([0, 1])).tolist()
        (('age', 'site'), [[-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])

    :param columns: the covariates, or their JSON form; class numbers for those with levels.
    :ivar names: names of the covariates, in order.
    :ivar width: how many features there are.
    :raises TypeError: if a column's name is not a string: covariates go by name.
    """

    def __init__(self, columns: Sequence[Column | Mapping[str, Any]]) -> None:
        super().__init__()
        self.features = ColumnFeatures(columns)
        for column in self.features.columns:
            if not isinstance(column.name, str):
                raise TypeError(f"context: column {column.name!r} is a covariate and goes by name. Fix: a string.")
        self.names = tuple(str(c.name) for c in self.features.columns)
        self.width = self.features.width

    def forward(
        self,
        **covariates: Tensor,  # each shape: (*batch,)
    ) -> Tensor:  # shape: (*batch, width)
        missing = [name for name in self.names if name not in covariates]
        unknown = [name for name in covariates if name not in self.names]
        if missing or unknown:
            problem = f"lacks {missing}" if missing else f"has the unknown {unknown}"
            raise ValueError(f"context {problem}; it has {list(self.names)}. Fix: one tensor (B,) for each.")
        dtype = self.features.loc.dtype
        columns = torch.broadcast_tensors(*(covariates[name].to(dtype) for name in self.names))
        return self.features(torch.stack(columns, -1))


def _beside(
    h: Tensor,  # shape: (*batch, F)
    context: Context | None,
    covariates: Mapping[str, Tensor],  # each shape: (*batch,)
) -> Tensor:  # shape: (*batch, F + width of the context)
    """Features with those of the covariates beside them."""
    return h if context is None else torch.cat([h, context(**covariates).expand(*h.shape[:-1], -1)], -1)


class TableFeatures(Configurable, nn.Module):
    """
    Features of a table for networks that read several modalities: an MLP on :class:`ColumnFeatures`.

    Example::

        >>> TableFeatures([Column("crp", "normal", loc=3.0, scale=2.0)], 4)(torch.ones(5, 1)).shape
        torch.Size([5, 4])

    :param columns: the P columns, or their JSON form.
    :param width: of the result, F; an MLP with one layer of that width.
    :param context: columns of the covariates that it reads.
    :ivar covariates: their names.
    """

    def __init__(
        self,
        columns: Sequence[Column | Mapping[str, Any]],
        width: int,
        *,
        context: Sequence[Column | Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.features = ColumnFeatures(columns)
        self.context = Context(context) if context is not None and len(context) else None
        self.covariates: tuple[str, ...] = () if self.context is None else self.context.names
        self.net = mlp(self.features.width + (0 if self.context is None else self.context.width), [width])

    def forward(
        self,
        x: Tensor,  # shape: (*batch, P), cells
        **covariates: Tensor,  # each shape: (*batch,)
    ) -> Tensor:  # shape: (*batch, F)
        h = self.features(x)
        return self.net(_beside(h, self.context, covariates))


class TableEncoder(Configurable, nn.Module):
    r"""
    Expert of a table modality: :math:`q(z \mid x) = \mathrm{head}(\mathrm{mlp}(\mathrm{features}(x), c))`.

    ``enc(x, mask, age=..., site=...)`` takes cells in the units of the data; :class:`ColumnFeatures`, and
    :class:`Context` for the covariates c, make of them what a network reads. Missing cells are 0 and, with
    ``mask=True``, marked beside.

    Example::

        >>> columns = [Column("crp", "log_normal"), Column("stage", "ordinal", ("I", "II", "III"))]
        >>> enc = TableEncoder(columns, 2, hidden=(8,), context=[Column("age", "normal", loc=50.0, scale=10.0)])
        >>> q = enc(torch.ones(5, 2), torch.tensor([True, False]), age=torch.full((5,), 61.0))
        >>> q.batch_shape, q.event_shape, enc.covariates
        (torch.Size([5]), torch.Size([2]), ('age',))

    :param columns: the P columns, or their JSON form.
    :param latent_dim: width of the latent.
    :param hidden: widths of the hidden layers; ``()`` for a linear encoder.
    :param family: of the expert, as in :class:`~pyro_mmvae.nn.MLPEncoder`.
    :param dropout: rate after each hidden layer.
    :param input_dropout: share of the observed cells that each training pass takes for missing; the features of those
        that are kept are divided by 1 minus this share.
    :param mask: whether the network sees which cells are missing.
    :param context: columns of the covariates that it reads.
    :ivar covariates: their names.
    :raises ValueError: for a rate outside [0, 1), or sizes that are not positive.
    """

    def __init__(
        self,
        columns: Sequence[Column | Mapping[str, Any]],
        latent_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        family: Family = "normal",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        mask: bool = True,
        context: Sequence[Column | Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= input_dropout < 1.0:
            raise ValueError(f"input_dropout must be in [0, 1), got {input_dropout!r}.")
        self.features = ColumnFeatures(columns, mask=mask)
        self.context = Context(context) if context is not None and len(context) else None
        self.covariates: tuple[str, ...] = () if self.context is None else self.context.names
        self.event_shape, self.latent_dim = torch.Size([len(self.features.columns)]), latent_dim
        self.input_dropout = input_dropout
        width = self.features.width + (0 if self.context is None else self.context.width)
        self.net = mlp(width, hidden, dropout=dropout)
        self.head = make_head(family, hidden[-1] if len(hidden) else width, latent_dim)

    def forward(
        self,
        x: Tensor,  # shape: (*batch, P), cells
        mask: Tensor | None = None,  # shape: broadcastable to x, bool, True = observed
        **covariates: Tensor,  # each shape: (*batch,)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: (latent_dim,)
        if covariates and self.context is None:
            raise ValueError(f"TableEncoder reads no covariates, got {list(covariates)}. Fix: context=[Column(...)].")
        h = self.features(x, self._kept(x, mask))
        if self.training and self.input_dropout > 0.0:
            cells = self.features.num_cells
            h = torch.cat([h[..., :cells] / (1.0 - self.input_dropout), h[..., cells:]], -1)
        return self.head(self.net(_beside(h, self.context, covariates)))

    def _kept(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask; in training, less some cells by chance."""
        if not self.training or self.input_dropout == 0.0:
            return mask
        kept = torch.rand(x.shape, device=x.device) >= self.input_dropout
        return kept if mask is None else kept & mask
