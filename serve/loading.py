"""Loads a version of a model: a TFLite model where one is preferred and there, else a SavedModel."""

from pathlib import Path

from serve.model import Model
from serve.session import SessionOptions
from serve.session import load as load_saved_model

TFLITE_FILE = "model.tflite"


def load(path: Path, options: SessionOptions, prefer_tflite: bool = False) -> Model:
    """The model in a version's folder. Raises ServingError saying why it cannot be loaded."""
    file = path / TFLITE_FILE
    if not prefer_tflite or not file.is_file():
        return load_saved_model(path, options)
    from serve import tflite

    return tflite.load(file, options.check_method_names)
