"""Reads the model config file again and again, and serves what it says then."""

import traceback

from serve import config, log
from serve.models import Models
from serve.status import ServingError


class ConfigFile:
    """A model config file that may change. What is wrong with it is logged, once, and changes nothing that serves."""

    def __init__(self, path: str, models: Models):
        self._path = path
        self._models = models
        self._trouble = ""

    def look(self) -> None:
        """Reads the file and takes it as the config; returns when its new models are there, or failed."""
        try:
            wanted = config.read_file(self._path, self._models.configs)
            if wanted is not None:
                self._models.reload(wanted)
            self._trouble = ""
        except ServingError as error:
            self._tell(str(error))
        except Exception:  # noqa: BLE001 (a bug must not end the polling)
            self._tell(traceback.format_exc())

    def run(self, seconds: float) -> None:
        """Looks every so many seconds until the models are stopped."""
        while self._models.sleep(seconds):
            self.look()

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.error("model config file is not taken", path=self._path, error=trouble)
        self._trouble = trouble
