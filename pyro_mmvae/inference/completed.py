"""Tables whose gaps are filled by draws, and what these say cell by cell.

Layer: inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae._optional import optional_import
from pyro_mmvae.columns import Column
from pyro_mmvae.datasets import Frames
from pyro_mmvae.inference._intervals import central

__all__ = ["Completed", "Gaps", "Interval"]

DataFrames = dict[str, Any]  # modality -> pandas.DataFrame
_CELLS = 2**24  # of tables that are made at once


@dataclass(frozen=True)
class Gaps:
    """
    The cells of a table that are filled, G of them, in the order of ``cells``; all on the CPU.

    :ivar cells: which they are, bool, shape (N, P).
    :ivar draws: shape (S, G), from the posterior predictive.
    :ivar means: shape (G,), of p(x | z) averaged over draws of z.
    """

    cells: Tensor
    draws: Tensor
    means: Tensor

    @staticmethod
    def joined(parts: Sequence[Gaps]) -> Gaps:
        """Blocks of rows as one."""
        cells, means = (torch.cat([getattr(p, name) for p in parts]) for name in ("cells", "means"))
        return Gaps(cells, torch.cat([p.draws for p in parts], 1), means)


class Interval(NamedTuple):
    """Lower and upper ends, each modality -> DataFrame."""

    lower: DataFrames
    upper: DataFrames


class Completed:
    """
    Tables with gaps filled: what ``vae.impute(ds)`` gives for a data set made from DataFrames.

    Every result is modality -> DataFrame with the index and the columns of what came in, in its units. Observed cells
    are those that came, bit by bit, with standard deviation 0 and an interval of no width.

    Example::

        >>> import pandas as pd, pyro_mmvae as mm
        >>> frame = pd.DataFrame({"a": [1.0, 2.0, None], "b": [0.5, None, 1.5]})
        >>> ds = mm.MultimodalDataset.from_frames({"blood": frame})
        >>> full = mm.MVAE.for_data(ds, latent_dim=1).impute(ds, num_samples=5)
        >>> float(full.mean["blood"].loc[0, "a"]), len(full.draws["blood"]), bool(full.sd["blood"].loc[2, "a"] > 0)
        (1.0, 15, True)

    Means are averages of p(x | z) over draws of z; standard deviations, intervals and :meth:`probabilities` come from
    draws of x, and are as rough as these are few (``num_samples``).

    :ivar frames: the tables that came in.
    :ivar gaps: modality -> the cells that were filled.
    """

    def __init__(self, frames: Frames, gaps: dict[str, Gaps]) -> None:
        self.frames, self.gaps = frames, gaps

    @cached_property
    def mean(self) -> DataFrames:
        """
        The completed tables, with the dtypes that came in.

        Gaps hold the mean of the posterior predictive; the nearest whole number where the dtype is an integer; the
        more probable value of booleans, the most frequent class among the draws of categories.
        """
        return {m: self._filled(m, self._middle(m)) for m in self.gaps}

    @cached_property
    def sd(self) -> DataFrames:
        """Standard deviations of the posterior predictive, in units of the columns; NaN for categories."""
        return {m: self._numbers(m, self._spread(m)) for m in self.gaps}

    @cached_property
    def draws(self) -> DataFrames:
        """
        All draws, one completed table after the other; the first level of the index, ``draw``, says which.

        As large as all these tables: :meth:`draw` gives one at a time.
        """
        return {m: self._stacked(m) for m in self.gaps}

    def draw(self, number: int) -> DataFrames:
        """
        One completed data set, as multiple imputation analyzes them one by one.

        :param number: which draw, from 0.
        :raises IndexError: if there are fewer.
        """
        for m, gaps in self.gaps.items():
            if not 0 <= number < len(gaps.draws):
                raise IndexError(f"{m}: draw {number} of {len(gaps.draws)}. Fix: impute(ds, num_samples=...).")
        return {m: self._filled(m, gaps.draws[number]) for m, gaps in self.gaps.items()}

    def interval(self, level: float = 0.9) -> Interval:
        """
        Central intervals of the posterior predictive, from its draws.

        Ends are values that were drawn where the column holds counts, booleans or ordered classes; unordered classes
        have none (NaN). Few draws (S + 1 < 2 / (1 - level), so below 19 for 0.9) do not reach the ends: those of
        numbers are then by Student's distribution around the mean, those of counts, booleans and classes the farthest
        draws, which are too near.

        :param level: probability inside, in (0, 1).
        :raises ValueError: for another level.
        """
        if not isinstance(level, (int, float)) or not 0 < level < 1:
            raise ValueError(f"level: expected a probability in (0, 1), such as 0.9, got {level!r}.")
        ends = {m: self._ends(m, level) for m in self.gaps}
        lower, upper = ({m: self._filled(m, own[side]) for m, own in ends.items()} for side in (0, 1))
        return Interval(lower, upper)

    def probabilities(self, modality: str, column: str | int) -> Any:  # pandas.DataFrame, shape (N, number of levels)
        """
        Class probabilities of one categorical, ordered or boolean column; 1 where observed.

        Those of a boolean are averages of p(x | z), those of classes shares of the draws.

        :raises ValueError: for an unknown modality, a column without classes, or an unknown one.
        """
        pandas = optional_import("pandas", "tables")
        if modality not in self.gaps:
            raise ValueError(f"no modality {modality!r} here; there are {', '.join(self.gaps)}.")
        names = [c.name for c in self._columns(modality)]
        if column not in names:
            shown = f"{names[:20]}{' ...' if len(names) > 20 else ''}"
            raise ValueError(f"{modality}: no column {column!r}; it has {shown}.")
        i = names.index(column)
        own, gaps = self._columns(modality)[i], self.gaps[modality]
        if own.kind not in ("category", "ordinal", "binary"):
            raise ValueError(
                f"{modality}, column {column!r}: {own.likelihood} has no classes. Fix: .mean, .sd and .interval()."
            )
        levels = own.levels if own.levels else (False, True)
        filled, chosen = gaps.cells[:, i], self._of_gap(modality) == i
        known = self.frames.cells(modality)[:, i]
        shares = torch.zeros(len(filled), len(levels), dtype=torch.float64, device="cpu")
        for k in range(len(levels)):
            share = (gaps.draws[:, chosen] == k).double().mean(0)
            if own.kind == "binary":
                share = gaps.means[chosen].double() if k else 1 - gaps.means[chosen].double()
            shares[filled, k] = share
            shares[~filled, k] = (known[~filled] == k).double()
        return pandas.DataFrame(shares.numpy(), index=self.frames.index, columns=list(levels))

    def __repr__(self) -> str:
        lines = [f"{m}: {int(g.cells.sum())} of {g.cells.numel()} cells filled" for m, g in self.gaps.items()]
        return "Completed(" + "; ".join(lines) + ")"

    def _columns(self, m: str) -> tuple[Column, ...]:
        return self.frames.columns[m]

    def _of_gap(self, m: str) -> Tensor:  # shape: (G,)
        """The column of each gap."""
        return self.gaps[m].cells.nonzero()[:, 1]

    def _where(self, m: str, *kinds: str) -> Tensor:  # shape: (G,), bool
        """Gaps whose column is of such a kind."""
        flags = [c.kind in kinds for c in self._columns(m)]
        return torch.tensor(flags, device="cpu")[self._of_gap(m)]

    def _middle(self, m: str) -> Tensor:  # shape: (G,)
        gaps = self.gaps[m]
        middle = gaps.means.double()
        middle = torch.where(self._where(m, "binary"), (middle > 0.5).double(), middle)
        classes = self._where(m, "category", "ordinal")
        return torch.where(classes, gaps.draws.mode(0).values.double(), middle) if bool(classes.any()) else middle

    def _spread(self, m: str) -> Tensor:  # shape: (G,)
        """Around the mean of p(x | z), which varies less than that of the draws."""
        gaps = self.gaps[m]
        middle = gaps.means.double()
        spread = (gaps.draws.double() - middle).square().mean(0).sqrt()
        spread = torch.where(self._where(m, "binary"), (middle * (1 - middle)).clamp(min=0).sqrt(), spread)
        return torch.where(self._where(m, "category", "ordinal"), torch.nan, spread)

    def _ends(self, m: str, level: float) -> tuple[Tensor, Tensor]:  # each shape: (G,)
        gaps = self.gaps[m]
        numbers = {kind: self._where(m, kind) for kind in ("real", "positive")}
        low, high = central(gaps.draws, gaps.means, level, **numbers)
        classes = self._where(m, "category")
        return torch.where(classes, torch.nan, low), torch.where(classes, torch.nan, high)

    def _cells(self, m: str, values: Tensor) -> Tensor:  # shape: (*batch, N, P), float64
        """Gaps filled with values, ``(*batch, G)``, other cells with the numbers that came."""
        cells = self.gaps[m].cells
        full = self.frames.cells(m).expand(*values.shape[:-1], *cells.shape).clone()
        full[..., cells] = values.double()
        return full

    def _filled(self, m: str, values: Tensor) -> Any:  # pandas.DataFrame, shape (N, P); values, shape: (G,)
        """Gaps filled with values, in the dtypes that came; other cells as they came."""
        return self.frames.to_frame(m, self._cells(m, values))

    def _stacked(self, m: str) -> Any:  # pandas.DataFrame, shape (S * N, P)
        """All draws, one table after the other."""
        pandas = optional_import("pandas", "tables")
        count, first = len(self.gaps[m].draws), self._filled(m, self.gaps[m].draws[0])
        dtypes = {dtype for dtype in first.dtypes}
        if len(dtypes) == 1 and all(isinstance(d, np.dtype) and d.kind == "f" for d in dtypes):
            whole = self._repeated(m, first)
        else:
            whole = self._long(m)
        empty = pandas.DataFrame(index=self.frames.index)
        return whole.set_axis(pandas.concat([empty] * count, keys=range(count), names=["draw"]).index)

    def _repeated(self, m: str, first: Any) -> Any:
        """A table of one floating dtype, again and again, the gaps of each copy filled with a draw of their own."""
        pandas = optional_import("pandas", "tables")
        gaps, cells = self.gaps[m], first.to_numpy()
        block = np.empty((len(gaps.draws), *cells.shape), cells.dtype)
        for table, draw in zip(block, gaps.draws.numpy(), strict=True):
            table[:] = cells
            table[gaps.cells.numpy()] = draw
        return pandas.DataFrame(block.reshape(-1, cells.shape[1]), columns=first.columns)

    def _long(self, m: str) -> Any:
        """Several draws at a time as one table of repeated rows."""
        pandas = optional_import("pandas", "tables")
        gaps, parts = self.gaps[m], []
        rows, columns = gaps.cells.shape
        for block in gaps.draws.split(max(_CELLS // max(rows * columns, 1), 1)):
            long = self.frames.take(np.tile(np.arange(rows), len(block)))
            parts.append(long.to_frame(m, self._cells(m, block).reshape(-1, columns)))
        return parts[0] if len(parts) == 1 else pandas.concat(parts)

    def _numbers(self, m: str, values: Tensor) -> Any:
        """A table of numbers, 0 outside the gaps."""
        pandas = optional_import("pandas", "tables")
        full = torch.zeros(self.gaps[m].cells.shape, dtype=torch.float64, device="cpu")
        full[self.gaps[m].cells] = values
        labels = self.frames.table(m).source.columns
        return pandas.DataFrame(full.numpy(), index=self.frames.index, columns=labels)
