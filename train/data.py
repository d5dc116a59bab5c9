"""The data stage: fetch the rows, pin them, look for what would poison training, split them."""

import json
import math
from pathlib import Path

import numpy as np

from pipeline import digest
from pipeline.settings import Bound, Data
from pipeline.stages import Context, Decided, Outcome, Result
from train import checks, fetch, rows

NAMES = ("train_features.npy", "train_labels.npy", "test_features.npy", "test_labels.npy")
CHECKED = (
    "every row has all columns, and numbers in them",
    "no NaN, no infinity, nothing outside of data.value_range",
    "classes are whole numbers within data.classes, none missing, none below data.smallest_class",
    "no row with two classes",
    "no row in both train and test",
)


def data(context: Context) -> Result:
    """Fetches, pins, checks and splits the data.

    Writes `rows/`: features float32 [n, *row_shape] and labels int64 [n], once to train and
    once to test, and data.json. Data that would poison training fails: all findings are told at once, and in
    `rows/data.json` in place of the rows. Raises SettingsError, ProgramFailed and
    IntegrityError as `fetch.fetch` does.
    """
    settings = context.settings.data
    path = fetch.fetch(settings.source, settings.sha256, context.work, context.root, context.say)
    try:
        table, faults = rows.read(path, fetch.format_of(settings.source), math.prod(settings.row_shape))
    except rows.Unreadable as error:
        table, faults = None, [f"it cannot be read, although its digest is the pinned one: {error}"]
    if table is not None:
        faults = checks.findings(table, settings)
    if faults or table is None:
        return _refused(context, faults)
    labels = table.labels.astype(np.int64)
    test = held_out(labels, settings.test_fraction, settings.seed)
    faults = checks.leaks(table, test)
    return _refused(context, faults) if faults else _accepted(context, table, labels, test)


def held_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A mask [n] of the rows to hold out: of each class, `fraction` of its rows, drawn by `seed`.

    At least one row of each class is held out, and at least one is not.
    """
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        mask[np.random.default_rng([seed, label]).permutation(members)[:count]] = True
    return mask


def load(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The features and labels of `train` or `test` from a `rows/` folder, mapped into memory."""
    features, labels = (
        np.load(folder / f"{part}_{what}.npy", mmap_mode="r", allow_pickle=False)
        for what in ("features", "labels")
    )
    return features, labels


def _accepted(context: Context, table: rows.Table, labels: np.ndarray, test: np.ndarray) -> Result:
    settings = context.settings.data
    features = table.features.astype(np.float32).reshape(-1, *settings.row_shape)
    arrays = (features[~test], labels[~test], features[test], labels[test])
    folder = context.out / "rows"
    folder.mkdir()
    for name, array in zip(NAMES, arrays, strict=True):
        np.save(folder / name, array, allow_pickle=False)
    _write(
        folder,
        {**_facts(settings), "rows": _counts(labels, test, settings), "split": _split(test, settings)},
    )
    total, held = len(labels), int(test.sum())
    share = checks.smallest_share(labels, settings.classes)
    return Result(
        Outcome.PASSED,
        f"{total:,} rows of {settings.classes} classes: {total - held:,} to train on, {held:,} held out.",
        numbers={"rows": total, "rows_train": total - held, "rows_test": held},
        decided=Decided("smallest class share", round(share, 4), Bound(at_least=settings.smallest_class)),
    )


def _refused(context: Context, faults: list[str]) -> Result:
    folder = context.out / "rows"
    folder.mkdir()
    _write(folder, {**_facts(context.settings.data), "faults": faults})
    for fault in faults:
        context.say(f"✗ {fault}")
    name = fetch.public_name(context.settings.data.source)
    many = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    listed = "\n".join(f"  - {fault}" for fault in faults)
    return Result(
        Outcome.FAILED,
        f"{name} has {many} that would poison training:\n{listed}\n"
        "Mend the data and pin its new sha256 in data.sha256.",
        numbers={"faults": len(faults)},
        decided=Decided("faults", len(faults), Bound(at_most=0)),
    )


def _facts(settings: Data) -> dict:
    return {
        "source": fetch.public_name(settings.source),
        "sha256": settings.sha256,
        "row_shape": list(settings.row_shape),
        "value_range": list(settings.value_range),
        "classes": settings.classes,
        "checked": list(CHECKED),
    }


def _counts(labels: np.ndarray, test: np.ndarray, settings: Data) -> dict:
    def by_class(part: np.ndarray) -> list[int]:
        return np.bincount(part, minlength=settings.classes).tolist()

    return {
        "total": len(labels),
        "train": int((~test).sum()),
        "test": int(test.sum()),
        "train_by_class": by_class(labels[~test]),
        "test_by_class": by_class(labels[test]),
    }


def _split(test: np.ndarray, settings: Data) -> dict:
    """How the rows were split; the digests are of their indices in the file, as little-endian int64."""
    return {
        "how": "stratified by class",
        "test_fraction": settings.test_fraction,
        "seed": settings.seed,
        "train_indices_sha256": _indices_sha256(~test),
        "test_indices_sha256": _indices_sha256(test),
    }


def _indices_sha256(mask: np.ndarray) -> str:
    return digest.of_bytes(np.flatnonzero(mask).astype("<i8").tobytes())


def _write(folder: Path, document: dict) -> None:
    (folder / "data.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
