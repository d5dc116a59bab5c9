"""TF Serving's PredictionService over gRPC.

Needs `serve.framework.lean` (or TensorFlow itself) before it is imported: the messages build on TensorFlow's.
"""

from typing import Any

from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serve import dtypes, grpc_inference, grpc_spec, metadata, predict, tensors
from serve.grpc_status import answered
from serve.model import Model, Servable, Signature
from serve.models import Models
from serve.observe import Observer, Seen
from serve.queues import queue_of, run_in
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

    def __init__(self, models: Models, as_content: bool, observer: Observer):
        self._models = models
        self.observer = observer
        self._as_content = as_content

    @answered
    def Predict(self, request: Any, seen: Seen) -> Any:
        """Runs a signature of a model."""
        with grpc_spec.acquire(self._models, grpc_spec.required(request)) as servable:
            work = read_predict(servable.model, request, self._as_content)
            return grpc_spec.answer(servable, self._run(servable, work, seen))

    @answered
    def Classify(self, request: Any, seen: Seen) -> Any:
        """Tells the classes of examples."""
        with grpc_spec.acquire(self._models, grpc_spec.required(request)) as servable:
            work = grpc_inference.read_classify(servable.model, request)
            return grpc_spec.answer(servable, self._run(servable, work, seen, on_examples=True))

    @answered
    def Regress(self, request: Any, seen: Seen) -> Any:
        """Tells a number for each example."""
        with grpc_spec.acquire(self._models, grpc_spec.required(request)) as servable:
            work = grpc_inference.read_regress(servable.model, request)
            return grpc_spec.answer(servable, self._run(servable, work, seen, on_examples=True))

    @answered
    def MultiInference(self, request: Any, seen: Seen) -> Any:
        """Classifies and regresses the same examples by several signatures of a model, in one run."""
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with grpc_spec.acquire(self._models, spec) as servable:
            work = grpc_inference.read_multi_inference(servable.model, request)
            response = self._run(servable, work, seen, on_examples=True)
            for result in response.results:
                grpc_spec.answer(servable, result)
            return response

    @answered
    def GetModelMetadata(self, request: Any, _seen: Seen) -> Any:
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

    def _run(self, servable: Servable, work: Work, seen: Seen, on_examples: bool = False) -> Any:
        """The response, once the work had its turn in the version's queue."""
        timed = self.observer.timed(seen, work, on_examples=on_examples)
        return run_in(queue_of(servable.model), timed, seen.deadline, seen.when_left)
