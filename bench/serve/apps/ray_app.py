"""Ray Serve: a deployment that joins requests with serve.batch."""

import argparse
import signal
from typing import Any

import orjson
import ray
from common import SavedModel, count, join, split
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=512, ray_actor_options={"num_cpus": 1})
class Served:
    """Reads and writes JSON itself; the batch is of arrays."""

    def __init__(self) -> None:
        self._model = SavedModel()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001, max_concurrent_batches=1)
    async def _run(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return split(self._model(join(batch)), [count(inputs) for inputs in batch])

    async def __call__(self, request: Request) -> Response:
        inputs = self._model.arrays(orjson.loads(await request.body())["instances"])
        answer = orjson.dumps(await self._run(inputs), option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(answer, media_type="application/json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    ray.init(
        num_cpus=2,
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": options.port}, logging_config={"enable_access_log": False}
    )
    serve.run(
        Served.bind(),  # type: ignore[attr-defined]  # the decorator's
        route_prefix="/predict",
        blocking=False,
    )
    signal.pause()
