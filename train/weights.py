"""Write a Keras model as plain files, and read it back: architecture.json and weights.npz.

Keras's own formats carry times; these files have the same bytes for the same model.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import IntegrityError
from train import model, runtime  # noqa: F401  model registers its layers

_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


def save(keras_model: Any, folder: Path) -> None:
    """Writes the model's architecture and weights below `folder`, which must not exist."""
    arrays = {f"{number:04d}:{w.path}": np.asarray(w) for number, w in enumerate(keras_model.weights)}
    folder.mkdir()
    (folder / "architecture.json").write_text(keras_model.to_json(indent=1, sort_keys=True) + "\n")
    (folder / "weights.npz").write_bytes(npz(arrays))


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays in NumPy's format, by name, uncompressed.

    Not np.savez: it asks zipfile for ZIP64 fields, whose bytes differ between Python 3.11.2 and 3.11.7.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return packed.getvalue()


def load(folder: Path) -> Any:
    """The Keras model that `save` wrote. Custom layers are those that `train.model` registers."""
    runtime.tensorflow()
    import keras

    try:
        keras_model = keras.models.model_from_json((folder / "architecture.json").read_text())
        with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
            keras_model.set_weights([arrays[name] for name in arrays.files])
    except _UNREADABLE as error:
        raise IntegrityError(
            f"the trained model cannot be read: {error}. Run the train stage again (make clean removes build/)."
        ) from error
    return keras_model


def difference(first: Path, second: Path) -> float:
    """How far apart two models that `save` wrote are: the largest absolute difference of a weight.

    Infinity where that says nothing: another architecture, other shapes or types, NaN, a file that cannot be read.
    """
    try:
        if (first / "architecture.json").read_bytes() != (second / "architecture.json").read_bytes():
            return math.inf
        with (
            np.load(first / "weights.npz", allow_pickle=False) as old,
            np.load(second / "weights.npz", allow_pickle=False) as new,
        ):
            if old.files != new.files:
                return math.inf
            return max((_apart(old[name], new[name]) for name in old.files), default=0.0)
    except _UNREADABLE:
        return math.inf


def _apart(old: np.ndarray, new: np.ndarray) -> float:
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        return math.inf
    with np.errstate(invalid="ignore"):
        largest = float(np.max(np.abs(old.astype(np.float64) - new.astype(np.float64)), initial=0.0))
    return largest if math.isfinite(largest) else math.inf
