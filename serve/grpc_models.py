"""TF Serving's ModelService over gRPC: what state the models are in, and which there should be."""

from typing import Any

from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from serve import grpc_spec
from serve.grpc_status import answered, later
from serve.models import Models
from serve.status import invalid


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    def __init__(self, models: Models):
        self._models = models

    @answered
    def GetModelStatus(self, request: Any) -> Any:
        """Tells the state of a model's versions."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in self._models.status(request.model_spec.name, grpc_spec.version(request.model_spec)):
            told = response.model_version_status.add(version=version.number, state=int(version.state))
            told.status.error_code = int(version.error.code) if version.error else 0
            told.status.error_message = version.error.message if version.error else ""
        return response

    HandleReloadConfigRequest = later("HandleReloadConfigRequest")
