"""KServe's Python server, V1 protocol."""

from bench.serve.models import Model
from bench.serve.peers.base import APPS, Exchange, Launch, Peer, Place, as_json


def _launch(place: Place) -> Launch:
    flags = (f"--http_port={place.port}", "--enable_grpc=False", "--workers=1", "--enable_docs_url=False")
    return Launch((str(place.python), str(APPS / "kserve_app.py"), *flags))


def _exchange(model: Model, rows: int) -> Exchange:
    body = as_json({"instances": model.instances(rows)})
    return Exchange("/v1/models/bench:predict", body, lambda answer: answer["predictions"])


PEER = Peer(
    "KServe",
    ("kserve==0.21.0",),
    "V1 protocol; its Python server, 1 worker; it has no batching",
    _launch,
    _exchange,
)
