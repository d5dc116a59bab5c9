"""Replays a version's warm-up requests, so that its first client does not wait."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from serve.model import Model
from serve.status import Code, ServingError, invalid
from serve.work import Work

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
RECORDS_AT_MOST = 1000

Readers = dict[str, Callable[[Model, Any], Work]]


def replay(model: Model, path: Path, iterations: int = 1) -> int:
    """Runs each record of a version's warm-up file and returns how many there were; 0 without a file.

    Any record that fails fails the load: raises ServingError.
    """
    file = path / FILE
    if not file.is_file():
        return 0
    readers, count = _readers(), 0
    for count, entry in enumerate(_entries(_records(file), file), 1):
        for _ in range(max(1, iterations)):
            run(model, entry, readers)
        if count > RECORDS_AT_MOST:
            raise invalid(f"Number of warmup records exceeds the maximum ({RECORDS_AT_MOST}) at {file}")
    return count


def run(model: Model, entry: Any, readers: Readers) -> None:
    """Runs the request of a PredictionLog; one without any is passed over. The model that it names is not looked at."""
    kind = entry.WhichOneof("log_type")
    if kind in readers:
        readers[kind](model, getattr(entry, kind).request).run(model)
    elif kind is not None:
        number = entry.DESCRIPTOR.fields_by_name[kind].number
        raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")


def _readers() -> Readers:
    from serve import grpc_inference, grpc_prediction

    return {
        "predict_log": grpc_prediction.read_predict,
        "classify_log": grpc_inference.read_classify,
        "regress_log": grpc_inference.read_regress,
        "multi_inference_log": grpc_inference.read_multi_inference,
    }


def _entries(records: Iterable[bytes], file: Path) -> Iterator[Any]:
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    for record in records:
        entry = prediction_log_pb2.PredictionLog()
        try:
            entry.ParseFromString(record)
        except DecodeError as error:
            shown = record.decode("utf-8", "replace")
            raise invalid(f"Failed to parse warmup record: {shown} from {file}") from error
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
