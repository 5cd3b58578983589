"""Batches of a dataset that lies in memory, cut by indexing whole tensors.
Layer: datasets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["Batches"]


class Batches:
    """
    A re-iterable of ``(data, obs_mask)`` batches, the same rows for every modality.

    Semantically equivalent to a :class:`torch.utils.data.DataLoader` over the rows, without a Python call per row. Each
    iteration with ``shuffle`` draws one new permutation. Batches in order are views of the stored tensors.

    Example::

        >>> batches = Batches({"a": torch.arange(5)}, {"a": torch.ones(5, dtype=torch.bool)}, 2)
        >>> len(batches), [data["a"].tolist() for data, obs_mask in batches]
        (3, [[0, 1], [2, 3], [4]])

    :param data: tensors of shape (N, ...), one row per sample.
    :param obs_mask: bool tensors of shape (N, ...).
    :param batch_size: rows per batch; the last batch may be smaller.
    :param shuffle: random order, from ``generator``, or from torch's global generator if that is None.
    :param drop_last: leave out a last batch that is smaller.
    :raises ValueError: if batch_size is below 1, or no batch is left.
    """

    def __init__(
        self,
        data: Mapping[str, Tensor],
        obs_mask: Mapping[str, Tensor],
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"batch_size: expected an int, got {batch_size!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}.")
        self.data, self.obs_mask = data, obs_mask
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.generator = generator
        self.num_rows = len(next(iter(data.values())))
        if len(self) == 0:
            raise ValueError(
                f"batch_size {batch_size} with drop_last leaves no batch of {self.num_rows} rows. "
                f"Fix: a batch_size of at most {self.num_rows}, or drop_last=False."
            )

    def __len__(self) -> int:
        size = self.num_rows / self.batch_size
        return math.floor(size) if self.drop_last else math.ceil(size)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        order = self._order()
        for i in range(len(self)):
            cut = slice(i * self.batch_size, (i + 1) * self.batch_size)
            rows = cut if order is None else order[cut]
            yield _select(self.data, rows), _select(self.obs_mask, rows)

    def _order(self) -> Tensor | None:  # shape: (N,)
        if not self.shuffle:
            return None
        device = torch.device("cpu") if self.generator is None else self.generator.device
        order = torch.randperm(self.num_rows, generator=self.generator, device=device)
        return order.to(next(iter(self.data.values())).device)  # one transfer for all batches


def _select(values: Mapping[str, Tensor], rows: slice | Tensor) -> dict[str, Tensor]:
    if isinstance(rows, slice):
        return {name: value[rows] for name, value in values.items()}
    return {name: value.index_select(0, rows.to(value.device)) for name, value in values.items()}
