"""The cells of all tables as one matrix of features, which the simpler methods work on.

Layer: quickstart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyro_mmvae.columns import Column
from pyro_mmvae.datasets import MultimodalDataset

__all__ = ["Block", "Encoding", "is_number"]

Key = tuple[str, int]  # modality and place of the column; the modality is "" for covariates


def is_number(column: Column) -> bool:
    """Whether errors of a column are differences, not wrong classes."""
    return column.kind in ("real", "positive", "count")


@dataclass(frozen=True)
class Block:
    """One column's features: itself, or one for each class."""

    column: Column
    start: int

    @property
    def places(self) -> slice:
        """Which features they are."""
        return slice(self.start, self.start + max(len(self.column.levels), 1))


class Encoding:
    """
    Cells as features: numbers minus mean over standard deviation, of the training rows, positive ones as logarithms;
    classes as 0 and 1 for each level and bools as they are, both minus the mean. Missing cells are NaN; 0 stands for
    the mean of a column.

    :ivar blocks: (modality, place of the column) -> its features.
    :ivar scale: standard deviations of numbers (of their logarithms), 1 elsewhere and where all are equal; shape (F,).
    """

    def __init__(self, train: MultimodalDataset) -> None:
        if train.frames is None:
            raise TypeError("train: expected a dataset made from DataFrames.")
        columns = {**train.frames.columns, "": train.frames.context}
        self.blocks: dict[Key, Block] = {}
        start = 0
        for m, own in columns.items():
            for i, column in enumerate(own):
                self.blocks[m, i] = Block(column, start)
                start = self.blocks[m, i].places.stop
        raw = self._raw(train)
        seen = ~np.isnan(raw)
        count = np.maximum(seen.sum(0), 1)
        self.mean = np.where(seen, raw, 0.0).sum(0) / count
        spread = np.sqrt(np.where(seen, (raw - self.mean) ** 2, 0.0).sum(0) / count)
        number = np.zeros(start, dtype=bool)
        for block in self.blocks.values():
            number[block.places] = is_number(block.column)
        first = raw[seen.argmax(0), np.arange(start)]
        varies = (seen & (raw != first)).any(0)  # of equal cells the spread is not 0 where their mean is rounded
        self.scale = np.where(number & varies, spread, 1.0)

    def features(self, ds: MultimodalDataset) -> np.ndarray:  # shape: (N, F)
        """The known cells of a dataset; NaN elsewhere."""
        return (self._raw(ds) - self.mean) / self.scale

    def _raw(self, ds: MultimodalDataset) -> np.ndarray:  # shape: (N, F)
        frames = ds.frames
        if frames is None:
            raise TypeError("ds: expected a dataset made from DataFrames.")
        cells = {m: frames.cells(m).numpy() for m in frames.columns}
        parts = []
        for (m, i), block in self.blocks.items():
            x = cells[m][:, i] if m else ds.data[str(block.column.name)].double().cpu().numpy()
            x = np.log(x) if block.column.kind == "positive" else x
            parts.append(_one_hot(x, len(block.column.levels)) if block.column.levels else x[:, None])
        return np.concatenate(parts, 1)

    def of(self, keys: Sequence[Key]) -> np.ndarray:
        """Places of the features of some columns."""
        return np.concatenate([np.r_[self.blocks[k].places] for k in keys])

    def cells(
        self,
        key: Key,
        features: np.ndarray,  # shape: (N, own)
    ) -> np.ndarray:  # shape: (N,)
        """A column's features as cells: the number, True or False, the most probable class."""
        block = self.blocks[key]
        x = features * self.scale[block.places] + self.mean[block.places]
        if block.column.levels:
            return x.argmax(1).astype(float)
        if block.column.kind == "binary":
            return (x[:, 0] > 0.5).astype(float)
        return np.exp(x[:, 0]) if block.column.kind == "positive" else x[:, 0]


def _one_hot(codes: np.ndarray, levels: int) -> np.ndarray:  # shape: (N, levels)
    known = ~np.isnan(codes)
    found = np.full((len(codes), levels), np.nan)
    found[known] = np.eye(levels)[codes[known].astype(int)]
    return found
