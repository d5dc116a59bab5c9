"""TF Serving's PredictionService over gRPC.

Needs `serve.framework.lean` (or TensorFlow itself) before it is imported: the messages build on TensorFlow's.
"""

import functools
from collections.abc import Callable
from typing import Any

from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serve import dtypes, grpc_inference, grpc_spec, metadata, predict, tensors
from serve.grpc_calls import Answers, Runs
from serve.grpc_status import answered
from serve.model import Model, Servable, Signature
from serve.models import Lease, Models
from serve.observe import Observer
from serve.status import Code, ServingError, invalid
from serve.work import Work


def read_predict(model: Model, request: Any, as_content: bool = False) -> Work:
    """What a PredictRequest asks to run; its answer is a PredictResponse, without the model's name and version."""
    name = grpc_inference.signature_name(request.model_spec)
    signature = model.signatures.get(name)
    if signature is None:
        raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')

    def finish(outputs: dict[str, Any]) -> Any:
        response = predict_pb2.PredictResponse()
        response.model_spec.signature_name = name
        for alias, array in outputs.items():
            dtype = dtypes.of(array, signature.outputs[alias].dtype)
            tensors.encode(array, dtype, response.outputs[alias], as_content)
        return response

    work = predict.work(signature, _inputs(signature, request), finish, request.output_filter)
    for alias, proto in request.inputs.items():
        predict.check_type(alias, signature.inputs[alias], proto.dtype)
    return work


def _inputs(signature: Signature, request: Any) -> dict[str, Any]:
    predict.check_method(signature)
    predict.check_inputs(signature, request.inputs)
    return {alias: _decoded(alias, proto) for alias, proto in request.inputs.items()}


def _decoded(alias: str, proto: Any) -> Any:
    try:
        return tensors.decode(proto)
    except ServingError as error:
        raise ServingError(error.code, f"tensor parsing error: {alias}: {error.message}") from error


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def __init__(self, models: Models, as_content: bool, observer: Observer, answers: Answers):
        self._models = models
        self.observer = observer

        def runs(
            api: str,
            read: Callable[[Model, Any], Work],
            acquire: Callable[[Models, Any], Lease] = _acquire,
            named: Callable[[Servable, Any], Any] = grpc_spec.answer,
        ) -> Runs:
            acquire_of = functools.partial(acquire, models)
            return Runs(api, acquire_of, read, named, api != "Predict", observer, answers)

        self.Predict = runs("Predict", functools.partial(read_predict, as_content=as_content))
        self.Classify = runs("Classify", grpc_inference.read_classify)
        self.Regress = runs("Regress", grpc_inference.read_regress)
        self.MultiInference = runs(
            "MultiInference", grpc_inference.read_multi_inference, _acquire_first, _name_all
        )

    @answered
    def GetModelMetadata(self, request: Any) -> Any:
        """Tells the signatures of a model."""
        grpc_spec.required(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        metadata.fill(grpc_spec.find(self._models, request), response)
        return response


def _acquire(models: Models, request: Any) -> Lease:
    return grpc_spec.acquire(models, grpc_spec.required(request))


def _acquire_first(models: Models, request: Any) -> Lease:
    """The version that the first task means."""
    return grpc_spec.acquire(models, request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec())


def _name_all(servable: Servable, response: Any) -> Any:
    for result in response.results:
        grpc_spec.answer(servable, result)
    return response
