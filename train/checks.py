"""What would poison a training run: every finding at once, each with the places where it stands."""

import numpy as np

from pipeline.settings import Data
from train.rows import Table, some

_TWINS_SHOWN = 4


def findings(table: Table, data: Data) -> list[str]:
    """What is wrong with rows and labels by themselves; empty if nothing is."""
    return [
        *_values(table, data),
        *_labels(table, data.classes),
        *_contradictions(table),
        *_balance(table, data),
    ]


def leaks(table: Table, test: np.ndarray) -> list[str]:
    """Rows that stand both in train and in test: a model that learnt them by heart would look good.

    `test` is a mask [n] of the rows that are held out.
    """
    places = []
    for rows in _twins(table):
        if test[rows].any() and not test[rows].all():
            places.append(" = ".join(table.place(row) for row in rows[:_TWINS_SHOWN]))
    return [f"the same row in train and test: {some(places)}; keep one of each"] if places else []


def smallest_share(labels: np.ndarray, classes: int) -> float:
    """The size of the smallest class, as a share of what it would have if all were equal."""
    counts = np.bincount(labels, minlength=classes)
    return float(counts.min() * classes / len(labels))


def _values(table: Table, data: Data) -> list[str]:
    low, high = data.value_range
    finite = np.isfinite(table.features)
    outside = finite & ((table.features < low) | (table.features > high))
    faults = []
    if not finite.all():
        faults.append(f"NaN or infinite: {_cells(table, ~finite)}")
    if outside.any():
        faults.append(f"outside of data.value_range [{low:g}, {high:g}]: {_cells(table, outside)}")
    return faults


def _cells(table: Table, mask: np.ndarray) -> str:
    def show(cell: tuple[int, int]) -> str:
        row, column = cell
        return f"{table.place(row)} column {column + 1} ({table.features[row, column]:g})"

    return some(np.argwhere(mask), show)


def _labels(table: Table, classes: int) -> list[str]:
    wrong = np.flatnonzero(~_proper(table, classes))
    if not len(wrong):
        return []
    places = some(wrong, lambda row: f"{table.place(row)} ({table.labels[row]:g})")
    return [f"the class is not a whole number from 0 to {classes - 1}: {places}"]


def _proper(table: Table, classes: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (table.labels == np.floor(table.labels)) & (table.labels >= 0) & (table.labels < classes)


def _contradictions(table: Table) -> list[str]:
    places = [
        " and ".join(f"{table.place(row)} (class {table.labels[row]:g})" for row in rows[:_TWINS_SHOWN])
        for rows in _twins(table)
        if len(np.unique(table.labels[rows])) > 1
    ]
    return [f"the same row with different classes: {some(places)}"] if places else []


def _twins(table: Table) -> list[np.ndarray]:
    """Groups of equal rows, each as sorted row numbers, in order of their first row."""
    rows = np.ascontiguousarray(table.features + 0.0)  # -0.0 becomes 0.0: equal numbers, equal bytes
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.cumsum(counts)[:-1])
    return sorted((rows for rows in groups if len(rows) > 1), key=lambda rows: rows[0])


def _balance(table: Table, data: Data) -> list[str]:
    labels = table.labels[_proper(table, data.classes)].astype(np.int64)
    counts = np.bincount(labels, minlength=data.classes)
    needed = data.smallest_class * len(labels) / data.classes
    missing = [str(c) for c in np.flatnonzero(counts == 0)]
    small = [f"{c} ({counts[c]})" for c in np.flatnonzero((counts > 0) & (counts < max(needed, 2)))]
    faults = []
    if missing:
        faults.append(f"no row of class {some(missing)}; data.classes says there are {data.classes}")
    if small:
        faults.append(
            f"too few rows of class {some(small)}; data.smallest_class asks for {max(needed, 2):.0f} each"
        )
    return faults
