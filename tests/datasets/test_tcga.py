"""Files of the format written here, and the real tables where they lie beside the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_mmvae.datasets import tcga_brca

TCGA = Path(__file__).parents[3] / "shared" / "data" / "tcga_brca"


def write(root: Path, *, zipped: bool = True) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    frames = {}
    for part, n, tables in (("train", 6, ("mrna", "mirna", "protein")), ("test", 4, ("mrna", "mirna"))):
        ids = pd.Index([f"{i}E1" for i in range(n)], name="sample")  # as numbers they would be 10, 20, ...
        for m in tables:
            frame = pd.DataFrame(rng.normal(size=(n, 3)).round(6), index=ids, columns=[f"{m}{i}" for i in range(3)])
            frames[f"{part}_{m}"] = frame
            frame.to_csv(root / f"{part}_{m}.csv{'.gz' if zipped else ''}")
        subtype = pd.DataFrame({"subtype": ["Basal", "LumA"] * (n // 2)}, index=ids)
        subtype.to_csv(root / f"{part}_subtype.csv")
    return frames


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_files_become_a_pair_of_data_sets(tmp_path: Path, zipped: bool) -> None:
    frames = write(tmp_path, zipped=zipped)
    train, test = tcga_brca(tmp_path)
    assert train.frames is not None and test.frames is not None
    assert train.modalities == test.modalities == ("mrna", "mirna", "protein")
    assert train.frames.columns == test.frames.columns
    for m in train.modalities:
        pd.testing.assert_frame_equal(train.frames.original[m], frames[f"train_{m}"], check_exact=True)
    pd.testing.assert_frame_equal(test.frames.original["mirna"], frames["test_mirna"], check_exact=True)
    assert not test.obs_mask["protein"].any() and test.obs_mask["mrna"].all() and train.obs_mask["protein"].all()
    assert train.labels.tolist() == ["Basal", "LumA"] * 3 and test.labels.index.tolist() == ["0E1", "1E1", "2E1", "3E1"]
    assert test.frames.index.tolist() == ["0E1", "1E1", "2E1", "3E1"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("train_mirna.csv.gz", r"train_mirna.csv\(.gz\) is not there. Fix: root=the folder"),
        ("train_subtype.csv", r"train_subtype.csv\(.gz\) is not there"),
    ],
)
def test_an_absent_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        tcga_brca(tmp_path)
    for m in ("mrna", "mirna"):
        (tmp_path / f"test_{m}.csv.gz").unlink()
    with pytest.raises(FileNotFoundError):
        tcga_brca(tmp_path)


@pytest.mark.skipif(not TCGA.is_dir(), reason="the tables are not beside the project")
def test_the_real_tables() -> None:
    train, test = tcga_brca(TCGA)
    assert len(train) == 150 and len(test) == 70
    assert [train.data[m].shape[1] for m in train.modalities] == [200, 184, 142]
    assert all(bool(train.obs_mask[m].all()) for m in train.modalities) and not test.obs_mask["protein"].any()
    assert test.obs_mask["mrna"].all() and test.obs_mask["mirna"].all()
    assert train.labels.value_counts().to_dict() == {"LumA": 75, "Basal": 45, "Her2": 30}
    assert train.frames is not None
    assert {c.likelihood for columns in train.frames.columns.values() for c in columns} == {"normal"}
    raw = pd.read_csv(TCGA / "train_protein.csv.gz", index_col=0)
    pd.testing.assert_frame_equal(train.frames.original["protein"], raw, check_exact=True)
    halves = train.split(0.5, stratify=train.labels)
    assert [half.labels.value_counts()["Her2"] for half in halves] == [15, 15]
