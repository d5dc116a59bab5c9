"""From a request and its answer, over gRPC or REST, to the PredictionLog that the request log holds.

Needs `serve.framework.lean` (or TensorFlow itself) before it is imported: the messages build on TensorFlow's.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tensorflow_serving.apis import (
    classification_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)

from serve import grpc_inference, grpc_prediction, tensors
from serve.model import DEFAULT_SIGNATURE, Model, Signature
from serve.request_log import RequestLog, Sample
from serve.rest import Call
from serve.work import Work

# The PredictionLog's field for each gRPC method.
_FIELDS = {
    "Predict": "predict_log",
    "Classify": "classify_log",
    "Regress": "regress_log",
    "MultiInference": "multi_inference_log",
}


def offer(request_log: RequestLog, api: str, request: Any, response: Any) -> None:
    """Logs a gRPC request that went well, if it is sampled."""
    if api not in _FIELDS:
        return
    spec = (response.results[0] if api == "MultiInference" else response).model_spec
    if request_log.wants(spec.name):
        size = request.ByteSize() + response.ByteSize()
        request_log.put(Sample(spec.name, size, lambda: _record(api, spec, request, response)))


def watch(request_log: RequestLog, call: Call) -> Call:
    """The REST call as it is; or if it is sampled, one that is logged when it went well."""
    servable, work = call.lease.servable, call.work
    if not request_log.wants(servable.name):
        return call

    def record(outputs: Sequence[np.ndarray]) -> Any:
        spec = {"name": servable.name, "signature_name": call.signature or DEFAULT_SIGNATURE}
        request = _REQUESTS[call.verb](servable.model.signatures[spec["signature_name"]], work.feeds)
        request.model_spec.CopyFrom(model_pb2.ModelSpec(version={"value": servable.version}, **spec))
        response = _READERS[call.verb](servable.model, request).finish(outputs)
        response.model_spec.CopyFrom(request.model_spec)
        return _record(call.verb.capitalize(), response.model_spec, request, response)

    def finish(outputs: Sequence[np.ndarray]) -> Any:
        answer = work.finish(outputs)
        size = sum(map(_size, work.feeds.values())) + sum(map(_size, outputs))
        request_log.put(Sample(servable.name, size, lambda: record(outputs)))
        return answer

    return replace(call, work=Work(work.feeds, work.fetches, finish))


def _record(api: str, spec: Any, request: Any, response: Any) -> Any:
    made = prediction_log_pb2.PredictionLog()
    made.log_metadata.model_spec.CopyFrom(spec)
    made.log_metadata.timestamp_secs = int(time.time())
    entry = getattr(made, _FIELDS[api])
    entry.request.CopyFrom(request)
    entry.response.CopyFrom(response)
    return made


def _predict(signature: Signature, feeds: Mapping[str, np.ndarray]) -> Any:
    request = predict_pb2.PredictRequest()
    for alias, spec in signature.inputs.items():
        tensors.encode(feeds[spec.name], spec.dtype, request.inputs[alias])
    return request


def _examples(request: Any, signature: Signature, feeds: Mapping[str, np.ndarray]) -> Any:
    (spec,) = signature.inputs.values()
    for example in feeds[spec.name]:
        request.input.example_list.examples.add().ParseFromString(example)
    return request


_REQUESTS: dict[str, Callable[[Signature, Mapping[str, np.ndarray]], Any]] = {
    "predict": _predict,
    "classify": lambda *read: _examples(classification_pb2.ClassificationRequest(), *read),
    "regress": lambda *read: _examples(regression_pb2.RegressionRequest(), *read),
}
_READERS: dict[str, Callable[[Model, Any], Work]] = {
    "predict": grpc_prediction.read_predict,
    "classify": grpc_inference.read_classify,
    "regress": grpc_inference.read_regress,
}


def _size(array: np.ndarray) -> int:
    """Bytes that an array holds; roughly, for strings."""
    array = np.asarray(array)
    return sum(map(len, array.flat)) if array.dtype == object else array.nbytes
