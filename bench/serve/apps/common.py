"""The SavedModel as a person would call it from Python: what the peers' applications share.

Runs in the environment of a peer. BENCH_MODEL is the SavedModel's folder.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class SavedModel:
    """Arrays by input to arrays by output."""

    def __init__(self) -> None:
        # What was loaded must live as long as its signature, whose variables it owns.
        self._loaded = tf.saved_model.load(os.environ["BENCH_MODEL"])
        self._signature = self._loaded.signatures["serving_default"]
        specs = self._signature.structured_input_signature[1]
        self.types: dict[str, Any] = {
            alias: object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
            for alias, spec in specs.items()
        }

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._signature(**{alias: tf.constant(array) for alias, array in inputs.items()})
        return {alias: tensor.numpy() for alias, tensor in outputs.items()}

    def arrays(self, instances: Sequence[Any]) -> dict[str, np.ndarray]:
        """Rows, as objects or as bare values, to one array for each input."""
        if len(self.types) == 1:
            ((alias, kind),) = self.types.items()
            return {alias: np.asarray(instances, kind)}
        return {
            alias: np.asarray([instance[alias] for instance in instances], kind)
            for alias, kind in self.types.items()
        }


def columns(outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Outputs as JSON has them."""
    return {alias: array.tolist() for alias, array in outputs.items()}


def join(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Several requests' arrays as one batch."""
    if len(parts) == 1:
        return parts[0]
    return {alias: np.concatenate([part[alias] for part in parts]) for alias in parts[0]}


def split(outputs: dict[str, np.ndarray], sizes: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """A batch's outputs, apart again: `sizes` rows each."""
    ends = np.cumsum(sizes)
    return [
        {alias: array[end - size : end] for alias, array in outputs.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


def count(inputs: dict[str, np.ndarray]) -> int:
    """How many rows there are."""
    return len(next(iter(inputs.values())))
