"""MLflow's scoring server, a pyfunc model that calls the SavedModel."""

from typing import Any

from bench.serve.models import Model
from bench.serve.peers.base import APPS, Exchange, Launch, Peer, Place, as_json

# Of uvicorn, which MLflow starts.
_QUIET = {"UVICORN_LOG_LEVEL": "warning", "UVICORN_ACCESS_LOG": "false"}


def _launch(place: Place) -> Launch:
    saved = place.room / "pyfunc"
    env = {"BENCH_PYFUNC": str(saved), "MLFLOW_TRACKING_URI": str(place.room / "runs"), **_QUIET}
    flags = ("--env-manager", "local", "--host", "127.0.0.1", "--port", str(place.port), "--workers", "2")
    return Launch(
        (place.program("mlflow"), "models", "serve", "-m", str(saved), *flags),
        env,
        before=((str(place.python), str(APPS / "mlflow_app.py")),),
    )


def _exchange(model: Model, rows: int) -> Exchange:
    columns = model.columns(rows)
    inputs: Any = columns if len(columns) > 1 else next(iter(columns.values()))
    return Exchange("/invocations", as_json({"inputs": inputs}), lambda answer: answer["predictions"])


PEER = Peer(
    "MLflow",
    ("mlflow==3.17.0",),
    "its scoring server (uvicorn), 2 workers; it has no batching",
    _launch,
    _exchange,
)
