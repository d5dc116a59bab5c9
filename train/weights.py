"""Write a Keras model as plain files, and read it back: architecture.json and weights.npz.

Keras's own formats carry times; these files have the same bytes for the same model.
"""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pipeline.errors import IntegrityError
from train import model, runtime  # noqa: F401  model registers its layers


def save(keras_model, folder: Path) -> None:
    """Writes the model's architecture and weights below `folder`, which must not exist."""
    arrays = {f"{number:04d}:{w.path}": np.asarray(w) for number, w in enumerate(keras_model.weights)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    folder.mkdir()
    (folder / "architecture.json").write_text(keras_model.to_json(indent=1, sort_keys=True) + "\n")
    (folder / "weights.npz").write_bytes(buffer.getvalue())


def load(folder: Path):
    """The Keras model that `save` wrote. Custom layers are those that `train.model` registers."""
    runtime.tensorflow()
    import keras

    try:
        keras_model = keras.models.model_from_json((folder / "architecture.json").read_text())
        with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
            keras_model.set_weights([arrays[name] for name in arrays.files])
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise IntegrityError(
            f"the trained model cannot be read: {error}. Run the train stage again (make clean removes build/)."
        ) from error
    return keras_model
