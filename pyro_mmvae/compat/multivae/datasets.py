"""Datasets of multivae.

Layer: compat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.datasets import MultimodalDataset

__all__ = ["dataset"]

_PLAIN = "multivae.data.datasets.base"  # where the classes are that index whole arrays


def dataset(ds: Any) -> MultimodalDataset:
    """
    A dataset of multivae's, complete or not, as this library's.

    Masks and labels go along; what multivae wants filled in is not looked at. Whole arrays are shared. A class with
    a ``__getitem__`` of its own is read sample by sample, so random transformations are applied once.

    Example::

        >>> from types import SimpleNamespace
        >>> masks = {"a": torch.tensor([True, False, True])}
        >>> dataset(SimpleNamespace(data={"a": torch.zeros(3, 2)}, masks=masks, labels=None)).obs_mask["a"]
        tensor([ True, False,  True])

    :param ds: a ``MultimodalBaseDataset`` or ``IncompleteDataset``, or a batch of one (anything with a mapping
        ``data`` of arrays).
    :raises TypeError: if it has no data, or a modality is no array (tokens with a padding mask are several).
    """
    own = getattr(type(ds).__getitem__, "__module__", "") if isinstance(ds, Sequence | torch.utils.data.Dataset) else ""
    source = ds if own in ("", _PLAIN) else _collected([ds[i] for i in range(len(ds))])
    data, masks, labels = (_get(source, name) for name in ("data", "masks", "labels"))
    if not isinstance(data, Mapping):
        raise TypeError(f"dataset: expected a dataset with a mapping `data`, got {type(ds).__name__}.")
    for name, x in data.items():
        if isinstance(x, Mapping):
            raise TypeError(
                f"dataset: modality {name!r} is a mapping of {sorted(x)}. Fix: MultimodalDataset with one of them as "
                "the modality and lengths or padding masks as covariates."
            )
    obs_mask = None if masks is None else {m: _mask(mask, len(data[m])) for m, mask in masks.items() if m in data}
    return MultimodalDataset(dict(data), obs_mask, labels=labels)


def _mask(mask: Any, rows: int) -> Tensor:  # shape: (N,)
    return torch.as_tensor(mask).bool().reshape(rows)


def _get(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _collected(samples: Sequence[Any]) -> dict[str, Any]:
    """Samples, each with data, and perhaps masks and a label, as whole arrays."""
    out: dict[str, Any] = {}
    for part in ("data", "masks"):
        own = [_get(s, part) for s in samples]
        if all(isinstance(x, Mapping) for x in own):
            out[part] = {m: _stacked([x[m] for x in own]) for m in own[0]}
    labels = [_get(s, "labels") for s in samples]
    return out | ({} if any(y is None for y in labels) else {"labels": _stacked(labels)})


def _stacked(values: Sequence[Any]) -> Any:
    return values[0] if isinstance(values[0], Mapping) else torch.stack([torch.as_tensor(v) for v in values])
