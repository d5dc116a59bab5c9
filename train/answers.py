"""Ask a model about many rows: the candidate as Keras made it, or a SavedModel as it is served."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from train import runtime, signatures

_BATCH = 512


class Unanswered(Exception):
    """A SavedModel cannot take these rows, or does not answer with probabilities."""


def of_keras(keras_model: Any, features: np.ndarray) -> np.ndarray:
    """Probabilities float32 [n, classes] of a Keras model for `features` [n, *row_shape], in order."""
    tf = runtime.tensorflow()
    ask = tf.function(lambda rows: keras_model(rows, training=False), reduce_retracing=True)
    return np.concatenate([ask(tf.constant(rows)).numpy() for rows in _batches(features)])


def of_saved_model(folder: Path, features: np.ndarray) -> dict[str, np.ndarray]:
    """What a SavedModel's signature `serving_default` answers, by output name; at least `probabilities`.

    Raises Unanswered, with the reason, if it cannot be asked about these rows.
    """
    tf = runtime.tensorflow()
    try:
        loaded = tf.saved_model.load(str(folder))
        ask = loaded.signatures[signatures.NAME]
        (name, spec), *others = ask.structured_input_signature[1].items()
        if others or "probabilities" not in ask.structured_outputs:
            raise Unanswered("its signature has not one input and an output named probabilities")
        if not spec.shape.is_compatible_with(
            [None, *features.shape[1:]]
        ):  # TensorFlow itself lets others pass
            raise Unanswered(
                f"it takes {name} of shape {spec.shape}, the rows are {list(features.shape[1:])}"
            )
        told = [ask(**{name: tf.constant(rows, spec.dtype)}) for rows in _batches(features)]
        return {output: np.concatenate([part[output].numpy() for part in told]) for output in told[0]}
    except (tf.errors.OpError, ValueError, TypeError, KeyError, OSError, AttributeError) as error:
        raise Unanswered(str(error).strip().splitlines()[0][:300]) from error


def _batches(features: np.ndarray) -> Iterator[np.ndarray]:
    return (features[start : start + _BATCH] for start in range(0, len(features), _BATCH))
