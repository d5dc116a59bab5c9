"""Classify, Regress and MultiInference: from messages to what has to run, and to the responses.

Needs `serve.framework.lean` (or TensorFlow itself) before it is imported: the messages build on TensorFlow's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

from serve import inference
from serve.inference import Classes, Task
from serve.model import DEFAULT_SIGNATURE, Model
from serve.status import Code, ServingError, invalid
from serve.work import Work


def read_classify(model: Model, request: Any) -> Work:
    """What a ClassificationRequest asks to run; the response lacks the model's name and version."""
    return _read(model, request, inference.classify, classification_pb2.ClassificationResponse, _fill_classes)


def read_regress(model: Model, request: Any) -> Work:
    """What a RegressionRequest asks to run; the response lacks the model's name and version."""
    return _read(model, request, inference.regress, regression_pb2.RegressionResponse, _fill_regressions)


def _read(model: Model, request: Any, task_of: Callable, response_of: Callable, fill: Callable) -> Work:
    """The work of one task, whose result `fill` puts into the response that `response_of` makes."""
    name = signature_name(request.model_spec)
    task = task_of(inference.signature(model, name))

    def finish(results: list) -> Any:
        response = response_of()
        response.model_spec.signature_name = name
        fill(results[0], response.result)
        return response

    return inference.work([task], examples(request.input), finish)


def read_multi_inference(model: Model, request: Any) -> Work:
    """What a MultiInferenceRequest asks to run, in one run; its results lack the model's name and version."""
    tasks = _tasks(model, request.tasks)

    def finish(results: list) -> Any:
        response = inference_pb2.MultiInferenceResponse()
        for asked, found in zip(request.tasks, results, strict=True):
            result = response.results.add()
            result.model_spec.signature_name = signature_name(asked.model_spec)
            if isinstance(found, Classes):
                _fill_classes(found, result.classification_result)
            else:
                _fill_regressions(found, result.regression_result)
        return response

    return inference.work(tasks, examples(request.input), finish)


def signature_name(spec: Any) -> str:
    """The signature that a ModelSpec means."""
    return spec.signature_name or DEFAULT_SIGNATURE


def examples(proto: Any) -> list[bytes]:
    """The serialized examples of an Input, the context before each: joined bytes are merged messages."""
    kind = proto.WhichOneof("kind")
    if kind is None:
        return []
    listed = getattr(proto, kind)
    context = listed.context.SerializeToString() if kind == "example_list_with_context" else b""
    return [context + example.SerializeToString() for example in listed.examples]


def _tasks(model: Model, asked: Any) -> list[Task]:
    """The tasks, which name the same model, and each another signature."""
    found: dict[str, Task] = {}
    for task in asked:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != asked[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = signature_name(task.model_spec)
        if name in found:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        found[name] = _task(model, name, task.method_name)
    return list(found.values())


def _task(model: Model, name: str, method: str) -> Task:
    signature = model.signatures.get(name)
    if signature is None:
        raise invalid(f"Requested signature not found in model graph: {name}")
    if method == inference.CLASSIFY:
        return inference.classify(signature)
    if method == inference.REGRESS:
        return inference.regress(signature)
    raise ServingError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {method}")


def _fill_classes(found: Classes, result: Any) -> None:
    given = found.labels if found.labels is not None else found.scores
    count, width = (0, 0) if given is None else given.shape
    none = [[None] * width] * count
    labels = none if found.labels is None else found.labels.tolist()
    scores = none if found.scores is None else found.scores.tolist()
    for row_labels, row_scores in zip(labels, scores, strict=True):
        add = result.classifications.add().classes.add
        for label, score in zip(row_labels, row_scores, strict=True):
            add(label=None if label is None else label.decode("utf-8", "replace"), score=score)


def _fill_regressions(values: np.ndarray, result: Any) -> None:
    result.SetInParent()
    add = result.regressions.add
    for value in values.tolist():
        add(value=value)
