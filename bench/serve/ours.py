"""Our server, by its command line, and how it is asked over REST and over gRPC."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.serve.load import PREDICT
from bench.serve.models import Model
from bench.serve.peers.base import Exchange, Launch, Place, as_json, by_name
from pipeline.errors import ProgramFailed

_TIMEOUT_S = 60
_BYTES_AT_MOST = 2**31 - 1


def launch(place: Place, flags: tuple[str, ...]) -> Launch:
    """`python -m serve`; gRPC is on the first spare port."""
    model = (f"--model_name={place.model.name}", f"--model_base_path={place.model.base}")
    ports = (f"--port={place.spare[0]}", f"--rest_api_port={place.port}")
    return Launch((sys.executable, "-m", "serve", *model, *ports, *flags))


def exchange(model: Model, rows: int) -> Exchange:
    """TF Serving's row form."""

    def read(answer: dict) -> Mapping[str, Any]:
        found = answer["predictions"]
        return by_name(found) if isinstance(found[0], dict) else {next(iter(model.expected)): found}

    return Exchange(f"/v1/models/{model.name}:predict", as_json({"instances": model.instances(rows)}), read)


def call(port: int, message: bytes) -> bytes:
    """One Predict. Raises ProgramFailed unless its status is OK."""
    import grpc

    limits = [("grpc.max_receive_message_length", _BYTES_AT_MOST), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=limits) as channel:
        try:
            return channel.unary_unary(PREDICT)(message, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise ProgramFailed(f"Predict: {error.code().name}: {error.details()}") from error


def outputs(answer: bytes) -> dict[str, np.ndarray]:
    """The outputs in a PredictResponse."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    response = predict_pb2.PredictResponse.FromString(answer)
    return {alias: tf.make_ndarray(proto) for alias, proto in response.outputs.items()}
