"""TF Serving's ModelService over gRPC: what state the models are in, and which there should be."""

from collections.abc import Callable
from typing import Any

from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, model_service_pb2_grpc

from serve import call_threads, config, grpc_spec
from serve.grpc_status import answered
from serve.models import Models
from serve.observe import Observer
from serve.status import invalid


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, models: Models, observer: Observer):
        self._models = models
        self.observer = observer

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

    def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:
        """Replaces the config; answers when every new model is available."""
        return _reload(self, (request, context.is_active), context)

    def reload(self, request: Any, awaited: Callable[[], bool]) -> Any:
        """The same without a connection; `awaited` says whether the client is still there."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        before = self.observer.metrics.totals(request.metric_names)
        wanted = config.models(request.config.model_config_list.config, self._models.configs)
        with call_threads.waiting():
            self._models.reload(wanted, awaited)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.error_code = 0
        after = self.observer.metrics.totals(request.metric_names)
        for name in request.metric_names:
            response.metric.add(name=name, int64_value_increase=after[name] - before[name])
        return response


@answered
def _reload(service: ModelService, asked: tuple[Any, Callable[[], bool]]) -> Any:
    return service.reload(*asked)
