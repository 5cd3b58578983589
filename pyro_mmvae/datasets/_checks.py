"""Checks of what a user hands to a dataset, and the small algebra of row and cell masks.
Layer: datasets, private."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FEW_KERNELS = (torch.uint16, torch.uint32, torch.uint64)  # torch can store these and do little else
RESERVED = ("data", "terms", "particles")  # plates of the models


def as_tensor(name: str, value: Any, kind: str = "modality") -> Tensor:  # shape: (N, ...)
    """The value as a tensor that shares memory where it can; refuses what is no numeric array with rows."""
    where = f"{kind} {name!r}"
    if value is None:
        raise TypeError(f"{where} is None. Fix: leave it out of the mapping.")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{where}: a numpy masked array. Fix: value.filled(np.nan), or .data with obs_mask=~value.mask."
        )
    if isinstance(value, np.ndarray):
        value = _from_numpy(where, value)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{where}: expected a torch.Tensor or numpy array, got {type(value).__name__}. Fix: np.asarray."
        )
    if value.layout != torch.strided or value.is_complex():
        raise TypeError(f"{where}: expected a dense real tensor, got {value.layout}, {value.dtype}.")
    if value.dim() == 0:
        raise ValueError(f"{where}: expected rows, shape (N, ...), got a scalar. Fix: value.reshape(1).")
    return (value.long() if value.dtype in _FEW_KERNELS else value).detach()


def _from_numpy(where: str, value: np.ndarray) -> Tensor:
    if value.dtype.kind not in "fiub":
        raise TypeError(f"{where}: expected numbers, got dtype {value.dtype}. Fix: encode it, e.g. category codes.")
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))  # copies only if torch could not share it


def check_names(names: Any, *, kind: str = "modality", reserved: tuple[str, ...] = ()) -> None:
    """Names are non-empty strings outside of ``reserved``."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{kind} names are strings, got {name!r} ({type(name).__name__}). Fix: str(name).")
        if name == "" or name in reserved:
            raise ValueError(f"{kind} name {name!r} is not free (reserved: {', '.join(RESERVED)}). Fix: rename it.")


def check_arrays(values: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """A mapping from names to arrays, as a new dict of tensors."""
    if not isinstance(values, Mapping):
        raise TypeError(f"expected a mapping from {kind} names to arrays, got {type(values).__name__}.")
    check_names(values, kind=kind, reserved=RESERVED if kind == "modality" else ())
    return {name: as_tensor(name, value, kind) for name, value in values.items()}


def check_rows(values: Mapping[str, Tensor]) -> int:
    """The common number of rows."""
    lengths = {name: len(value) for name, value in values.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"all arrays need the same number of rows, got {lengths}.")
    n = next(iter(lengths.values()))
    if n == 0:
        raise ValueError(f"the dataset is empty: {lengths} rows. Fix: give at least one row.")
    for name, value in values.items():
        if value.numel() == 0:
            raise ValueError(f"{name!r} has no features: shape {tuple(value.shape)}. Fix: leave it out.")
    return n


def check_complete(name: str, value: Tensor) -> None:
    """Covariates are given, never modelled: each entry is finite."""
    bad = ~torch.isfinite(value)
    if bad.any():
        raise ValueError(
            f"covariate {name!r} is missing or infinite, first in row {first_row(bad)}; covariates are complete. "
            f"Fix: drop the row, fill the value, or make {name!r} a modality."
        )


def observed(name: str, value: Tensor, obs_mask: Any) -> Tensor:  # shape: (N,) or (N, *event), bool
    """What is observed of one modality: its mask (None: everything) without the NaN entries."""
    mask = torch.ones(len(value), dtype=torch.bool, device=value.device)
    if obs_mask is not None:
        mask = check_mask(name, obs_mask, value)
    if not value.is_floating_point():
        return collapse(mask)
    mask = cells(mask, value) & ~torch.isnan(value)
    infinite = mask & torch.isinf(value)
    if infinite.any():
        raise ValueError(
            f"modality {name!r}: an infinite value is observed, first in row {first_row(infinite)}. "
            f"Fix: correct it, or set it to NaN (missing)."
        )
    return collapse(mask)


def check_mask(name: str, obs_mask: Any, value: Tensor) -> Tensor:  # shape: (N,) or (N, *event), bool
    """The mask of one modality as a new bool tensor on the modality's device."""
    mask = torch.from_numpy(np.array(obs_mask)) if isinstance(obs_mask, np.ndarray) else obs_mask
    if not isinstance(mask, Tensor):
        raise TypeError(f"obs_mask[{name!r}]: expected a bool tensor, got {type(mask).__name__}.")
    if mask.dtype != torch.bool:
        raise TypeError(f"obs_mask[{name!r}]: expected bool (True = observed), got {mask.dtype}. Fix: mask.bool().")
    if mask.shape != value.shape[:1] and mask.shape != value.shape:
        raise ValueError(
            f"obs_mask[{name!r}]: expected shape {tuple(value.shape[:1])} (rows) or {tuple(value.shape)} (cells), "
            f"got {tuple(mask.shape)}."
        )
    return mask.to(value.device, copy=True)


def check_mask_keys(obs_mask: Any, modalities: Any, covariates: Any) -> Mapping[str, Any]:
    """The mapping itself: None is empty, keys are modalities."""
    if obs_mask is None:
        return {}
    if not isinstance(obs_mask, Mapping):
        raise TypeError(
            f"obs_mask: expected a mapping from modality names to bool tensors, got {type(obs_mask).__name__}."
        )
    for name in obs_mask:
        if name in covariates:
            raise ValueError(f"obs_mask[{name!r}]: a covariate is always observed. Fix: make {name!r} a modality.")
        if name not in modalities:
            raise ValueError(f"obs_mask[{name!r}]: no such modality. Known: {', '.join(modalities)}.")
    return obs_mask


def check_labels(labels: Any, n: int) -> None:
    """Labels are None or a sequence with one entry per row."""
    if labels is None:
        return
    if isinstance(labels, (str, Mapping)) or not (hasattr(labels, "__len__") and hasattr(labels, "__getitem__")):
        raise TypeError(
            f"labels: expected a tensor, array or sequence with one entry per row, got {type(labels).__name__}."
        )
    if len(labels) != n:
        raise ValueError(f"labels: expected {n} entries, one per row, got {len(labels)}.")


def generator(seed: int) -> torch.Generator:
    """A generator of its own, so that the global random state stays as it is."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int, got {seed!r}.")
    return torch.Generator().manual_seed(seed)


def first_row(bad: Tensor) -> int:
    """Index of the first row with a True entry."""
    return int(some(bad).nonzero()[0])


def some(obs_mask: Tensor) -> Tensor:  # shape: (N,)
    """Rows with anything observed."""
    return obs_mask.reshape(len(obs_mask), -1).any(-1)


def every(obs_mask: Tensor) -> Tensor:  # shape: (N,)
    """Rows with everything observed."""
    return obs_mask.reshape(len(obs_mask), -1).all(-1)


def cells(
    obs_mask: Tensor,  # shape: (N,) or (N, *event)
    value: Tensor,  # shape: (N, *event)
) -> Tensor:  # shape: (N, *event)
    """The mask with one entry per cell of the value."""
    shape = obs_mask.shape + (1,) * (value.dim() - obs_mask.dim())
    return obs_mask.reshape(shape).expand(value.shape)


def collapse(obs_mask: Tensor) -> Tensor:  # shape: (N,) or (N, *event)
    """One entry per row, unless some row is partly observed."""
    rows = some(obs_mask)
    return rows if bool((rows == every(obs_mask)).all()) else obs_mask
