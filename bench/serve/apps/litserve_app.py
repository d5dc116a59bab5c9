"""LitServe: decode, batch, predict, unbatch, encode, with its batching on."""

import argparse
from typing import Any

import litserve
from common import SavedModel, columns, count, join, split
from fastapi import Request


class Served(litserve.LitAPI):
    """The steps that LitServe asks for."""

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe's interface)
        """Loads the SavedModel."""
        self._model = SavedModel()

    def decode_request(self, request: Request, **_: Any) -> Any:
        """JSON to arrays. By its type LitServe knows that `request` is the body, which it hands over as read."""
        return self._model.arrays(request["instances"])

    def batch(self, inputs: list[Any]) -> Any:
        """Requests to one batch; how many rows each had goes with it."""
        return join(inputs), [count(each) for each in inputs]

    def predict(self, x: Any, **_: Any) -> Any:
        """Calls the model."""
        inputs, sizes = x
        return self._model(inputs), sizes

    def unbatch(self, output: Any) -> Any:
        """The batch apart again."""
        return split(*output)

    def encode_response(self, output: Any, **_: Any) -> Any:
        """Arrays to JSON."""
        return columns(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    api = Served(max_batch_size=64, batch_timeout=0.001, api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
