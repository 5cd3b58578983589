"""The algebra of ``obs_mask``: checking, inside form, filling, subsets of modalities.

Lowest layer: plain tensors, nothing of Pyro's or of the library's is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

__all__ = [
    "Data",
    "ObsMask",
    "batch_size",
    "check_mask",
    "complement",
    "fill",
    "intersect",
    "normalize",
    "observed_rows",
    "powerset",
    "random_subsets",
    "restrict",
    "singletons",
]


class Data(dict[str, Tensor]):
    """
    Data that passed the door: checked, unobserved entries filled. Made by a model's ``prepare``.

    :ivar size: number of rows, B.
    :ivar filled: whether unobserved entries hold constants of the support.
    """

    size: int
    filled: bool = False


class ObsMask(dict[str, Tensor]):
    """
    Masks in their inside form, one for every modality, True = observed.

    Each is bool of shape ``(*batch, *event)`` or ``(*batch, 1, ..., 1)`` with the event rank of the modality, where
    ``batch`` ends in the B samples and may have leading dimensions (terms). ``rows`` holds, per modality, the same
    thing reduced to whole modalities, shape ``(*batch,)``; ``private`` is the mask that private latents
    listen to where it differs from this one.

    :ivar rows: modality -> bool Tensor ``(*batch,)``, any feature observed.
    :ivar private: an :class:`ObsMask`, or None for "the same".
    :ivar largest: an upper bound of the number of observed modalities in any row, if known on the host.
    :ivar needed: whether rows that observe nothing are used.
    :ivar owners: for every leading row, the only modality that it can observe, if known on the host.
    :ivar host: bool ``(B, M)``, whole modalities on the host, in the order of the masks, if known there.
    :ivar index: modality -> indices of observed rows, made on the host when the batch was cut, or absent.
    """

    rows: dict[str, Tensor]
    private: ObsMask | None
    index: dict[str, Tensor]
    largest: int | None
    needed: bool
    owners: tuple[str, ...] | None
    host: Tensor | None

    def __init__(self, masks: Mapping[str, Tensor], event_dims: Mapping[str, int]) -> None:
        super().__init__(masks)
        self.event_dims = dict(event_dims)
        self.rows = {m: observed_rows(mask, self.event_dims[m]) for m, mask in masks.items()}
        self.private = None
        self.index = {}
        self.largest = None
        self.needed = True
        self.owners = None
        self.host = None

    @classmethod
    def of_rows(cls, rows: Mapping[str, Tensor], event_dims: Mapping[str, int]) -> ObsMask:
        """Masks of whole modalities, given as ``(*batch,)`` each."""
        self = cls({}, event_dims)
        self.rows = dict(rows)
        for m, mask in rows.items():
            self[m] = mask.reshape(mask.shape + (1,) * self.event_dims[m])
        return self

    def door_form(self) -> dict[str, Tensor]:
        """As they come at the door, for programs written by hand: ``(*batch,)``, or with the event if features miss."""
        return {m: self.rows[m] if mask[0].numel() == 1 else mask for m, mask in self.items()}

    def stacked(self, names: Sequence[str]) -> Tensor:  # shape: (*batch, M)
        """Whole-modality masks of ``names``, stacked on the right."""
        return torch.stack([self.rows[m] for m in names], -1)


def observed_rows(
    mask: Tensor,  # shape: (*batch, *event or ones)
    event_dim: int,
) -> Tensor:  # shape: (*batch,)
    """Whether any feature of a sample is observed."""
    if event_dim == 0:
        return mask
    return mask.flatten(-event_dim).any(-1)


def batch_size(data: Mapping[str, Tensor | None], n: int | None = None) -> int:
    """
    The number of rows that all tensors of ``data`` share, or ``n`` where there are none.

    Example::

        >>> batch_size({"a": torch.zeros(3, 2), "b": torch.zeros(3)})
        3

    :raises ValueError: if the tensors disagree, or there is nothing to read the number from.
    """
    sizes = {name: x.shape[0] for name, x in data.items() if x is not None and x.dim() > 0}
    if n is not None:
        sizes["n"] = n
    if not sizes:
        raise ValueError("The number of rows is unknown: data is empty. Fix: pass n=<number of rows>.")
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"Ragged batch: numbers of rows are {sizes}. Fix: every entry of data needs the same first "
            "dimension; rows that lack a modality are marked in obs_mask, not left out."
        )
    size = next(iter(sizes.values()))
    if size < 1:
        raise ValueError(f"The data has {size} rows. Fix: pass at least one sample.")
    return size


def check_mask(
    name: str,
    mask: object,
    shape: Sequence[int],  # (B, *event)
) -> None:
    """
    Refuse whatever is not a bool Tensor of shape ``(B,)`` or ``(B, *event)``.

    Example::

        >>> check_mask("image", torch.tensor([True, False]), (2, 3))

    :raises TypeError: if it is no Tensor, or a float or integer one.
    :raises ValueError: if the shape is neither of the two.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"obs_mask[{name!r}]: expected a bool Tensor, got {type(mask).__name__}. "
            "Fix: torch.as_tensor(mask, dtype=torch.bool)."
        )
    if mask.dtype != torch.bool:
        raise TypeError(
            f"obs_mask[{name!r}]: expected dtype bool (True = observed), got {mask.dtype}. Fix: mask.bool() if 1 "
            "means observed, or mask == 0 if 1 means missing."
        )
    shape = tuple(shape)
    if tuple(mask.shape) not in (shape[:1], shape):
        raise ValueError(
            f"obs_mask[{name!r}]: expected shape {shape[:1]} (whole modality) or {shape} (per feature), "
            f"got {tuple(mask.shape)}. Fix: one entry per row of data[{name!r}]."
        )


def normalize(
    obs_mask: Mapping[str, Tensor | None] | None,
    shapes: Mapping[str, Sequence[int]],
    size: int,
    *,
    absent: Iterable[str] = (),
    device: torch.device | None = None,
) -> ObsMask:
    """
    Bring masks from the door into their inside form.

    Semantically: ``None`` and absent keys become all True (all False for modalities named in ``absent``), ``(B,)``
    becomes ``(B, 1, ..., 1)``, ``(B, *event)`` stays.

    Example::

        >>> m = normalize({"a": torch.tensor([True, False])}, {"a": (3, 4), "b": ()}, 2)
        >>> m["a"].shape, m["b"].tolist()
        (torch.Size([2, 1, 1]), [True, True])

    :param obs_mask: masks at the door: modality -> bool ``(B,)`` or ``(B, *event)``, or None.
    :param shapes: modality -> event shape, for every modality.
    :param size: the number of rows, B.
    :param absent: modalities that the data does not have.
    :raises ValueError: for unknown names and wrong shapes.
    :raises TypeError: for masks that are not bool.
    """
    given = {} if obs_mask is None else obs_mask
    if not isinstance(given, Mapping):
        raise TypeError(
            f"obs_mask: expected a mapping from modality to bool Tensor, got {type(given).__name__}. Fix: "
            "{modality: mask}, or None where everything is observed."
        )
    unknown = set(given) - set(shapes)
    if unknown:
        raise ValueError(
            f"obs_mask has unknown keys {sorted(unknown)}; modalities are {list(shapes)}. Fix: drop or rename them."
        )
    missing = set(absent)
    masks = {}
    for name, shape in shapes.items():
        mask = given.get(name)
        event = (1,) * len(shape)
        if mask is not None:
            check_mask(name, mask, (size, *shape))
        if name in missing or mask is None:
            masks[name] = torch.full((size, *event), name not in missing, dtype=torch.bool, device=device)
        else:
            masks[name] = mask.reshape(size, *event) if mask.dim() == 1 else mask
    return ObsMask(masks, {name: len(shape) for name, shape in shapes.items()})


def fill(
    x: Tensor,  # shape: (B, *event)
    mask: Tensor,  # shape: (B, *event or ones), bool
    value: Tensor | float,  # shape: broadcastable to event
) -> Tensor:  # shape: (B, *event)
    """
    Put ``value`` where nothing is observed; the content of those entries is gone before any arithmetic sees it.

    Example::

        >>> fill(torch.tensor([[1.0], [float("nan")]]), torch.tensor([[True], [False]]), 0.0).tolist()
        [[1.0], [0.0]]
    """
    return torch.where(mask, x, torch.as_tensor(value, dtype=x.dtype, device=x.device))


def intersect(a: ObsMask, b: Mapping[str, Tensor]) -> ObsMask:
    """Entry-wise ``a & b`` for masks in inside form; modalities that ``b`` lacks keep ``a``."""
    return ObsMask({m: mask & b[m] if m in b else mask for m, mask in a.items()}, a.event_dims)


def complement(a: ObsMask, within: ObsMask) -> ObsMask:
    """What ``within`` observes and ``a`` does not."""
    return ObsMask({m: within[m] & ~mask for m, mask in a.items()}, a.event_dims)


def restrict(obs_mask: ObsMask, names: Iterable[str]) -> ObsMask:
    """The same masks with every modality outside ``names`` unobserved."""
    keep = set(names)
    masks = {m: mask if m in keep else torch.zeros_like(mask) for m, mask in obs_mask.items()}
    out = ObsMask(masks, obs_mask.event_dims)
    out.index = {m: rows for m, rows in obs_mask.index.items() if m in keep}
    return out


def singletons(num_modalities: int) -> Tensor:  # shape: (M, M), bool
    """One row per modality, observing it alone."""
    return torch.eye(num_modalities, dtype=torch.bool, device="cpu")


def powerset(num_modalities: int, *, min_size: int = 1, max_size: int | None = None) -> Tensor:  # shape: (S, M), bool
    """
    All subsets with ``min_size`` to ``max_size`` members, small ones first.

    Example::

        >>> powerset(2).int().tolist()
        [[1, 0], [0, 1], [1, 1]]
    """
    largest = num_modalities if max_size is None else max_size
    rows = [c for k in range(min_size, largest + 1) for c in combinations(range(num_modalities), k)]
    table = torch.zeros(len(rows), num_modalities, dtype=torch.bool, device="cpu")
    for i, members in enumerate(rows):
        table[i, list(members)] = True
    return table


def random_subsets(
    k: int,
    num_modalities: int,
    *,
    min_size: int = 2,
    max_size: int | None = None,
    by_size: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:  # shape: (k, M), bool
    """
    ``k`` different subsets with ``min_size`` to ``max_size`` (default M - 1) members.

    :param by_size: draw the size first, uniformly, then a subset of that size; False: uniform over all subsets.
    :raises ValueError: if there are fewer than ``k`` such subsets.
    """
    largest = num_modalities - 1 if max_size is None else max_size
    table = powerset(num_modalities, min_size=min_size, max_size=largest)
    if not 0 <= k <= len(table):
        raise ValueError(
            f"random subsets: k = {k}, but {num_modalities} modalities have {len(table)} subsets of {min_size} to "
            f"{largest} members. Fix: 0 <= k <= {len(table)}."
        )
    if not by_size or k == 0:
        return table[torch.randperm(len(table), generator=generator, device="cpu")[:k]]
    sizes = table.sum(-1)
    chance = (sizes.unsqueeze(-1) == sizes).sum(-1).double().reciprocal()
    return table[torch.multinomial(chance, k, generator=generator)]
