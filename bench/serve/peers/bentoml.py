"""BentoML, adaptive batching on."""

from bench.serve.models import Model
from bench.serve.peers.base import APPS, Exchange, Launch, Peer, Place, as_json, by_name


def _launch(place: Place) -> Launch:
    quiet = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(place.room), "OTEL_SDK_DISABLED": "true"}
    serve = ("serve", "bentoml_app:Service", "--port", str(place.port), "--host", "127.0.0.1")
    return Launch((place.program("bentoml"), *serve, "--working-dir", str(APPS)), quiet)


def _exchange(model: Model, rows: int) -> Exchange:
    return Exchange("/predict", as_json({"instances": model.instances(rows)}), by_name)


PEER = Peer(
    "BentoML", ("bentoml==1.4.39",), "a batchable call, max_batch_size 256; 1 worker", _launch, _exchange
)
