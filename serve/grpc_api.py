"""TF Serving's gRPC services: PredictionService and ModelService.

Needs `serve.framework.lean` (or TensorFlow itself) before it is imported: the messages build on TensorFlow's.
"""

import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serve import log, metadata, predict, tensors
from serve.model import DEFAULT_SIGNATURE, Model, Servable, Signature
from serve.models import Models
from serve.status import Code, ServingError, invalid, not_yet

MESSAGE_BYTES_AT_MOST = 2**31 - 1
_DETAIL_BYTES_AT_MOST = 1024


def server(
    models: Models,
    threads: int,
    *,
    as_content: bool = False,
    arguments: list[tuple[str, int | str]] | None = None,
) -> grpc.Server:
    """A gRPC server with both services, not yet bound or started."""
    options = [
        ("grpc.max_send_message_length", MESSAGE_BYTES_AT_MOST),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_AT_MOST),
        ("grpc.so_reuseport", 0),
        *(arguments or []),
    ]
    made = grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="grpc"), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(models, as_content), made
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models), made)
    return made


def channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """Reads `k=v,k=v`; a value is a number if it reads as one."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    return [(key, int(value) if value.lstrip("-").isdecimal() else value) for key, _, value in pairs]


def _answered(method: Callable) -> Callable:
    """Turns what a method raises into a gRPC status, its details cut as TF Serving cuts them."""

    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request)
        except ServingError as error:
            failed = error
        except MemoryError:
            failed = ServingError(Code.RESOURCE_EXHAUSTED, "not enough memory for this request")
        except Exception as error:  # noqa: BLE001 (a bug is logged, and its client told)
            log.error("bug", where=method.__name__, trace=traceback.format_exc())
            failed = ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")
        return context.abort(_STATUS[failed.code], _cut(failed.message))

    return answer


def _later(method: str) -> Callable:
    def refuse(_self: Any, _request: Any) -> Any:
        raise not_yet(method)

    return _answered(refuse)


_STATUS = {Code(status.value[0]): status for status in grpc.StatusCode}


def _cut(details: str) -> str:
    encoded = details.encode("utf-8", "replace")
    if len(encoded) <= _DETAIL_BYTES_AT_MOST:
        return encoded.decode()
    return encoded[:_DETAIL_BYTES_AT_MOST].decode("utf-8", "ignore") + "...TRUNCATED"


def find(models: Models, request: Any) -> Servable:
    """The servable that a request's model_spec means."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    return models.find(spec.name, _version(spec), spec.version_label)


def _version(spec: Any) -> int | None:
    return spec.version.value if spec.HasField("version") else None


def answer_predict(model: Model, request: Any, as_content: bool = False) -> Any:
    """A PredictResponse, without the model's name and version. Also what warm-up calls."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = model.signatures.get(name)
    if signature is None:
        raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    outputs = predict.run(model, signature, _inputs(signature, request), request.output_filter)
    response = predict_pb2.PredictResponse()
    response.model_spec.signature_name = name
    for alias, array in outputs.items():
        tensors.encode(array, signature.outputs[alias].dtype, response.outputs[alias], as_content)
    return response


def _inputs(signature: Signature, request: Any) -> dict[str, Any]:
    predict.check_inputs(signature, request.inputs)
    for alias, proto in request.inputs.items():
        predict.check_type(alias, signature.inputs[alias], proto.dtype)
    return {alias: tensors.decode(proto) for alias, proto in request.inputs.items()}


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata."""

    def __init__(self, models: Models, as_content: bool):
        self._models = models
        self._as_content = as_content

    @_answered
    def Predict(self, request: Any) -> Any:
        """Runs a signature of a model."""
        servable = find(self._models, request)
        response = answer_predict(servable.model, request, self._as_content)
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        return response

    @_answered
    def GetModelMetadata(self, request: Any) -> Any:
        """Tells the signatures of a model."""
        if not request.metadata_field:
            find(self._models, request)
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        metadata.fill(find(self._models, request), response)
        return response

    Classify = _later("Classify")
    Regress = _later("Regress")
    MultiInference = _later("MultiInference")


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    def __init__(self, models: Models):
        self._models = models

    @_answered
    def GetModelStatus(self, request: Any) -> Any:
        """Tells the state of a model's versions."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in self._models.status(request.model_spec.name, _version(request.model_spec)):
            told = response.model_version_status.add(version=version.number, state=int(version.state))
            told.status.error_code = int(version.error.code) if version.error else 0
            told.status.error_message = version.error.message if version.error else ""
        return response

    HandleReloadConfigRequest = _later("HandleReloadConfigRequest")
