"""IDX files written byte by byte as the format says, and the real MNIST test set where it lies beside the project."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_mmvae.datasets import mnist, read_idx

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist10k"
CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(values: np.ndarray, code: str = "u1") -> bytes:
    header = bytes([0, 0, CODES[code], values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(f">{code}").tobytes()


def write_mnist(root: Path, prefix: str, n: int = 3, labels: int | None = None, *, zipped: bool = True) -> np.ndarray:
    images = np.arange(n * 28 * 28).reshape(n, 28, 28) % 256
    files = {
        "images-idx3-ubyte": idx(images),
        "labels-idx1-ubyte": idx(np.arange(labels if labels is not None else n) % 10),
    }
    for name, content in files.items():
        path = root / f"{prefix}-{name}{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)
    return images


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("code", list(CODES))
def test_read_idx(tmp_path: Path, code: str, zipped: bool) -> None:
    values = (np.arange(24) * (5 if code != "i1" else 1)).reshape(2, 3, 4)
    if code not in ("u1", "f4", "f8"):
        values = -values
    content = idx(values, code)
    (tmp_path / "file").write_bytes(gzip.compress(content) if zipped else content)  # the content tells, not the name
    tensor = read_idx(tmp_path / "file")
    assert tensor.tolist() == values.tolist()
    assert tensor.numpy().dtype == np.dtype(code)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no IDX file, it starts with b''"),
        (b"PNG.....", "no IDX file, it starts with b'PNG.'"),
        (b"\0\0\x07\x01\0\0\0\x01a", "no IDX file"),
        (idx(np.arange(6))[:-1], "the header says 14 bytes, the file has 13"),
        (idx(np.arange(6)) + b"x", "the header says 14 bytes, the file has 15"),
        (idx(np.ones((2, 2)))[:9], "the header says .* bytes, the file has 9"),
        (b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff", f"the header says {12 + 0xFFFFFFFF**2} bytes"),
        (gzip.compress(idx(np.arange(6)))[:-9], "gzip file is damaged or truncated"),
        (gzip.compress(idx(np.arange(6)))[:10] + b"\xff" * 20, "gzip file is damaged or truncated"),
    ],
    ids=["empty", "png", "type", "short", "long", "header", "huge", "cut gzip", "bad gzip"],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken-file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"broken-file: .*{message}"):
        read_idx(path)


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("split, prefix", [("train", "train"), ("test", "t10k")])
def test_mnist(tmp_path: Path, split: str, prefix: str, zipped: bool) -> None:
    images = write_mnist(tmp_path, prefix, zipped=zipped)
    ds = mnist(tmp_path, split)  # type: ignore[arg-type]
    assert ds.data["image"].shape == (3, 1, 28, 28) and ds.data["image"].dtype == torch.float32
    np.testing.assert_allclose(ds.data["image"][:, 0].numpy() * 255, images, atol=1e-4)  # float32 at 255
    assert ds.data["label"].tolist() == ds.labels.tolist() == [0, 1, 2] and ds.data["label"].dtype == torch.int64


def test_mnist_errors(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"train-images-idx3-ubyte\(.gz\) is not there. Fix: put the four files"
    ):
        mnist(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "absent")
    with pytest.raises(ValueError, match="'train' or 'test', got 'valid'"):
        mnist(tmp_path, "valid")  # type: ignore[arg-type]
    write_mnist(tmp_path, "t10k", n=3, labels=4)
    with pytest.raises(ValueError, match=r"same number of rows, got {'image': 3, 'label': 4}"):
        mnist(tmp_path, "test")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.arange(3)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(3)))
    with pytest.raises(ValueError, match=r"expected images \(N, H, W\) and labels \(N,\)"):
        mnist(tmp_path, "train")


@pytest.mark.skipif(not MNIST.is_dir(), reason="the MNIST test set is not beside the project")
def test_the_real_test_set() -> None:
    ds = mnist(MNIST, "test")
    assert len(ds) == 10_000 and ds.data["image"].shape[1:] == (1, 28, 28)
    assert ds.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert ds.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(ds.data["image"].mean().item() - 0.1325) < 1e-4  # the published mean of the test images
