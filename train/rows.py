"""Read a data file into rows and labels, and say with line numbers what could not be read."""

import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FIRST_FEW = 5


class Unreadable(Exception):
    """The file as a whole is not what its name says."""


@dataclass(frozen=True)
class Table:
    """The rows of a file: `features` float64 [n, width], `labels` float64 [n] (not yet known to be whole).

    `place` says how the file's reader finds a row again: `line 7` or `row 7`.
    """

    features: np.ndarray
    labels: np.ndarray
    unit: str = "line"
    first: int = 1

    def place(self, row: int) -> str:
        """Where a row stands in the file."""
        return f"{self.unit} {row + self.first}"


def read(path: Path, suffix: str, width: int) -> tuple[Table | None, list[str]]:
    """The rows of a .csv, .csv.gz or .npz file, or what is wrong with them.

    A row is `width` numbers and a class. Raises Unreadable if the file is broken as a whole:
    a truncated gzip, not a zip, not text.
    """
    return _read_npz(path, width) if suffix == ".npz" else _read_csv(path, suffix, width)


def some(places: Sequence | np.ndarray, show: Callable[[Any], str] = str) -> str:
    """The first few of many places, and how many there are."""
    shown = ", ".join(show(place) for place in places[:FIRST_FEW])
    return shown if len(places) <= FIRST_FEW else f"{shown} … ({len(places):,} in all)"


def _read_csv(path: Path, suffix: str, width: int) -> tuple[Table | None, list[str]]:
    lines = _lines(path, suffix)
    if not lines:
        return None, ["the file has no rows"]
    try:
        numbers = np.loadtxt(lines, delimiter=",", comments=None, ndmin=2)
    except ValueError:
        numbers = None
    if numbers is None or numbers.shape != (len(lines), width + 1):
        unnamed = "a cell is no plain number, as 1 or -2.5e3"
        return None, _csv_faults(lines, width + 1) or [unnamed]
    return Table(numbers[:, :-1], numbers[:, -1]), []


def _lines(path: Path, suffix: str) -> list[str]:
    try:
        content = gzip.decompress(path.read_bytes()) if suffix == ".csv.gz" else path.read_bytes()
        return content.decode("utf-8-sig").rstrip("\r\n").splitlines()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Unreadable(f"it is not a whole gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not text: byte {error.start} is {error.object[error.start]:#04x}") from error


def _csv_faults(lines: list[str], columns: int) -> list[str]:
    """What is wrong with each line, one text per kind of fault."""
    ragged: list[str] = []
    words: list[str] = []
    for number, line in enumerate(lines, start=1):
        cells = line.split(",")
        if len(cells) != columns:
            ragged.append(f"line {number} has {len(cells) if line.strip() else 0}")
        words += [f"line {number} column {c} {cell.strip()[:20]!r}" for c, cell in _not_numbers(cells)]
    faults = []
    if ragged:
        faults.append(f"not {columns} columns (data.row_shape and the class): {some(ragged)}")
    if words:
        faults.append(f"not a number: {some(words)}")
    if words and all(word.startswith("line 1 ") for word in words):
        faults.append("line 1 looks like a header; a data file has none: delete it")
    return faults


def _not_numbers(cells: list[str]) -> Iterator[tuple[int, str]]:
    if not any(cell.strip() for cell in cells):
        return
    for column, cell in enumerate(cells, start=1):
        try:
            float(
                cell if "_" not in cell else "1_"
            )  # Python reads 1_000 as a number; a data file has none such
        except ValueError:
            yield column, cell


def _read_npz(path: Path, width: int) -> tuple[Table | None, list[str]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            members = {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise Unreadable(f"it is not an npz file of plain arrays: {error}") from error
    if not {"features", "labels"} <= set(members):
        return None, [f"the arrays are {sorted(members)}; there must be features and labels"]
    features, labels = members["features"], members["labels"]
    faults = []
    for name, array in (("features", features), ("labels", labels)):
        if array.dtype.kind not in "biuf":
            faults.append(f"{name} holds {array.dtype}, must hold numbers")
    if labels.ndim != 1 or features.ndim < 2 or len(features) != len(labels):
        faults.append(
            f"features is {list(features.shape)} and labels {list(labels.shape)}, must be [n, …] and [n]"
        )
    elif len(labels) == 0:
        faults.append("the file has no rows")
    elif features[0].size != width:
        faults.append(f"a row of features has {features[0].size} numbers, data.row_shape asks for {width}")
    if faults:
        return None, faults
    rows = features.reshape(len(features), -1).astype(np.float64)
    return Table(rows, labels.astype(np.float64), unit="row", first=0), []
