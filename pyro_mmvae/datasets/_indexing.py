"""Rows of a dataset: what a user may index with, and how labels of any kind follow.
Layer: datasets, private."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def rows_of(index: Any, n: int) -> slice | Tensor:
    """A slice with positive step, or a tensor of row numbers in [0, n); never empty."""
    if isinstance(index, str):
        raise TypeError(f"a dataset is indexed by rows, got {index!r}. Fix: ds.data[{index!r}].")
    if isinstance(index, slice):
        numbers = range(n)[index]
        rows = index if numbers.step > 0 else torch.from_numpy(np.array(numbers, dtype=np.int64))
        count = len(numbers)
    else:
        rows = _numbers(index if isinstance(index, Tensor) else torch.from_numpy(np.array(index)), n)
        count = len(rows)
    if count == 0:
        raise ValueError(f"the index selects none of the {n} rows.")
    return rows


def _numbers(rows: Tensor, n: int) -> Tensor:  # shape: (rows,)
    """Row numbers in [0, n) from a bool mask over the rows, or from integers that may count from the end."""
    if rows.numel() == 0:
        return rows.reshape(-1)
    if rows.dtype == torch.bool:
        if rows.shape != (n,):
            raise ValueError(f"a bool index needs shape ({n},), one entry per row, got {tuple(rows.shape)}.")
        return rows.nonzero().squeeze(-1)
    if rows.dim() != 1 or rows.is_floating_point():
        raise TypeError(f"an index is a row of integers or bools, got shape {tuple(rows.shape)}, {rows.dtype}.")
    rows = rows.long()
    bad = (rows < -n) | (rows >= n)
    if bad.any():
        raise IndexError(f"row {int(rows[bad][0])} of a dataset with {n} rows.")
    return torch.where(rows < 0, rows + n, rows)


def on_device(rows: slice | Tensor, value: Tensor) -> slice | Tensor:
    """The rows where the tensor to be indexed lies."""
    return rows if isinstance(rows, slice) else rows.to(value.device)


def take(labels: Any, rows: slice | Tensor) -> Any:
    """The labels of some rows, in the kind they came in."""
    if labels is None:
        return None
    if isinstance(labels, Tensor):
        return labels[on_device(rows, labels)]
    index = rows if isinstance(rows, slice) else rows.cpu().numpy()
    if hasattr(labels, "iloc"):  # pandas: by position
        return labels.iloc[index]
    if isinstance(labels, np.ndarray) or isinstance(index, slice):
        return labels[index]
    taken = [labels[i] for i in index.tolist()]
    return tuple(taken) if isinstance(labels, tuple) else taken
