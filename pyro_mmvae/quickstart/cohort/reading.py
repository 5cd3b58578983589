"""CSV files as DataFrames: ids, numbers, bools and classes, or an error that says what is wrong in which file.

Layer: quickstart; pandas is imported where it is used.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_mmvae._optional import optional_import

__all__ = ["CONTEXT", "Tables", "name_of", "read_tables"]

MOST_CLASSES = 20  # different values of a text column, up to which it is read as classes
CONTEXT = "context"  # stands for the file of covariates where columns are named
_WHOLE_ID = re.compile(r"0|-?[1-9]\d{0,17}")
_SHOWN = 5  # columns of text that an error lists
_GAP = "an empty cell where a number is missing"
_FORMS = {  # of cells that are no numbers yet -> what makes them so
    re.compile(r"(\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}).*"): "dates as days since some start",
    re.compile(r"[-+]?[\d.,]+ ?%"): "percentages without the sign",
    re.compile(r"[-+]?[\d.,]*,[\d.,]+"): "numbers with a decimal point, without commas",
}
_EXACT = 2.0**53  # whole numbers below are exact as floats


@dataclass(frozen=True)
class Tables:
    """
    What the files hold.

    :ivar frames: modality -> DataFrame, indexed by the sample ids.
    :ivar context: covariates, or None.
    :ivar paths: modality -> file.
    """

    frames: dict[str, Any]
    context: Any
    paths: dict[str, Path]


def read_tables(
    paths: Sequence[Path],
    context: Path | None = None,
    *,
    classes: Mapping[str, Collection[str]] | None = None,
    drop: Mapping[str, Collection[str]] | None = None,
) -> Tables:
    """
    One DataFrame per file, named by the file; the first column holds the ids of the samples.

    Ids are integers where those of all files are, else text as it is written. Numbers stay exactly what the text says;
    whole numbers with gaps are ``Int64``, true and false ``bool`` or, with gaps, ``boolean``. A text column is
    read as classes, in alphabetical order, if it has at most 20 different values, at most half as many as cells, and
    most of them are no numbers.

    :param classes: modality (or "context") -> text columns that are classes whatever their values.
    :param drop: modality (or "context") -> columns to leave out.
    :raises FileNotFoundError: for a missing file.
    :raises ValueError: for a file without rows or columns, repeated ids or columns, and other text.
    """
    own = {name_of(path): path for path in paths}
    if len(own) < len(paths):
        raise ValueError(f"two files have the same name, {', '.join(map(str, paths))}. Fix: rename one of them.")
    files = own if context is None else {**own, CONTEXT: context}
    if context is not None and CONTEXT in own:
        raise ValueError(f"{own[CONTEXT]}: {CONTEXT!r} stands for the covariates. Fix: rename the file.")
    raw = {m: _read(path) for m, path in files.items()}
    _unknown_columns(raw, classes, drop)
    whole = all(_WHOLE_ID.fullmatch(x) for frame in raw.values() for x in frame.index)
    made: dict[str, Any] = {}
    for m, frame in raw.items():
        frame = frame.drop(columns=[*(drop or {}).get(m, ())])
        if frame.shape[1] == 0:
            raise ValueError(f"{files[m]}: no column is left. Fix: leave the file out.")
        frame.index = frame.index.astype(np.int64) if whole else frame.index
        made[m] = frame
    _check_texts(files, made, classes or {})
    made = {m: _typed(frame) for m, frame in made.items()}
    return Tables({m: made[m] for m in own}, made.get(CONTEXT), own)


def name_of(path: Path) -> str:
    """The modality of a file: its name without endings, other characters than letters and digits as "_"."""
    return re.sub(r"\W+", "_", re.sub(r"(\.csv|\.tsv|\.txt)?(\.gz)?$", "", path.name)).strip("_")


def _read(path: Path) -> Any:  # pandas.DataFrame, the index is text
    pandas = optional_import("pandas", "tables")
    names = _header(path)
    options: dict[str, Any] = {"header": 0, "names": names, "index_col": False, "skipinitialspace": True}
    options |= {"sep": _separator(path), "encoding": "utf-8-sig"}
    if tuple(int(x) for x in pandas.__version__.split(".")[:2]) < (3, 1):
        options["float_precision"] = "round_trip"  # later versions always read the nearest number
    try:
        ids = pandas.read_csv(path, usecols=[0], dtype=str, keep_default_na=False, **options)[names[0]].str.strip()
        frame = pandas.read_csv(path, low_memory=False, **options).iloc[:, 1:]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error.reason}). Fix: save it as CSV, UTF-8.") from error
    except pandas.errors.ParserError as error:
        raise ValueError(f"{path}: {str(error).strip()}. Fix: as many cells in each line as in the header.") from error
    if len(frame) == 0:
        raise ValueError(f"{path}: has a header, but no rows.")
    frame.index = pandas.Index(ids, name=names[0] if names[0] else None, dtype="str")
    _check_ids(path, frame.index)
    return frame


def _header(path: Path) -> list[str]:
    """The names of all columns, that of the ids first."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            lines = csv.reader(file, delimiter=_separator(path), skipinitialspace=True)
            header, first = next(lines, []), next(lines, [])
        except (UnicodeDecodeError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as text ({error}). Fix: save it as CSV, UTF-8.") from error
    names = ["", *header] if len(first) == len(header) + 1 else header  # R leaves the name of the ids out
    if len(names) < 2:
        seems = " Its cells seem to be separated by ';'." if header and ";" in header[0] else ""
        raise ValueError(
            f"{path}: no columns beside the ids.{seems} Fix: a header, ids in the first column, commas in between."
        )
    names = [name.strip() for name in names]
    seen: set[str] = set()
    for i, name in enumerate(names[1:], 2):
        if name == "" or name in seen:
            what = f"the name {name!r} is there twice" if name else "it has no name"
            raise ValueError(f"{path}, column {i} of the header: {what}. Fix: names that are all different.")
        seen.add(name)
    return names


def _separator(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


def _check_ids(path: Path, index: Any) -> None:
    empty = int((index == "").sum())
    if empty:
        raise ValueError(f"{path}: {empty} rows have no id in the first column. Fix: give them one, or drop them.")
    repeated = index[index.duplicated()].unique()
    if len(repeated):
        shown = ", ".join(repeated[:3]) + (", ..." if len(repeated) > 3 else "")
        raise ValueError(f"{path}: {len(repeated)} ids are there more than once: {shown}. Fix: one row per sample.")


def _unknown_columns(frames: Mapping[str, Any], *named: Mapping[str, Collection[str]] | None) -> None:
    """Columns that options name are there."""
    for columns in named:
        for m, own in (columns or {}).items():
            if m not in frames:
                raise ValueError(f"there is no table {m!r}; there are {', '.join(frames)}.")
            absent = [c for c in own if c not in frames[m].columns]
            if absent:
                raise ValueError(f"{m} has no column {absent[0]!r}; it has {', '.join(frames[m].columns[:6])}, ...")


def _typed(frame: Any) -> Any:  # pandas.DataFrame
    """Columns in the dtypes that say what they are."""
    made: dict[str, Any] = {c: "Int64" for c in _whole_with_gaps(frame.select_dtypes("float"))}
    for c in frame.columns.difference(frame.select_dtypes("number").columns, sort=False):
        made[c] = ("boolean" if frame[c].isna().any() else "bool") if _is_bool(frame[c]) else "category"
    return frame.astype(made)


def _is_bool(series: Any) -> bool:
    types = optional_import("pandas.api.types", "tables")
    return bool(types.is_bool_dtype(series.dtype) or types.infer_dtype(series, skipna=True) == "boolean")


def _whole_with_gaps(frame: Any) -> list[str]:
    """Float columns that pandas made of whole numbers because cells are missing."""
    x = frame.to_numpy(dtype=np.float64)
    gaps = np.isnan(x)
    whole = (gaps | ((x == np.rint(x)) & (np.abs(x) < _EXACT))).all(0)
    return list(frame.columns[whole & gaps.any(0) & ~gaps.all(0)])


def _check_texts(paths: Mapping[str, Path], frames: Mapping[str, Any], classes: Mapping[str, Collection[str]]) -> None:
    """Text is classes; otherwise an error with the ways out, about all columns of all files at once."""
    found, names, fixes = [], [], dict[str, None]()
    for m, frame in frames.items():
        numeric = frame.select_dtypes("number").columns
        for c in frame.columns.difference(numeric, sort=False).difference([*classes.get(m, ())], sort=False):
            what = None if _is_bool(frame[c]) else _no_classes(frame[c])
            if what is not None:
                found.append(f"{paths[m]}, column {c!r}: {what[0]}")
                names.append(f"'{m}.{c}'")
                fixes[what[1]] = None
    if found:
        more = f" (and {len(found) - _SHOWN} more columns)" if len(found) > _SHOWN else ""
        ways = [*fixes, f"--drop {' '.join(names)}", f"--likelihood '{names[0][1:-1]}=categorical' if they are classes"]
        raise ValueError(f"{'; '.join(found[:_SHOWN])}{more}. Fix: {', or '.join(ways)}.")


def _no_classes(series: Any) -> tuple[str, str] | None:
    """Why a text column cannot be read as classes, and the nearest way out; None if it can."""
    pandas = optional_import("pandas", "tables")
    seen = series.dropna().astype(str)
    values = seen.unique()
    texts = values[pandas.to_numeric(pandas.Series(values), errors="coerce").isna().to_numpy()]
    if len(values) <= min(MOST_CLASSES, len(seen) / 2) and len(values) <= 2 * len(texts):
        return None
    shown = ", ".join(repr(v) for v in texts[:3])
    for form, fix in _FORMS.items():
        if all(form.fullmatch(str(text).strip()) for text in texts):
            return f"text with {len(values)} different values in {len(seen)} cells, such as {shown}", fix
    return f"text with {len(values)} different values in {len(seen)} cells, such as {shown}", _GAP
