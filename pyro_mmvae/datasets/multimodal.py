"""The dataset: named modalities with one obs_mask each, covariates, and labels that no model sees.
Layer: datasets."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pyro_mmvae.columns import Scaling
from pyro_mmvae.datasets import _checks, _hiding, _indexing, _splitting
from pyro_mmvae.datasets._frames_describe import Description, describe
from pyro_mmvae.datasets._frames_read import read_frames
from pyro_mmvae.datasets.batches import Batches
from pyro_mmvae.datasets.frames import Frames

__all__ = ["MultimodalDataset"]

Sample = tuple[dict[str, Tensor], dict[str, Tensor]]


class MultimodalDataset(Dataset[Any]):
    r"""
    Rows of several modalities, any of which, or any feature of which, may be missing.

    A floating entry that is NaN is missing: a row that is all NaN is a missing modality, single NaN cells are missing
    features. ``obs_mask`` can hide more, never less. Memory is shared with the arrays given, and nothing is written
    to it; what lies under the mask is stored as it came.

    Example::

        >>> nan = float("nan")
        >>> ds = MultimodalDataset({"a": torch.tensor([[1.0, 2.0], [nan, nan]]), "b": torch.tensor([0, 1])})
        >>> ds.obs_mask["a"]
        tensor([ True, False])
        >>> data, obs_mask = ds[0]                     # one sample, so that a DataLoader takes the dataset
        >>> ds
        MultimodalDataset(2 rows)
          a: (2,) float32, observed 0.50
          b: () int64, observed 1.00

    :param data: modality name to tensor or numpy array of shape (N, \*event).
    :param obs_mask: modality name to a bool tensor, True = observed, (N,) or (N, \*event); an absent name or None:
        all that is not NaN is observed.
    :param labels: anything with N entries to be indexed (tensor, array, list, pandas object), carried along the rows
        and never given to a model.
    :param covariates: name to tensor or array of shape (N, ...), always complete; merged into ``data``, without a mask.
    :ivar data: dict of tensors, modalities and covariates.
    :ivar obs_mask: dict of bool tensors, one per modality: (N,), or (N, \*event) where some row is observed in part.
    :ivar modalities: names of the modalities, in the order given.
    :ivar covariates: names of the covariates.
    :ivar truth: the generating model of a simulated dataset, else None.
    :ivar frames: the tables that it was made from by :meth:`from_frames`, else None.
    :raises ValueError: for ragged lengths, no rows, an unknown name, a wrong mask shape, an observed infinite value, an
        incomplete covariate.
    :raises TypeError: for a float or integer mask, or data that is no numeric array.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        obs_mask: Mapping[str, Any] | None = None,
        labels: Any = None,
        covariates: Mapping[str, Any] | None = None,
    ) -> None:
        modalities = _checks.check_arrays(data, "modality")
        given = _checks.check_arrays(covariates if covariates is not None else {}, "covariate")
        if not modalities:
            raise ValueError("data: expected at least one modality, got an empty mapping.")
        both = sorted(set(modalities) & set(given))
        if both:
            raise ValueError(f"{', '.join(both)}: both a modality and a covariate. Fix: rename or drop one of the two.")
        self.data: dict[str, Tensor] = {**modalities, **given}
        self.modalities: tuple[str, ...] = tuple(modalities)
        self.covariates: tuple[str, ...] = tuple(given)
        n = _checks.check_rows(self.data)
        masks = _checks.check_mask_keys(obs_mask, self.modalities, self.covariates)
        self.obs_mask: dict[str, Tensor] = {m: _checks.observed(m, x, masks.get(m)) for m, x in modalities.items()}
        for name, value in given.items():
            _checks.check_complete(name, value)
        _checks.check_labels(labels, n)
        self.labels = labels
        self.truth: Any = None
        self.frames: Frames | None = None

    @classmethod
    def from_frames(
        cls,
        frames: Mapping[str, Any],
        context: Any = None,
        scale: Scaling = "standard",
        likelihoods: Mapping[str, Any] | None = None,
        like: MultimodalDataset | None = None,
        *,
        labels: Any = None,
    ) -> MultimodalDataset:
        r"""
        A dataset from DataFrames, one per modality, joined by their index (outer join, order of first appearance).

        A row that a frame lacks is a missing modality, a cell that is NaN, None or NA a missing feature. Each modality
        becomes one tensor (N, P) of cells in the units of the data; classes are numbered by their place in the levels.

        The dtype of a column chooses its likelihood:

        =========================================  =====================================================
        bool                                       ``bernoulli``
        category; ordered category                 ``categorical``; ``ordinal``
        integers that are all 0 or 1               ``bernoulli``
        two other integers from 0 on, each in at   ``categorical``
        least 5 rows
        other integers from 0 on                   ``negative_binomial``
        integers, some negative                    ``normal``
        floats                                     ``normal``
        floats that are 0 and 1 only               ``bernoulli``
        floats with gaps, 10 or more cells of      as the integers that pandas made them from
        which are whole, and none is not
        =========================================  =====================================================

        Text and dates are errors that name the ways out. Columns with nothing observed are dropped with a warning.
        :meth:`describe` says what was chosen, and where another choice may be better.

        Example::

            >>> import pandas as pd
            >>> blood = pd.DataFrame({"crp": [1.5, None, 0.3], "smoker": [True, False, True]}, index=["a", "b", "c"])
            >>> genes = pd.DataFrame({"TP53": [7.1, 6.5]}, index=["c", "d"])
            >>> age = pd.DataFrame({"age": [61, 54, 70, 48]}, index=["a", "b", "c", "d"])
            >>> ds = MultimodalDataset.from_frames({"blood": blood, "genes": genes}, context=age)
            >>> ds
            MultimodalDataset(4 rows)
              blood: (2,) float32, observed 0.62
              genes: (1,) float32, observed 0.50
              age: () float32, covariate
            >>> [(c.name, c.likelihood) for c in ds.frames.columns["blood"]]
            [('crp', 'normal'), ('smoker', 'bernoulli')]

        :param frames: modality name to DataFrame; a Series is one column.
        :param context: DataFrame of covariates under their own names, complete for every row: numbers and bools become
            floats (N,), categories int64 codes (N,). Ids of no frame are left out.
        :param scale: what networks made for this dataset standardize by, fitted where they are made, on the observed
            cells of the training rows: mean and standard deviation, median and interquartile range, or nothing.
        :param likelihoods: modality to {column: likelihood}, or to one for all its columns; see
            :data:`pyro_mmvae.columns.LIKELIHOODS`.
        :param like: a dataset made from frames whose columns, levels and likelihoods these are to have: modalities and
            columns that it alone has are missing here; columns that only the frames have are dropped with a warning.
        :param labels: as in the constructor; a pandas object is aligned by its index.
        :raises ValueError: for repeated ids or columns, frames that share no ids, infinite cells, cells that their
            likelihood cannot have, unknown levels, incomplete context; names the column and the ids.
        :raises TypeError: for anything but DataFrames, text, dates, and labels of columns that are no strings or
            integers.
        """
        read = read_frames(frames, context, scale, likelihoods, like)
        ds = cls(read.data, labels=read.frames.aligned("labels", labels), covariates=read.covariates)
        ds.frames = read.frames
        return ds

    def describe(self) -> Description:
        """
        Columns with likelihood, observed share, mean and spread or levels, and notes; and which modalities are seen
        together how often.

        Example::

            >>> import pandas as pd
            >>> frame = pd.DataFrame({"a": [1.5, 2.5, None], "b": pd.Categorical(["x", "y", "x"])})
            >>> MultimodalDataset.from_frames({"blood": frame}).describe()
            3 rows
            <BLANKLINE>
            blood: 2 columns
                likelihood observed mean   sd        levels
            a       normal      67%    2  0.5
            b  categorical     100%            x (2), y (1)
            <BLANKLINE>
            patterns of modalities
            blood  rows share
                x     3  100%

        :returns: its tables ``columns``, ``context`` and ``patterns`` are DataFrames.
        """
        return describe(self)

    def __len__(self) -> int:
        return len(self.data[self.modalities[0]])

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}({len(self)} rows)"]
        for name, value in self.data.items():
            mask = self.obs_mask.get(name)
            state = "covariate" if mask is None else f"observed {mask.double().mean().item():.2f}"
            lines.append(f"  {name}: {tuple(value.shape[1:])} {str(value.dtype).removeprefix('torch.')}, {state}")
        return "\n".join(lines)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice | Tensor | np.ndarray | Sequence[int]) -> MultimodalDataset: ...
    def __getitem__(self, index: Any) -> Sample | MultimodalDataset:
        """
        One sample as a pair ``(data, obs_mask)`` for an integer; a dataset for a slice, integer or bool index tensor.

        A slice with a positive step shares memory. The shape of each obs_mask is kept.

        :raises IndexError: if an index is out of range.
        :raises ValueError: if no row is selected, or a bool index has not one entry per row.
        """
        if not isinstance(index, (slice, Tensor, np.ndarray, Sequence)):
            return self._sample(operator.index(index))
        if isinstance(index, (Tensor, np.ndarray)) and index.ndim == 0:
            return self._sample(operator.index(index))
        rows = _indexing.rows_of(index, len(self))
        data = {name: value[_indexing.on_device(rows, value)] for name, value in self.data.items()}
        obs_mask = {name: mask[_indexing.on_device(rows, mask)] for name, mask in self.obs_mask.items()}
        frames = None if self.frames is None else self.frames.take(rows)
        return self._replace(data=data, obs_mask=obs_mask, labels=_indexing.take(self.labels, rows), frames=frames)

    def _sample(self, i: int) -> Sample:
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of a dataset with {len(self)} rows.")
        return {m: x[i] for m, x in self.data.items()}, {m: mask[i] for m, mask in self.obs_mask.items()}

    def _replace(self, **changes: Any) -> MultimodalDataset:
        """A shallow copy with other attributes; all the rest, such as ``truth``, goes along."""
        new = copy.copy(self)
        for name, value in changes.items():
            setattr(new, name, value)
        return new

    def hide(
        self,
        rate: float = 0.5,
        mechanism: str = "mcar",
        seed: int = 0,
        *,
        keep_one: bool = True,
        level: Literal["modality", "feature"] = "modality",
    ) -> MultimodalDataset:
        r"""
        A new dataset with more entries hidden at random; the values are gone from it, the original keeps the truth.

        An entry is a modality of a sample (``level="modality"``) or a single cell (``"feature"``). Hidden values are
        replaced by NaN, or by 0 where the dtype has no NaN. Covariates and labels stay.

        With ``keep_one`` every sample keeps at least one of the k entries it had, and ``rate`` is still the expected
        fraction hidden: entries are hidden independently with a probability p that solves :math:`p - p^k/k = rate`,
        and a sample that lost all gets one back. Samples with :math:`(k-1)/k < rate` keep exactly one; so with two
        modalities and a rate of 0.5 no sample stays complete. Without ``keep_one`` each entry is hidden independently
        with probability ``rate``.

        Example::

            >>> ds = MultimodalDataset({"a": torch.randn(100, 2), "b": torch.randn(100, 3)})
            >>> seen = torch.stack(list(ds.hide(0.3, seed=1).obs_mask.values()))
            >>> bool(seen.any(0).all()), bool(seen.all())
            (True, False)

        :param rate: fraction of the observed entries to hide, in [0, 1].
        :param mechanism: ``"mcar"``, missing completely at random.
        :raises ValueError: if ``keep_one`` cannot reach the rate.
        :raises NotImplementedError: for another mechanism.
        """
        if mechanism != "mcar":
            raise NotImplementedError(
                f"mechanism {mechanism!r}: known is 'mcar'. Fix: give MultimodalDataset an obs_mask of your own."
            )
        if level not in ("modality", "feature"):
            raise ValueError(f"level: expected 'modality' or 'feature', got {level!r}.")
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: expected a fraction in [0, 1], got {rate}.")
        blocks = [self._entries(m, level) for m in self.modalities]
        entries = torch.cat(blocks, -1)
        most = (entries.shape[-1] - 1) / entries.shape[-1]
        if keep_one and rate > most:
            raise ValueError(
                f"rate {rate}: at most {most:.3g} if every sample keeps one of its {entries.shape[-1]} entries. "
                f"Fix: a lower rate, or keep_one=False."
            )
        hidden = _hiding.hide_mcar(entries, rate, keep_one, _checks.generator(seed))
        parts = hidden.split([block.shape[-1] for block in blocks], -1)
        return self._hide(dict(zip(self.modalities, parts, strict=True)))

    def _entries(self, name: str, level: str) -> Tensor:  # shape: (N, 1) or (N, number of cells), on the CPU
        mask = self.obs_mask[name]
        mask = _checks.some(mask) if level == "modality" else _checks.cells(mask, self.data[name])
        return mask.reshape(len(self), -1).cpu()

    def _hide(self, hidden: Mapping[str, Tensor]) -> MultimodalDataset:
        data, obs_mask, gone = dict(self.data), {}, {}
        for m, entries in hidden.items():
            data[m], obs_mask[m], gone[m] = _hiding.blanked(self.data[m], self.obs_mask[m], entries)
        frames = None if self.frames is None else self.frames.hide(gone)
        return self._replace(data=data, obs_mask=obs_mask, frames=frames)

    def split(
        self,
        fractions: float | Sequence[float] = 0.8,
        *,
        seed: int = 0,
        groups: Any = None,
        stratify: Any = None,
    ) -> tuple[MultimodalDataset, ...]:
        """
        A random partition of the rows: two parts for one fraction, as many parts as fractions for a sequence.

        With ``groups`` no group is in two parts (patients with several samples, hospitals); the fractions are met as
        far as a random order of whole groups allows. With ``stratify`` every class has its share of the rows in each
        part, rounded up or down.

        Example::

            >>> ds = MultimodalDataset({"a": torch.arange(10)})
            >>> [len(part) for part in ds.split(0.8)], [len(part) for part in ds.split([0.5, 0.3, 0.2], seed=1)]
            ([8, 2], [5, 3, 2])
            >>> train, test = ds.split(0.5, groups=[0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
            >>> train, test = ds.split(0.5, stratify=["a"] * 6 + ["b"] * 4)

        :param groups: one value per row: array, tensor, sequence, pandas Series (aligned by its index if the dataset
            was made from frames), or the name of a covariate, or of a column of ``labels``.
        :param stratify: classes, in the same forms.
        :raises ValueError: if a part would be empty, a sequence does not sum to 1, values are missing or of another
            number, there are fewer groups than parts, or every class has a single row.
        :raises NotImplementedError: for both groups and classes.
        """
        parts = _splitting.parts_of(self, fractions, seed, groups, stratify)
        return tuple(self[rows] for rows in parts)

    def complete_cases(self) -> MultimodalDataset:
        """
        The rows in which every cell of every modality is observed.

        :raises ValueError: if there is none.
        """
        complete = torch.stack([_checks.every(mask) for mask in self.obs_mask.values()]).all(0)
        if not complete.any():
            raise ValueError(f"none of the {len(self)} rows is complete.")
        return self[complete]

    def batches(
        self,
        batch_size: int,
        shuffle: bool = False,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Batches:
        """
        A re-iterable of ``(data, obs_mask)`` batches, cut from whole tensors; faster than a ``DataLoader``.

        Example::

            >>> ds = MultimodalDataset({"a": torch.arange(10)})
            >>> sorted(i for data, obs_mask in ds.batches(4, shuffle=True, seed=0) for i in data["a"].tolist())
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

        :param seed: of the shuffling; or a ``generator``. Without either torch's global generator is used. Each
            iteration goes on with the generator, so epochs differ.
        :raises ValueError: if ``batch_size`` is below 1, or both a seed and a generator are given.
        """
        if seed is not None and generator is not None:
            raise ValueError("batches takes a seed or a generator, not both.")
        own = _checks.generator(seed) if seed is not None else generator
        return Batches(self.data, self.obs_mask, batch_size, shuffle=shuffle, generator=own, drop_last=drop_last)

    def to(self, device: torch.device | str | None = None, *, dtype: torch.dtype | None = None) -> MultimodalDataset:
        """A dataset on another device; ``dtype`` casts the floating modalities and covariates."""
        data = {m: x.to(device, dtype if x.is_floating_point() else None) for m, x in self.data.items()}
        labels = self.labels.to(device) if isinstance(self.labels, Tensor) else self.labels
        return self._replace(data=data, obs_mask={m: x.to(device) for m, x in self.obs_mask.items()}, labels=labels)

    @staticmethod
    def collate(samples: Sequence[Sample]) -> Sample:
        """
        Stack samples to a batch ``(data, obs_mask)``, for ``DataLoader(ds, collate_fn=ds.collate)``.

        Semantically equivalent to the loader's own collation, but for the tuple in place of a list.
        """
        data, obs_mask = default_collate(list(samples))
        return data, obs_mask
