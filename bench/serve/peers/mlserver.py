"""MLServer, V2 protocol, adaptive batching on."""

import json

import numpy as np

from bench.serve.models import Model
from bench.serve.peers.base import Exchange, Launch, Peer, Place, as_json

_SETTINGS = {
    "host": "127.0.0.1",
    "debug": False,
    "parallel_workers": 0,
    "metrics_endpoint": None,
    "logging_settings": {
        "version": 1,
        "disable_existing_loggers": True,
        "root": {"level": "WARNING", "handlers": []},
    },
}
_MODEL = {
    "name": "bench",
    "implementation": "mlserver_app.Runtime",
    "max_batch_size": 64,
    "max_batch_time": 0.001,
}


def _launch(place: Place) -> Launch:
    ports = dict(zip(("grpc_port", "metrics_port"), place.spare, strict=False))
    settings = {**_SETTINGS, "http_port": place.port, **ports}
    (place.room / "settings.json").write_text(json.dumps(settings))
    (place.room / "model-settings.json").write_text(json.dumps(_MODEL))
    return Launch((place.program("mlserver"), "start", str(place.room)))


def _exchange(model: Model, rows: int) -> Exchange:
    inputs = [
        {"name": alias, **_typed(rows, array), "data": values}
        for (alias, array), values in zip(model.inputs.items(), model.columns(rows).values(), strict=True)
    ]

    def read(answer: dict) -> dict:
        """Outputs of one number a row come as [rows, 1]."""
        return {
            each["name"]: np.reshape(each["data"], (rows, *model.expected[each["name"]].shape[1:]))
            for each in answer["outputs"]
        }

    return Exchange("/v2/models/bench/infer", as_json({"inputs": inputs}), read)


def _typed(rows: int, array: np.ndarray) -> dict:
    """Type and shape; MLServer joins strings only where they are [rows, 1]."""
    if array.dtype.kind == "U":
        return {"datatype": "BYTES", "shape": [rows, 1]}
    return {"datatype": "FP32", "shape": [rows, *array.shape[1:]]}


PEER = Peer(
    "MLServer",
    ("mlserver==1.7.1",),
    "V2 protocol; max_batch_size 64, max_batch_time 1 ms, no parallel workers",
    _launch,
    _exchange,
)
