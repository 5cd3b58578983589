"""Breast tumors of The Cancer Genome Atlas with mRNA, microRNA and protein, read from a folder without a download.
Layer: datasets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyro_mmvae._optional import optional_import
from pyro_mmvae.datasets.multimodal import MultimodalDataset

__all__ = ["tcga_brca"]

MODALITIES = ("mrna", "mirna", "protein")


def tcga_brca(root: str | os.PathLike[str]) -> tuple[MultimodalDataset, MultimodalDataset]:
    """
    Training and test patients of the TCGA breast cancer subset, as modalities ``mrna``, ``mirna``, ``protein``.

    150 training patients have 200 mRNAs, 184 microRNAs and 142 proteins each; the 70 test patients have no protein.
    All columns are real numbers on a logarithmic scale. ``labels`` is a Series with the subtype: Basal, Her2 or LumA.

    The folder holds ``train_mrna.csv``, ``train_subtype.csv``, ``test_mrna.csv`` and so on, each also with the ending
    ``.gz``; the first column is the patient. What a file of the test set lacks is missing there. The same patients are
    in the R package mixOmics as ``breast.TCGA`` [1].

    :param root: the folder; nothing is downloaded.
    :returns: training and test set; the test set has the columns of the training set.
    :raises FileNotFoundError: if a file of the training set is absent, or all of the test set are; says which.
    :raises ValueError: if a patient of any table has no subtype.

    [1] *mixOmics: An R package for omics feature selection and multiple data integration*, Rohart, Gautier, Singh and
    Le Cao, PLOS Computational Biology 2017.
    """
    train = {m: _read(root, f"train_{m}") for m in MODALITIES}
    absent = [m for m, frame in train.items() if frame is None]
    test = {m: frame for m in MODALITIES if (frame := _read(root, f"test_{m}")) is not None}
    if absent or not test:
        name = f"train_{absent[0]}" if absent else "test_mrna"
        raise FileNotFoundError(f"{Path(root) / name}.csv(.gz) is not there. Fix: root=the folder with the tables.")
    first = MultimodalDataset.from_frames(train, labels=_subtype(root, "train"))
    return first, MultimodalDataset.from_frames(test, like=first, labels=_subtype(root, "test"))


def _subtype(root: str | os.PathLike[str], part: str) -> Any:  # pandas.Series
    frame = _read(root, f"{part}_subtype")
    if frame is None:
        raise FileNotFoundError(f"{Path(root) / f'{part}_subtype.csv'}(.gz) is not there.")
    return frame.iloc[:, 0].rename("subtype")


def _read(root: str | os.PathLike[str], stem: str) -> Any:  # pandas.DataFrame, or None
    """The table in a file with this name, the first column as the index, as text."""
    pandas = optional_import("pandas", "tables")
    for path in (Path(root) / f"{stem}.csv", Path(root) / f"{stem}.csv.gz"):
        if path.is_file():
            frame = pandas.read_csv(path, dtype={0: str})
            return frame.set_index(frame.columns[0])
    return None
