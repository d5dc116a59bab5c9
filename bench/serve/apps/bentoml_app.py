"""BentoML: a service whose one call is batchable, so that its dispatcher joins requests."""

from typing import Any

import bentoml
from common import SavedModel, columns


@bentoml.service(
    workers=1, traffic={"timeout": 60, "max_concurrency": 1024}, logging={"access": {"enabled": False}}
)
class Service:
    """Rows in, rows out: what is joined and divided is a list."""

    def __init__(self) -> None:
        self._model = SavedModel()

    @bentoml.api(batchable=True, max_batch_size=256, max_latency_ms=10_000)
    def predict(self, instances: list[Any]) -> list[Any]:
        """Answers a batch: for each row an object with all outputs."""
        found = columns(self._model(self._model.arrays(instances)))
        return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
