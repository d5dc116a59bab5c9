"""What the REST port answers beside the API of models, if flags ask for it: the metrics, and the list of models."""

import contextlib
import json
from dataclasses import dataclass

from serve import metrics
from serve.metrics import Metrics
from serve.models import Models
from serve.rest import Answer, Request, told
from serve.status import Code, ServingError

_TEXT = b"text/plain"
_LIST = "/v1/models"


@dataclass(frozen=True)
class Pages:
    """The pages that are on. `metrics_path` is where the metrics are, empty for nowhere; `lists`: models are listed."""

    models: Models
    metrics: Metrics
    metrics_path: str = ""
    lists: bool = False

    def answer(self, request: Request) -> Answer | None:
        """The page; None for a request of something else. Cheap enough to be asked first."""
        target = request.target
        if self.metrics_path and target.startswith(self.metrics_path):
            return self._metrics(target)
        if self.lists and target == _LIST and request.method == "GET":
            return self._list()
        return None

    def _metrics(self, target: str) -> Answer | None:
        """TF Serving finds the page by its path alone, and then wants no query."""
        if target == self.metrics_path:
            return Answer(200, self.metrics.page(), kind=_TEXT)
        if target[len(self.metrics_path)] != "?":
            return None
        text = f"Unexpected path: {target}. Should be {self.metrics_path}"
        return Answer(400, text.encode("utf-8", "replace"), Code.INVALID_ARGUMENT, _TEXT)

    def _list(self) -> Answer:
        found = []
        for name in self.models.names():
            with contextlib.suppress(ServingError):  # it has no version yet, or was removed meanwhile
                found.append({"name": name, "model_version_status": told(self.models.status(name))})
        return Answer(200, json.dumps({"models": found}, indent=1).encode())


def metrics_path(config_file: str) -> str:
    """Where a MonitoringConfig wants the metrics; empty for nowhere. Raises INVALID_ARGUMENT for another file."""
    if not config_file:
        return ""
    from serve import text_protos

    config = text_protos.read(config_file, text_protos.MonitoringConfig).prometheus_config
    return (config.path or metrics.PATH) if config.enable else ""
