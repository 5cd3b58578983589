"""Which rows a check looks at, and what is hidden in them.

Layer: checks, private.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from pyro_mmvae.masks import powerset

__all__ = ["cells", "chosen_rows", "filled", "partly_hidden", "seen_rows", "subsets", "with_content"]

Tensors = Mapping[str, Tensor]
LOOKED_AT = 512  # rows among which those to check are chosen
ALL_SUBSETS = 5  # modalities up to which all their subsets are tried


def seen_rows(mask: Tensor) -> Tensor:  # shape: (B,)
    """Whether any feature is observed, for a mask at the door."""
    return mask if mask.dim() == 1 else mask.flatten(1).any(1)


def cells(x: Tensor, mask: Tensor) -> Tensor:  # shape: as x
    """The mask of every cell."""
    return mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())).expand_as(x)


def chosen_rows(obs_mask: Tensors, names: Sequence[str], size: int, taken: Collection[int]) -> Tensor:  # shape: (R,)
    """
    A few rows that observe something: every modality in one if possible, different patterns first, as many as no other
    dimension has.

    :param taken: sizes of the programs' other dimensions, so that a forgotten one does not look like the rows.
    """
    looked = min(size, LOOKED_AT)
    shown = [seen_rows(obs_mask[m])[:looked].cpu() for m in names]
    table = torch.stack(shown, -1).tolist() if shown else [[True]] * looked
    first = [next((n for n, row in enumerate(table) if row[i]), 0) for i in range(len(names))]
    patterns = {tuple(row): n for n, row in reversed(list(enumerate(table)))}
    complete = sorted(range(looked), key=lambda n: -sum(table[n]))[:2]
    some = {n for n in range(looked) if any(table[n])}
    every = dict.fromkeys(chain(complete, first, sorted(patterns.values()), range(looked)))
    order = [n for n in every if n in some] if some else list(every)
    wanted = [n for n in (7, 6, 9, 8, 11, 5, 10, 13, 4, 3, 2, 1) if n <= len(order)]
    count = next((n for n in wanted if n not in taken), wanted[0])
    return torch.tensor(sorted(order[:count]), device="cpu")


def partly_hidden(obs_mask: Tensors, names: Sequence[str]) -> dict[str, Tensor]:
    """
    The masks with one modality hidden in most rows, each still seen in one row if it was in any, and something still
    seen in every row that shows two modalities.
    """
    out = dict(obs_mask)
    for i, m in enumerate(names):
        others = [seen_rows(out[k]) for k in names if k != m]
        rows = torch.arange(len(obs_mask[m]), device=obs_mask[m].device) % (len(names) + 1) == i
        rows = rows & torch.stack(others).any(0) if others else rows
        kept = obs_mask[m] & ~rows.reshape((-1,) + (1,) * (obs_mask[m].dim() - 1))
        if bool(kept.any()):
            out[m] = kept
    return out


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """All sets of modalities, the full one first; of many modalities none, one, all but one, and all."""
    count = len(names)
    if count <= ALL_SUBSETS:
        table = powerset(count, min_size=0)
    else:
        sizes = (powerset(count, min_size=k, max_size=k) for k in (0, 1, count - 1, count))
        table = torch.cat(list(sizes))
    return [tuple(m for m, on in zip(names, row, strict=True) if on) for row in reversed(table.tolist())]


def filled(x: Tensor, mask: Tensor, fallback: Tensor | float) -> Tensor:
    """Hidden cells take an observed value of their feature, or ``fallback`` where there is none."""
    seen = cells(x, mask)
    first = seen.long().argmax(0, keepdim=True)
    known = torch.where(seen.any(0, keepdim=True), x.gather(0, first), torch.as_tensor(fallback).to(x))
    return torch.where(seen, x, known)


def with_content(x: Tensor, mask: Tensor, content: float | None) -> Tensor:
    """Hidden cells hold ``content``, or other rows' values for None; integers something absurd for NaN."""
    if content is None:
        other: Tensor = x.roll(1, 0)
    elif x.is_floating_point():
        other = torch.full_like(x, content)
    elif x.dtype == torch.bool:
        other = ~x
    else:
        other = torch.full_like(x, 0 if content == 0 else 113 if content != content else 127)
    return torch.where(cells(x, mask), x, other)
