"""Loads a SavedModel with TensorFlow's C++ loader, as TF Serving does, and runs it through Python's bindings.

The loader of Python imports the graph with the interpreter's lock held: no request is answered meanwhile, for a
third of a second with a ResNet-50 of variables, and for longer with 100 MB of constants. The C API's
TF_LoadSessionFromSavedModel, called through ctypes, holds no lock, and needs no copy of the graph in Python.

The session that it gives is a pointer, which the bindings' functions take only in an object of theirs. Such an object
holds the pointer after its header (pybind11's `instance`), where it can be replaced. `supported` looks at an object
whose pointer leads to known bytes before that is ever done; where it does not find them, Python's loader is used.
"""

import ctypes
import functools
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.client import pywrap_tf_session as bindings
from tensorflow.python.framework import ops

from serve.status import ServingError, code_of

_POINTER = ctypes.c_void_p
_AFTER_HEADER = 2 * ctypes.sizeof(_POINTER)  # of a Python object: its reference count and its type
_META_GRAPHS = 2  # the field of SavedModel
# The fields meta_info_def, saver_def and signature_def of MetaGraphDef; all keys are of one byte.
_SMALL_PARTS = (1, 3, 5)
_VARINT, _DELIMITED, _FIXED = 0, 2, {1: 8, 5: 4}  # wire types of protocol buffers


@functools.cache
def _library() -> ctypes.CDLL | None:
    import tensorflow

    for folder in tensorflow.__path__:
        for file in sorted(Path(folder).glob("libtensorflow_cc.so*")):
            library = ctypes.CDLL(str(file))
            if all(hasattr(library, name) for name in _RESULTS):
                for name, result in _RESULTS.items():
                    getattr(library, name).restype = result
                return library
    return None


_RESULTS: dict[str, Any] = {
    "TF_NewStatus": _POINTER,
    "TF_DeleteStatus": None,
    "TF_GetCode": ctypes.c_int,
    "TF_Message": ctypes.c_char_p,
    "TF_NewGraph": _POINTER,
    "TF_DeleteGraph": None,
    "TF_NewSessionOptions": _POINTER,
    "TF_DeleteSessionOptions": None,
    "TF_SetConfig": None,
    "TF_LoadSessionFromSavedModel": _POINTER,
    "TF_CloseSession": None,
    "TF_DeleteSession": None,
}


@functools.cache
def supported() -> bool:
    """Whether this TensorFlow has the C API, and objects that hold their pointer where it is looked for."""
    if _library() is None or not Path("/proc/self/mem").exists():
        return False
    text = os.urandom(16)
    buffer = bindings.TF_NewBufferFromString(text)
    try:
        data, length = struct.unpack("PN", _peek(_held(buffer).value or 0, struct.calcsize("PN")))
        return length == len(text) and _peek(data, len(text)) == text
    except (OSError, OverflowError, struct.error):
        return False
    finally:
        bindings.TF_DeleteBuffer(buffer)


def _held(binding: Any) -> Any:
    """The pointer within an object of the bindings, to be read or replaced."""
    return _POINTER.from_address(id(binding) + _AFTER_HEADER)


def _peek(address: int, length: int) -> bytes:
    """Reads this process's memory; an address that is none raises OSError, and no signal."""
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        return os.pread(memory, length, address)
    finally:
        os.close(memory)


class Session:
    """A session that C++ made. Has what `serve.session` uses of a tf.Session."""

    def __init__(self, pointer: int, graph: int):
        self._pointer = pointer
        self._graph = graph
        # A session of an empty graph, whose object holds our pointer until it is closed.
        self._empty = ops.Graph()
        options = bindings.TF_NewSessionOptions()
        try:
            with self._empty._c_graph.get() as c_graph:
                self._binding = bindings.TF_NewSessionRef(c_graph, options)
        finally:
            bindings.TF_DeleteSessionOptions(options)
        self._own = _held(self._binding).value
        _held(self._binding).value = pointer
        self._lock = threading.RLock()  # a callable may be collected by the thread that holds it

    def _make_callable_from_options(
        self, options: config_pb2.CallableOptions
    ) -> Callable[..., Sequence[Any]]:
        buffer = bindings.TF_NewBufferFromString(options.SerializeToString())
        try:
            handle = bindings.TF_SessionMakeCallable(self._binding, buffer)
        finally:
            bindings.TF_DeleteBuffer(buffer)
        return _Callable(self, handle)

    def run(self, handle: int, values: Sequence[Any]) -> Sequence[Any]:
        """Runs what was prepared under that handle."""
        return bindings.TF_SessionRunCallable(self._binding, handle, values, None)

    def release(self, handle: int) -> None:
        """Frees what was prepared under that handle; with a closed session it is gone already."""
        with self._lock:
            if self._pointer:
                bindings.TF_SessionReleaseCallable(self._binding, handle)

    def __del__(self) -> None:
        self.close()
        bindings.TF_DeleteSession(self._binding)

    def close(self) -> None:
        """Ends the session and frees its graph and variables. Nothing may run any more; what tries to, fails."""
        with self._lock:
            pointer, self._pointer = self._pointer, 0
        library = _library()
        if not pointer or library is None:
            return
        _held(self._binding).value = self._own
        bindings.TF_CloseSession(self._binding)
        status = _POINTER(library.TF_NewStatus())
        library.TF_CloseSession(_POINTER(pointer), status)
        library.TF_DeleteSession(_POINTER(pointer), status)
        library.TF_DeleteGraph(_POINTER(self._graph))
        library.TF_DeleteStatus(status)


class _Callable:
    """What one choice of inputs and outputs runs. Its part of the session's memory is freed with it."""

    def __init__(self, session: Session, handle: int):
        self._session = session
        self._handle = handle

    def __call__(self, *values: Any) -> Sequence[Any]:
        return self._session.run(self._handle, values)

    def __del__(self) -> None:
        self._session.release(self._handle)


def load(path: Path, tags: Sequence[str], config: config_pb2.ConfigProto) -> Session:
    """Loads the meta graph with exactly these tags. Raises ServingError with TensorFlow's own code and text."""
    library = _library()
    if library is None:
        raise RuntimeError("this TensorFlow has no C API; ask `supported` first")
    wanted = (ctypes.c_char_p * len(tags))(*(tag.encode() for tag in tags))
    text = config.SerializeToString()
    status, options = _POINTER(library.TF_NewStatus()), _POINTER(library.TF_NewSessionOptions())
    graph = library.TF_NewGraph()
    try:
        library.TF_SetConfig(options, text, ctypes.c_size_t(len(text)), status)
        found = library.TF_LoadSessionFromSavedModel(
            options, None, os.fsencode(path), wanted, len(tags), _POINTER(graph), None, status
        )
        if library.TF_GetCode(status):
            message = library.TF_Message(status).decode("utf-8", "replace")
            raise ServingError(code_of(library.TF_GetCode(status)), message)
        return Session(found, graph)
    except BaseException:
        library.TF_DeleteGraph(_POINTER(graph))
        raise
    finally:
        library.TF_DeleteSessionOptions(options)
        library.TF_DeleteStatus(status)


def meta_graph(path: Path, tags: Sequence[str]) -> meta_graph_pb2.MetaGraphDef | None:
    """The meta graph with exactly these tags, without its graph; None if there is none.

    Of saved_model.pb only the small parts are read: the graph in between may be large. Raises ValueError or DecodeError
    for what is no SavedModel.
    """
    with (path / "saved_model.pb").open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for _, begin, end in _parts(data, 0, len(data), (_META_GRAPHS,)):
                meta = meta_graph_pb2.MetaGraphDef()
                for key, first, last in _parts(data, begin, end, _SMALL_PARTS):
                    meta.MergeFromString(bytes([key]) + _varint_of(last - first) + data[first:last])
                if set(meta.meta_info_def.tags) == set(tags):
                    return meta
    return None


def _parts(data: mmap.mmap, at: int, end: int, wanted: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """The key of each wanted length-delimited field of a message, and where its value lies."""
    while at < end:
        key, at = _varint(data, at, end)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(data, at, end)
            continue
        if kind == _DELIMITED:
            length, at = _varint(data, at, end)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ValueError("saved_model.pb is not a protocol buffer")
        if at + length > end:
            raise ValueError("saved_model.pb ends too early")
        if kind == _DELIMITED and key >> 3 in wanted:
            yield key, at, at + length
        at += length


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("saved_model.pb ends too early")


def _varint_of(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])
