"""Scikit-learn's handwritten digits, cut in two halves and a label: real data without a download.
Layer: datasets."""

from __future__ import annotations

from typing import Literal

import torch

from pyro_mmvae.datasets.multimodal import MultimodalDataset

__all__ = ["digits"]


def digits(split: Literal["train", "test"] | None = None) -> MultimodalDataset:
    """
    The 1,797 handwritten digits embedded in scikit-learn, 8 x 8 pixels, as three modalities.

    ``top`` and ``bottom``: the halves of the image, (4, 8), float32, grey levels that are counts 0 to 16; ``label``:
    the digit, an int64 class 0 to 9. The digit is also in ``labels``, for plots and scores: it stays where the
    modality is hidden.

    The standard train and test split is ``digits().split(0.8, seed=0)``: 1,438 and 359 rows.

    Example::

        >>> ds = digits()
        >>> ds
        MultimodalDataset(1797 rows)
          top: (4, 8) float32, observed 1.00
          bottom: (4, 8) float32, observed 1.00
          label: () int64, observed 1.00
        >>> train, test = ds.split(0.8, seed=0)
        >>> train = train.hide(0.5, seed=0)           # half of all entries, at least one left in each row

    :param split: ``"train"`` or ``"test"`` of the standard split; None: all rows.
    :raises ValueError: for another split.
    """
    if split not in (None, "train", "test"):
        raise ValueError(f"split: expected 'train', 'test' or None, got {split!r}.")
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.from_numpy(source.images).float()  # shape: (1797, 8, 8)
    label = torch.from_numpy(source.target).long()
    ds = MultimodalDataset({"top": images[:, :4], "bottom": images[:, 4:], "label": label}, labels=label.clone())
    if split is None:
        return ds
    train, test = ds.split(0.8, seed=0)
    return train if split == "train" else test
