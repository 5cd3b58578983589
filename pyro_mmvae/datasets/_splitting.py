"""Random partitions of rows: plain, with groups kept together, with shares of classes kept.
Layer: datasets, private."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae.datasets import _checks

__all__ = ["at_random", "by_classes", "by_groups", "classes_of", "parts_of"]


def parts_of(
    ds: Any,  # MultimodalDataset
    fractions: float | Sequence[float],
    seed: int,
    groups: Any,
    stratify: Any,
) -> list[Tensor]:
    """The work of :meth:`MultimodalDataset.split`: row numbers of each part."""
    shares = fractions_of(fractions)
    if groups is not None and stratify is not None:
        raise NotImplementedError("split: groups and stratify at once. Fix: one of the two.")
    if groups is not None:
        return by_groups(classes_of("groups", _values(ds, "groups", groups), len(ds)), shares, seed)
    if stratify is not None:
        return by_classes(classes_of("stratify", _values(ds, "stratify", stratify), len(ds)), shares, seed)
    return at_random(len(ds), shares, seed)


def _values(ds: Any, argument: str, values: Any) -> Any:
    """One value per row, from a name or a Series by the ids of its rows."""
    if not isinstance(values, str):
        return values if ds.frames is None else ds.frames.aligned(argument, values)
    if values in ds.covariates:
        return ds.data[values]
    if values in getattr(ds.labels, "columns", ()):
        return ds.labels[values]
    raise ValueError(
        f"{argument}: {values!r} is no covariate ({', '.join(ds.covariates)}), nor a column of labels. "
        f"Fix: one value for each row."
    )


def fractions_of(fractions: float | Sequence[float]) -> list[float]:
    """
    Shares of the parts, positive, with sum 1; a single number is the first of two.

    :raises ValueError: otherwise.
    """
    parts = [fractions, 1 - fractions] if isinstance(fractions, (int, float)) else list(fractions)
    if not (parts and min(parts) > 0 and abs(sum(parts) - 1) < 1e-6):
        raise ValueError(f"fractions: expected one in (0, 1), or positive ones that sum to 1, got {fractions}.")
    return parts


def at_random(n: int, fractions: Sequence[float], seed: int) -> list[Tensor]:
    """
    Row numbers of each part, in random order.

    :raises ValueError: if a part would be empty.
    """
    ends = [round(n * sum(fractions[: i + 1])) for i in range(len(fractions))]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    _check_sizes(sizes, n, fractions)
    order = torch.randperm(n, generator=_checks.generator(seed), device="cpu")
    return list(order.split(sizes))


def by_groups(groups: Tensor, fractions: Sequence[float], seed: int) -> list[Tensor]:  # groups, shape: (N,), 0 to G - 1
    """
    Row numbers of each part, with no group in two: groups in random order, each to the part that lacks the largest
    share of its rows.

    :raises ValueError: if there are fewer groups than parts.
    """
    sizes = groups.bincount()
    if len(sizes) < len(fractions):
        raise ValueError(f"groups: {len(sizes)} of them cannot fill {len(fractions)} parts. Fix: fewer parts.")
    generator = _checks.generator(seed)
    lacking = [len(groups) * f for f in fractions]
    members: list[list[int]] = [[] for _ in fractions]
    order = torch.randperm(len(sizes), generator=generator, device="cpu").tolist()
    for group in order:
        part = max(range(len(fractions)), key=lambda p: lacking[p] / fractions[p])  # an empty part lacks the most
        members[part].append(group)
        lacking[part] -= int(sizes[group])
    rows = torch.randperm(len(groups), generator=generator, device="cpu")
    return [rows[torch.isin(groups[rows], torch.tensor(own, device="cpu"))] for own in members]


def by_classes(
    classes: Tensor,  # shape: (N,), 0 to C - 1
    fractions: Sequence[float],
    seed: int,
) -> list[Tensor]:
    """
    Row numbers of each part, in which every class has its share of the rows, rounded up or down.

    :raises ValueError: if every class has a single row, or a part would be empty.
    """
    sizes = classes.bincount()
    if int(sizes.max()) == 1:
        raise ValueError(
            f"stratify: each of the {len(sizes)} rows is a class of its own. Fix: classes, such as pd.qcut(values, 4)."
        )
    generator = _checks.generator(seed)
    found: list[list[Tensor]] = [[] for _ in fractions]
    debt = [0.0] * len(fractions)  # rows that a part is short of so far
    for k in torch.randperm(len(sizes), generator=generator, device="cpu").tolist():
        own = (classes == k).nonzero().squeeze(-1)
        own = own[torch.randperm(len(own), generator=generator, device="cpu")]
        counts = _rounded([len(own) * f for f in fractions], debt)
        for part, rows in zip(found, own.split(counts), strict=True):
            part.append(rows)
    parts = [torch.cat(part) for part in found]
    _check_sizes([len(part) for part in parts], len(classes), fractions)
    return [part[torch.randperm(len(part), generator=generator, device="cpu")] for part in parts]


def _rounded(ideal: list[float], debt: list[float]) -> list[int]:
    """Each share rounded up or down, their sum kept; up where the debt is largest. The debt is brought up to date."""
    floor = [int(x + 1e-9) for x in ideal]
    for p, (x, low) in enumerate(zip(ideal, floor, strict=True)):
        debt[p] += x - low
    more = round(sum(ideal)) - sum(floor)
    can = [p for p, (x, low) in enumerate(zip(ideal, floor, strict=True)) if x - low > 1e-9]
    for p in sorted(can, key=lambda p: -debt[p])[:more]:
        floor[p] += 1
        debt[p] -= 1
    return floor


def _check_sizes(sizes: Sequence[int], n: int, fractions: Sequence[float]) -> None:
    if min(sizes) == 0:
        raise ValueError(f"fractions {list(fractions)} of {n} rows give parts of {list(sizes)} rows: one is empty.")


def classes_of(name: str, values: Any, n: int) -> Tensor:  # shape: (N,), int64
    """
    Numbers 0, 1, ... for the distinct values, by first appearance.

    :raises TypeError: if they are no array or sequence.
    :raises ValueError: unless there is one value for each row, and none is missing.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise TypeError(f"{name}: expected one value for each row, got {type(values).__name__}.")
    cells = np.asarray(values)
    if cells.shape != (n,):
        raise ValueError(f"{name}: expected {n} values, one for each row, got shape {cells.shape}.")
    places: dict[Any, int] = {}
    numbers = []
    for row, cell in enumerate(cells.tolist()):
        if cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell:
            raise ValueError(f"{name}: row {row} has no value. Fix: drop the row, or give it one of its own.")
        numbers.append(places.setdefault(cell, len(places)))
    return torch.tensor(numbers, device="cpu")
