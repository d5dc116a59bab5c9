"""MLflow: saves a pyfunc model that calls the SavedModel, where BENCH_PYFUNC says. `mlflow models serve` serves it."""

import os
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec


class Served(mlflow.pyfunc.PythonModel):
    """Calls the model."""

    def load_context(self, context: Any) -> None:  # noqa: ARG002 (MLflow's interface)
        """Loads the SavedModel."""
        from common import SavedModel

        self._model = SavedModel()

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002 (the same)
        """Answers one request."""
        given = model_input if isinstance(model_input, dict) else {"": model_input}
        names = given if "" not in given else self._model.types
        arrays = (
            np.asarray(array).astype(kind, copy=False)
            for array, kind in zip(given.values(), (self._model.types[name] for name in names), strict=True)
        )
        return self._model(dict(zip(names, arrays, strict=True)))


def save() -> None:
    """Saves the pyfunc model with the signature of its inputs."""
    import tensorflow as tf

    signature = tf.saved_model.load(os.environ["BENCH_MODEL"]).signatures["serving_default"]
    specs = []
    for alias, spec in sorted(signature.structured_input_signature[1].items()):
        kind = np.dtype(str) if spec.dtype == tf.string else np.dtype(spec.dtype.as_numpy_dtype)
        specs.append(TensorSpec(kind, (-1, *spec.shape[1:]), alias))
    if len(specs) == 1:
        specs = [TensorSpec(specs[0].type, specs[0].shape)]
    mlflow.pyfunc.save_model(
        os.environ["BENCH_PYFUNC"],
        python_model=Served(),
        signature=ModelSignature(inputs=Schema(specs)),
        pip_requirements=[],
    )


if __name__ == "__main__":
    save()
