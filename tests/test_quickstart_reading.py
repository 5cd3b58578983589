"""CSV files as DataFrames: ids, kinds of columns, numbers to the last bit."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from pyro_mmvae.quickstart.cohort.reading import name_of, read_tables

pytest.importorskip("pandas")


def lines(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def read(path: Path, **options):
    return read_tables([path], **options).frames[name_of(path)]


def test_kinds_of_columns_are_read(tmp_path):
    flags = ("false", "true", "true"), ("", "TRUE", "TRUE")
    rows = [
        f"{i},{i / 3!r},{i},{i if i % 2 else ''},{flags[0][i % 3]},{flags[1][i % 3]},{'ab'[i % 2]}"
        for i in range(1, 13)
    ]
    frame = read(lines(tmp_path / "my-cohort.v2.csv", "id,real,whole,gaps,yes,maybe,class", *rows))
    kinds = {"real": "float64", "whole": "int64", "gaps": "Int64", "yes": "bool", "maybe": "boolean"}
    assert frame.dtypes.astype(str).to_dict() == {**kinds, "class": "category"}
    assert frame["real"].tolist() == [i / 3 for i in range(1, 13)]
    assert frame.index.tolist() == list(range(1, 13))


def test_numbers_are_read_to_the_last_bit(tmp_path):
    numbers = np.random.default_rng(0).normal(size=2000) * 10.0 ** np.arange(-150, 150).repeat(10)[:2000]
    frame = read(lines(tmp_path / "a.csv", "id,x", *(f"s{i},{float(x)!r}" for i, x in enumerate(numbers))))
    assert (frame["x"].to_numpy() == numbers).all()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["1", "2"], ["2", "3"], [1, 2]),
        (["1", "2"], ["2", "x"], ["1", "2"]),
        (["01", "2"], ["2", "3"], ["01", "2"]),
        (["NA", "2"], ["2", "3"], ["NA", "2"]),
    ],
)
def test_ids_are_whole_numbers_in_all_files_or_text_in_all(tmp_path, first, second, expected):
    paths = [
        lines(tmp_path / f"{m}.csv", "id,x", *(f"{i},1.5" for i in own)) for m, own in (("a", first), ("b", second))
    ]
    tables = read_tables(paths)
    assert tables.frames["a"].index.tolist() == expected
    assert {type(i) for i in tables.frames["b"].index} == {type(expected[0])}


def test_packed_files_and_those_of_r(tmp_path):
    with gzip.open(tmp_path / "a.csv.gz", "wt", encoding="utf-8") as file:
        file.write("id,x\np1,1.5\np2,\n")
    assert read(tmp_path / "a.csv.gz").index.tolist() == ["p1", "p2"]
    short = read(lines(tmp_path / "r.csv", '"x","y"', '"p1",1.5,2.5', '"p2",NA,3.5'))
    assert short.columns.tolist() == ["x", "y"]
    assert short.loc["p1"].tolist() == [1.5, 2.5]
    assert list(read(lines(tmp_path / "t.tsv", "id\tx", "p1\t2.5")).loc["p1"]) == [2.5]


def test_text_with_many_values_can_be_classes_or_left_out(tmp_path):
    path = lines(tmp_path / "a.csv", "id,x,t", *(f"p{i},{i}.5,word {i}" for i in range(30)))
    assert str(read(path, classes={"a": ["t"]})["t"].dtype) == "category"
    assert list(read(path, drop={"a": ["t"]})) == ["x"]
