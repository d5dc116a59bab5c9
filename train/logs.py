"""The log of a training: TensorBoard events and curves.csv, written as it goes."""

import csv
import io
import time
from pathlib import Path
from typing import Any

from train import runtime

_EVENTS = "events.out.tfevents.0.train.v2"
COLUMNS = ("epoch", "loss", "accuracy", "seconds", "rows_per_s")


class Log:
    """A TensorBoard log with one point per epoch, and the same points as CSV.

    A training that goes on after a kill first writes again what happened before it.
    """

    def __init__(self, folder: Path, history: list[dict]):
        from tensorflow.core.util import event_pb2

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._event = event_pb2.Event
        self._writer = runtime.tensorflow().io.TFRecordWriter(str(folder / _EVENTS))
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        for past in range(len(history)):
            self.add(history[: past + 1])

    def add(self, history: list[dict]) -> None:
        """Adds the newest point to the events, and writes the curves."""
        self._add(history[-1])
        with runtime.writing("the TensorBoard log"):
            self._writer.flush()
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(history)
        (self._folder / "curves.csv").write_text(text.getvalue())

    def close(self) -> None:
        """Closes the TensorBoard log."""
        self._writer.close()

    def _add(self, point: dict) -> None:
        event = self._event(wall_time=point["wall_time"], step=point["epoch"])
        for name in ("loss", "accuracy", "rows_per_s"):
            event.summary.value.add(tag=f"epoch/{name}", simple_value=point[name])
        self._write(event)

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString(deterministic=True))
