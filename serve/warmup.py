"""Replays a version's warm-up requests, so that its first client does not wait."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from serve import log
from serve.model import Model
from serve.status import Code, ServingError, invalid
from serve.work import Work

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
RECORDS_AT_MOST = 1000

_LATER = ("classify_log", "regress_log", "multi_inference_log")


def replay(model: Model, path: Path, predict: Callable[[Model, Any], Work], iterations: int = 1) -> int:
    """Runs each record of a version's warm-up file and returns how many there were; 0 without a file.

    `predict` reads a PredictRequest. Any record that fails fails the load: raises ServingError.
    """
    file = path / FILE
    if not file.is_file():
        return 0
    count = 0
    for count, log_entry in enumerate(_entries(_records(file)), 1):
        if count > RECORDS_AT_MOST:
            raise invalid(f"Number of warmup records exceeds the maximum ({RECORDS_AT_MOST}) at {file}")
        for _ in range(max(1, iterations)):
            _replay_one(model, log_entry, predict)
    return count


def _replay_one(model: Model, entry: Any, predict: Callable[[Model, Any], Work]) -> None:
    kind = entry.WhichOneof("log_type")
    if kind == "predict_log":
        predict(model, entry.predict_log.request).run(model)
    elif kind in _LATER:
        log.warning("warm-up record skipped", reason=f"{kind} is not implemented by this server")
    elif kind is not None:
        number = entry.DESCRIPTOR.fields_by_name[kind].number
        raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")


def _entries(records: Iterable[bytes]) -> Iterator[Any]:
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    for record in records:
        entry = prediction_log_pb2.PredictionLog()
        try:
            entry.ParseFromString(record)
        except DecodeError as error:
            raise invalid(f"Failed to parse warmup record: {error}") from error
        yield entry


def _records(file: Path) -> Iterator[bytes]:
    from tensorflow.python.framework import errors
    from tensorflow.python.lib.io import _pywrap_record_io

    try:
        yield from _pywrap_record_io.RecordIterator(str(file), "")
    except errors.DataLossError as error:
        raise ServingError(
            Code.DATA_LOSS, f"{error.message}. Please verify your warmup data is in TFRecord format."
        ) from error
