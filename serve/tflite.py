"""A TFLite model behind the same interface as a SavedModel, run by the interpreter that TensorFlow brings along.

Needs `serve.framework.lean` (or TensorFlow itself) before it is imported. An interpreter holds the tensors of
one run, so there is one for each run at the same time, as many as there are processors.
"""

import functools
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.lite.python import interpreter as lite
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow_serving.apis import get_model_metadata_pb2

from serve import dtypes, signatures, tflite_examples
from serve.inference import PREDICT
from serve.model import DEFAULT_SIGNATURE
from serve.status import Code, ServingError, invalid

_IDENTIFIER = b"TFL3"
_METADATA = b"signature_defs_metadata"

# TensorFlow's releases announce that their interpreter will move to a package of its own.
warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated")


class TFLiteModel:
    """A TFLite model that can be run from several threads at once."""

    in_one_thread = True  # each interpreter has one

    def __init__(
        self, make: Callable[[], "_Interpreter"], first: "_Interpreter", defs: Mapping[str, Any], check: bool
    ):
        self._make = make
        self._idle = [first]
        self._slots = threading.Semaphore(len(os.sched_getaffinity(0)))
        self.signatures = signatures.read(defs, check)
        self.signature_defs = get_model_metadata_pb2.SignatureDefMap(signature_def=defs)

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> Sequence[np.ndarray]:
        """Feeds tensors of any shape that the model can take, and returns others. Waits for a free interpreter."""
        with self._slots:
            interpreter = self._take()
            found = interpreter.run(feeds, fetches)
            # One that failed is not used again: its tensors may be half made.
            self._idle.append(interpreter)
        return found

    def close(self) -> None:
        """Gives back the interpreters that are idle; those that run go when they are done."""
        self._idle.clear()

    def _take(self) -> "_Interpreter":
        try:
            return self._idle.pop()
        except IndexError:
            return self._make()


class _Interpreter:
    """One interpreter, for one run at a time; remembers the shapes that its inputs have."""

    def __init__(self, content: bytes, parsers: Sequence[tflite_examples.Parser] = ()):
        try:
            self._lite = lite.Interpreter(model_content=content, num_threads=1)
            self._lite.allocate_tensors()  # fails where an operation is not there
            self._fed = {each["name"]: each for each in self._lite.get_input_details()}
            self.outputs = {each["name"]: each for each in self._lite.get_output_details()}
        except (ValueError, RuntimeError, KeyError) as error:
            raise ServingError(Code.INTERNAL, f"Cannot build Interpreter from buffer. {error}") from error
        self._parsers = parsers
        parsed = {name for parser in parsers for name in parser.outputs}
        self.inputs = {name: each for name, each in self._fed.items() if name not in parsed}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """One run. Raises INTERNAL where the model cannot take these tensors."""
        for parser in self._parsers:
            feeds = {**feeds, **parser(feeds[parser.serialized])}
        try:
            self._resize(feeds)
            for name, tensor in feeds.items():
                self._lite.set_tensor(self._fed[name]["index"], tensor)
            self._lite.invoke()
            return [dtypes.as_tensor(self._lite.get_tensor(self.outputs[name]["index"])) for name in fetches]
        except (ValueError, RuntimeError) as error:
            raise ServingError(Code.INTERNAL, f"Failed to invoke TfLite interpreter: {error}") from error

    def _resize(self, feeds: Mapping[str, np.ndarray]) -> None:
        other = [name for name, tensor in feeds.items() if self._shapes.get(name) != tensor.shape]
        for name in other:
            self._lite.resize_tensor_input(self._fed[name]["index"], feeds[name].shape)
            self._shapes[name] = feeds[name].shape
        if other:
            self._lite.allocate_tensors()


def load(file: Path, check_method_names: bool = False) -> TFLiteModel:
    """Loads a .tflite file. Raises ServingError saying why it cannot."""
    content = file.read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise invalid(f"Cannot build FlatBufferModel from buffer. {file} is no TFLite model")
    found = _signature_defs(content)
    make = functools.partial(_Interpreter, *_split(content))
    first = make()
    for signature in found.values():
        _fix_names(signature.inputs, first.inputs, "input")
        _fix_names(signature.outputs, first.outputs, "output")
    return TFLiteModel(make, first, found or {DEFAULT_SIGNATURE: _generated(first)}, check_method_names)


def _split(content: bytes) -> tuple[bytes, tuple[tflite_examples.Parser, ...]]:
    try:
        return tflite_examples.take_out(content)
    except (ValueError, TypeError, LookupError, struct.error) as error:
        raise ServingError(Code.INTERNAL, f"Cannot build Interpreter from buffer. {error}") from error


def _signature_defs(content: bytes) -> dict[str, Any]:
    """The SignatureDefs that a model brings along; most bring none."""
    from google.protobuf.message import DecodeError

    try:
        return {name: meta_graph_pb2.SignatureDef.FromString(value) for name, value in _serialized(content)}
    except (DecodeError, TypeError, ValueError, LookupError, struct.error) as error:
        raise invalid(f"Invalid SignatureDefs found in TfLite model: {error}") from error


def _serialized(content: bytes) -> Iterable[tuple[str, bytes]]:
    """The names and messages in a model's metadata, which has them as a FlexBuffer map."""
    from flatbuffers import flexbuffers

    model = schema.Model.GetRootAs(content, 0)
    for entry in map(model.Metadata, range(model.MetadataLength())):
        if entry.Name() == _METADATA:
            found = flexbuffers.GetRoot(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()).AsMap
            values = [value.AsBlob if value.IsBlob else value.AsStringBytes for value in found.Values]
            return zip([key.AsKey for key in found.Keys], map(bytes, values), strict=True)
    return ()


def _fix_names(infos: Mapping[str, Any], tensors: Mapping[str, Any], what: str) -> None:
    """Takes `:0` from tensor names that the model has without it, as early converters wrote them."""
    for alias, info in infos.items():
        if info.name not in tensors:
            if _plain(info.name) not in tensors:
                raise ServingError(
                    Code.INTERNAL,
                    f"Unknown tensor '{info.name}'.\n\tSignature {what} {alias} references an unknown tensor",
                )
            info.name = _plain(info.name)


def _generated(interpreter: _Interpreter) -> Any:
    """The signature of a model that brings none: its tensors by their names."""
    signature = meta_graph_pb2.SignatureDef(method_name=PREDICT)
    for infos, tensors in (
        (signature.inputs, interpreter.inputs),
        (signature.outputs, interpreter.outputs),
    ):
        for name, detail in tensors.items():
            info = infos[_plain(name)]
            info.name, info.dtype = name, dtypes.number_of(np.dtype(detail["dtype"])) or 0
            info.tensor_shape.SetInParent()
            for size in detail["shape"].tolist():
                info.tensor_shape.dim.add(size=size)
    return signature


def _plain(name: str) -> str:
    return name.partition(":")[0]
