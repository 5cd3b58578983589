"""The IDX file format and the MNIST files that use it, read from a folder without a download.
Layer: datasets."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae.datasets.multimodal import MultimodalDataset

__all__ = ["mnist", "read_idx"]

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    r"""
    The array in an IDX file, gzipped or not.

    The format: two zero bytes, a byte for the type, a byte for the number of dimensions, the sizes as big-endian
    uint32, then the values, big-endian.

    Example::

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels"
        >>> _ = path.write_bytes(b"\0\0\x08\x01" + b"\0\0\0\x03" + bytes([7, 2, 1]))
        >>> read_idx(path)
        tensor([7, 2, 1], dtype=torch.uint8)

    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is not IDX, or shorter or longer than its header says.
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path}: the gzip file is damaged or truncated ({error}). Fix: fetch it again."
            ) from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _DTYPES:
        raise ValueError(f"{path}: no IDX file, it starts with {raw[:4]!r}.")
    dtype, ndim = np.dtype(_DTYPES[raw[2]]), raw[3]
    start = 4 + 4 * ndim
    shape = struct.unpack(f">{ndim}I", raw[4:start]) if len(raw) >= start else ()
    expected = start + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(raw) != expected:
        raise ValueError(f"{path}: the header says {expected} bytes, the file has {len(raw)}. Fix: fetch it again.")
    values = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return torch.from_numpy(values.astype(dtype.newbyteorder("=")))


def mnist(root: str | os.PathLike[str], split: Literal["train", "test"] = "train") -> MultimodalDataset:
    """
    MNIST, or a set with the same files such as Fashion-MNIST, from a folder: ``image`` and ``label``.

    ``image``: (1, 28, 28), float32 in [0, 1]; ``label``: int64 classes 0 to 9, also in ``labels``. The folder holds
    ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte`` (test: ``t10k-...``), each also with the ending ``.gz``.

    :param root: the folder; nothing is downloaded.
    :raises FileNotFoundError: if a file is absent; says which.
    :raises ValueError: if a file is damaged, or images and labels differ in number.
    """
    stems = {"train": "train", "test": "t10k"}
    if split not in stems:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}.")
    pixels = read_idx(_find(root, f"{stems[split]}-images-idx3-ubyte"))
    label = read_idx(_find(root, f"{stems[split]}-labels-idx1-ubyte")).long()
    if pixels.dim() != 3 or label.dim() != 1:
        raise ValueError(f"{root}: expected images (N, H, W) and labels (N,), got {pixels.shape}, {label.shape}.")
    return MultimodalDataset({"image": pixels.float().unsqueeze(1) / 255, "label": label}, labels=label.clone())


def _find(root: str | os.PathLike[str], name: str) -> Path:
    for path in (Path(root) / name, Path(root) / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{Path(root) / name}(.gz) is not there. Fix: put the four files of MNIST in {root} (the other split may be "
        "there: split='train' reads train-..., split='test' t10k-...); "
        f"torchvision.datasets.MNIST(download=True) leaves them in its folder MNIST/raw."
    )
