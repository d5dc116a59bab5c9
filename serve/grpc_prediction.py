"""TF Serving's PredictionService over gRPC.

Needs `serve.framework.lean` (or TensorFlow itself) before it is imported: the messages build on TensorFlow's.
"""

from typing import Any

from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from serve import grpc_spec, metadata, predict, tensors
from serve.grpc_status import answered, later
from serve.model import DEFAULT_SIGNATURE, Model, Signature
from serve.models import Models
from serve.status import Code, ServingError, invalid
from serve.work import Work


def read_predict(model: Model, request: Any, as_content: bool = False) -> Work:
    """What a PredictRequest asks to run; its answer is a PredictResponse, without the model's name and version."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = model.signatures.get(name)
    if signature is None:
        raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')

    def finish(outputs: dict[str, Any]) -> Any:
        response = predict_pb2.PredictResponse()
        response.model_spec.signature_name = name
        for alias, array in outputs.items():
            tensors.encode(array, signature.outputs[alias].dtype, response.outputs[alias], as_content)
        return response

    return predict.work(signature, _inputs(signature, request), finish, request.output_filter)


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

    @answered
    def Predict(self, request: Any) -> Any:
        """Runs a signature of a model."""
        with grpc_spec.acquire(self._models, request) as servable:
            response = read_predict(servable.model, request, self._as_content).run(servable.model)
            return grpc_spec.answer(servable, response)

    @answered
    def GetModelMetadata(self, request: Any) -> Any:
        """Tells the signatures of a model."""
        if not request.metadata_field:
            grpc_spec.find(self._models, request)
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        metadata.fill(grpc_spec.find(self._models, request), response)
        return response

    Classify = later("Classify")
    Regress = later("Regress")
    MultiInference = later("MultiInference")
