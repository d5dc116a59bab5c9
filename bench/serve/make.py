"""Makes a model of the benchmark: `python -m bench.serve.make NAME FOLDER`, in a process of its own.

FOLDER gets `model/1/` (the SavedModel), `rows.npz` (32 rows for each input), `expected.npz` (what TensorFlow answers to
them), `outputs.json` and `predict-N.pb` (a PredictRequest of the first N rows). The weights are random, and the same
each time: they do not matter to the speed.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.serve.models import ROWS

SEED = 7
_CITIES = [f"city-{number}" for number in range(1000)]
_TEXTS, _NUMBERS, _KNOWN = 10, 30, 4
_HASH_BUCKETS, _WIDTH = 5000, 16


def digits(tf: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The model of the pipeline as it is exported: 8 x 8 pixels to ten probabilities and a class."""
    from train import model

    keras_model = model.build((8, 8), 10, (0.0, 16.0), SEED)

    def answer(pixels: Any) -> dict[str, Any]:
        probabilities = keras_model(pixels, training=False)
        return {
            "probabilities": probabilities,
            "class": tf.argmax(probabilities, axis=1, output_type=tf.int64),
        }

    rows = np.random.default_rng(SEED).integers(0, 17, (max(ROWS), 8, 8)).astype(np.float32)
    return _module(tf, answer, {"pixels": rows}, keras_model), {"pixels": rows}


def resnet(tf: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """ResNet-50, 25.6 million parameters, for pictures of 64 x 64: work and JSON both shrink with the pixels."""
    import keras

    keras.utils.set_random_seed(SEED)
    keras_model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=1000)

    def answer(image: Any) -> dict[str, Any]:
        return {"probabilities": keras_model(image, training=False)}

    rows = np.random.default_rng(SEED).random((max(ROWS), 64, 64, 3)).round(4).astype(np.float32)
    return _module(tf, answer, {"image": rows}, keras_model), {"image": rows}


def wide(tf: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Forty named inputs: ten strings, looked up in a table or hashed, thirty numbers; then dense layers."""
    random = np.random.default_rng(SEED)
    rows: dict[str, np.ndarray] = {}
    for number in range(_TEXTS):
        rows[f"text_{number}"] = random.choice(_CITIES, max(ROWS)).astype(object)
    for number in range(_NUMBERS):
        rows[f"number_{number}"] = random.normal(size=max(ROWS)).round(3).astype(np.float32)

    def weights(*shape: int) -> Any:
        return tf.Variable((random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32))

    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.KeyValueTensorInitializer(_CITIES, np.arange(len(_CITIES), dtype=np.int64)), 10
    )
    looked_up = [weights(len(_CITIES) + 10, _WIDTH) for _ in range(_KNOWN)]
    hashed = [weights(_HASH_BUCKETS, _WIDTH) for _ in range(_TEXTS - _KNOWN)]
    layers = [weights(_TEXTS * _WIDTH + _NUMBERS, 256), weights(256, 128), weights(128, 1)]

    def answer(**inputs: Any) -> dict[str, Any]:
        texts = [inputs[f"text_{number}"] for number in range(_TEXTS)]
        found = [
            tf.gather(rows, table.lookup(text)) for rows, text in zip(looked_up, texts[:_KNOWN], strict=True)
        ]
        found += [
            tf.gather(rows, tf.strings.to_hash_bucket_fast(text, _HASH_BUCKETS))
            for rows, text in zip(hashed, texts[_KNOWN:], strict=True)
        ]
        numbers = tf.stack([inputs[f"number_{number}"] for number in range(_NUMBERS)], axis=1)
        values = tf.concat([*found, numbers], axis=1)
        for layer in layers[:-1]:
            values = tf.nn.relu(values @ layer)
        return {"score": tf.squeeze(tf.sigmoid(values @ layers[-1]), axis=1)}

    return _module(tf, answer, rows, [table, *looked_up, *hashed, *layers]), rows


MODELS: Mapping[str, Callable[[Any], tuple[Any, dict[str, np.ndarray]]]] = {
    "digits": digits,
    "resnet": resnet,
    "wide": wide,
}


def _module(tf: Any, answer: Callable, rows: Mapping[str, np.ndarray], weights: Any) -> Any:
    """A tf.Module with one signature, whose inputs are named and typed as `rows` are."""
    served = tf.Module()
    # TensorFlow's variables, not Keras's around them, as train/export.py has them.
    served.weights = [v.value for v in weights.variables] if hasattr(weights, "variables") else weights
    specs = {
        alias: tf.TensorSpec(
            [None, *array.shape[1:]], tf.string if array.dtype == object else tf.float32, name=alias
        )
        for alias, array in rows.items()
    }
    served.signature = tf.function(answer).get_concrete_function(**specs)
    return served


def _write_requests(tf: Any, folder: Path, name: str, rows: Mapping[str, np.ndarray]) -> None:
    from tensorflow_serving.apis import predict_pb2

    for count in ROWS:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        for alias, array in rows.items():
            request.inputs[alias].CopyFrom(tf.make_tensor_proto(array[:count]))
        (folder / f"predict-{count}.pb").write_bytes(request.SerializeToString(deterministic=True))


def make(name: str, folder: Path) -> None:
    """Writes everything that the benchmark needs of one model."""
    import tensorflow as tf

    served, rows = MODELS[name](tf)
    tf.saved_model.save(served, str(folder / "model/1"), signatures=served.signature)
    _write_requests(tf, folder, name, rows)
    expected = served.signature(**{alias: tf.constant(array) for alias, array in rows.items()})
    np.savez(folder / "expected.npz", **{alias: tensor.numpy() for alias, tensor in expected.items()})
    text = {alias: array.astype(str) if array.dtype == object else array for alias, array in rows.items()}
    np.savez(folder / "rows.npz", **text)  # type: ignore[arg-type]  # numpy's stub takes them for its flag
    parameters = sum(int(np.prod(v.shape)) for v in tf.nest.flatten(served.weights) if hasattr(v, "shape"))
    (folder / "about.json").write_text(json.dumps({"parameters": parameters}))


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
