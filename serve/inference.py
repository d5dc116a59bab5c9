"""Classify and regress: which tensors of a signature they use, and what a model must answer.

The same for REST, gRPC and warm-up, and for several tasks on the same examples (MultiInference).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from serve import dtypes
from serve.model import Model, Signature, TensorSpec
from serve.status import ServingError, invalid
from serve.work import Result, Work

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
PREDICT = "tensorflow/serving/predict"

INPUTS = "inputs"
CLASSES, SCORES = "classes", "scores"
OUTPUTS = "outputs"


@dataclass(frozen=True)
class Classes:
    """The classes of each example: labels (bytes) and scores, both [examples, classes]; one of them may lack."""

    labels: np.ndarray | None
    scores: np.ndarray | None


@dataclass(frozen=True)
class Task(Generic[Result]):
    """What one signature has to run on serialized tf.Examples: graph tensors, outputs by alias.

    `finish` gets the number of examples and the outputs by alias.
    """

    input: str
    outputs: Mapping[str, str]
    finish: Callable[[int, Mapping[str, np.ndarray]], Result]


def signature(model: Model, name: str) -> Signature:
    """The signature that a classify or regress request names. Raises INVALID_ARGUMENT."""
    found = model.signatures.get(name)
    if found is None:
        raise invalid(f"No signature was found with the name: {name}")
    return found


def classify(signature: Signature) -> Task[Classes]:
    """The task of a classify signature. Raises INVALID_ARGUMENT where it is none."""
    _check_method(signature, CLASSIFY, "classification")
    _check_one_input(signature)
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    spec = _tensor(signature.inputs, INPUTS, signature, "classification inputs")
    found = {
        alias: signature.outputs[alias].name for alias in (CLASSES, SCORES) if alias in signature.outputs
    }
    if not found:
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"{CLASSES}" or "{SCORES}". Signature was: {_debug(signature)}'
        )
    return Task(spec.name, found, _classes)


def regress(signature: Signature) -> Task[np.ndarray]:
    """The task of a regress signature; its result is a float32 vector. Raises INVALID_ARGUMENT where it is none."""
    _check_method(signature, REGRESS, "regression")
    _check_one_input(signature)
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    spec = _tensor(signature.inputs, INPUTS, signature, "regression inputs")
    output = _tensor(signature.outputs, OUTPUTS, signature, "regression outputs")
    return Task(spec.name, {OUTPUTS: output.name}, _regressions)


def work(
    tasks: Sequence[Task], examples: Sequence[bytes], finish: Callable[[list], Result | ServingError]
) -> Work:
    """One run of the graph for all tasks, on serialized tf.Examples. `finish` gets the results in their order.

    Raises INVALID_ARGUMENT where there is no example.
    """
    if not examples:
        raise invalid("Input is empty.")
    tensor = np.empty(len(examples), object)
    tensor[:] = examples
    names = sorted({name for task in tasks for name in task.outputs.values()})

    def finished(tensors: Sequence[np.ndarray]) -> Result | ServingError:
        found = dict(zip(names, tensors, strict=True))
        return finish(
            [
                task.finish(len(examples), {alias: found[name] for alias, name in task.outputs.items()})
                for task in tasks
            ]
        )

    return Work({task.input: tensor for task in tasks}, names, finished)


def _check_method(signature: Signature, method: str, what: str) -> None:
    if signature.method_name is not None and signature.method_name != method:
        raise invalid(f"Expected {what} signature method_name to be {method}. Was: {signature.method_name}")


def _check_one_input(signature: Signature) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")


def _tensor(specs: Mapping[str, TensorSpec], alias: str, signature: Signature, what: str) -> TensorSpec:
    if alias not in specs:
        raise invalid(f"No {what} found in SignatureDef: {_debug(signature)}")
    return specs[alias]


def _debug(signature: Signature) -> str:
    return str(signature.proto)


def _classes(examples: int, outputs: Mapping[str, np.ndarray]) -> Classes:
    labels, scores = outputs.get(CLASSES), outputs.get(SCORES)
    if labels is not None:
        _check_matrix(CLASSES, labels, dtypes.STRING, examples)
    if scores is not None:
        _check_matrix(SCORES, scores, dtypes.FLOAT, examples)
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise invalid(
            "Tensors class and score should match in dim_size(1). "
            f"Got {labels.shape[1]} vs. {scores.shape[1]}"
        )
    return Classes(labels, scores)


def _check_matrix(alias: str, tensor: np.ndarray, dtype: int, examples: int) -> None:
    if tensor.ndim != 2:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(tensor)}")
    if dtypes.of(tensor) != dtype:
        raise invalid(f"Expected {alias} Tensor of {_type(dtype)}. Got: {_type(dtypes.of(tensor))}")
    if tensor.shape[0] != examples:
        raise invalid(f"Expected {alias} output batch size of {examples}. Got: {tensor.shape[0]}")


def _regressions(examples: int, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    tensor = outputs[OUTPUTS]
    if tensor.ndim != 1 and not (tensor.ndim == 2 and tensor.shape[1] == 1):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {_shape(tensor)}"
        )
    if tensor.shape[0] != examples:
        raise invalid(f"Input batch size did not match output batch size: {examples} vs. {tensor.shape[0]}")
    if dtypes.of(tensor) != dtypes.FLOAT:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_type(dtypes.of(tensor))}")
    return tensor.reshape(-1)


def _shape(tensor: np.ndarray) -> str:
    return f"[{','.join(map(str, tensor.shape))}]"


def _type(number: int) -> str:
    return f"DT_{dtypes.name_of(number).upper()}"
