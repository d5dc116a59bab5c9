"""KServe's Python server: a model class, in the V1 protocol."""

import argparse
from typing import Any

import kserve
from common import SavedModel, columns


class Model(kserve.Model):
    """Calls the model in the server's event loop."""

    def load(self) -> bool:
        """Loads the SavedModel."""
        self._model = SavedModel()
        self.ready = True
        return True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:  # noqa: ARG002
        """Answers one request."""
        return {"predictions": columns(self._model(self._model.arrays(payload["instances"])))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    options, _ = parser.parse_known_args()
    served = Model("bench")
    served.load()
    kserve.ModelServer().start([served])
