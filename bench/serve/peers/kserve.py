"""KServe's Python server, V1 protocol."""

import json

from bench.serve.models import Model
from bench.serve.peers.base import APPS, Exchange, Launch, Peer, Place, as_json

# Without it each request is logged four times.
_QUIET = {"version": 1, "disable_existing_loggers": True, "root": {"level": "WARNING", "handlers": []}}


def _launch(place: Place) -> Launch:
    log = place.room / "log.json"
    log.write_text(json.dumps(_QUIET))
    flags = (f"--http_port={place.port}", "--enable_grpc=False", "--workers=1", "--enable_docs_url=False")
    quiet = (f"--log_config_file={log}", "--enable_latency_logging=False")
    return Launch((str(place.python), str(APPS / "kserve_app.py"), *flags, *quiet))


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
