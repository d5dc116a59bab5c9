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
_SIGNATURE_DEF = 5  # the field of MetaGraphDef
_META_INFO_DEF = 1
_META_GRAPHS = 2  # the field of SavedModel


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
        data, length = (int.from_bytes(_peek(_held(buffer).value + 8 * n, 8), "little") for n in (0, 1))
        return length == len(text) and _peek(data, len(text)) == text
    except (OSError, TypeError, OverflowError):
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
        self._lock = threading.Lock()

    def _make_callable_from_options(self, options: config_pb2.CallableOptions) -> Callable[..., Sequence[Any]]:
        buffer = bindings.TF_NewBufferFromString(options.SerializeToString())
        try:
            handle = bindings.TF_SessionMakeCallable(self._binding, buffer)
        finally:
            bindings.TF_DeleteBuffer(buffer)
        run, session = bindings.TF_SessionRunCallable, self._binding
        return lambda *values: run(session, handle, values, None)

    def close(self) -> None:
        """Ends the session and frees its graph and variables, once."""
        with self._lock:
            pointer, self._pointer = self._pointer, 0
        library = _library()
        if not pointer or library is None:
            return
        _held(self._binding).value = self._own
        status = _POINTER(library.TF_NewStatus())
        library.TF_CloseSession(_POINTER(pointer), status)
        library.TF_DeleteSession(_POINTER(pointer), status)
        library.TF_DeleteGraph(_POINTER(self._graph))
        library.TF_DeleteStatus(status)


def load(path: Path, tags: Sequence[str], config: config_pb2.ConfigProto) -> Session:
    """Loads the meta graph with exactly these tags. Raises ServingError with TensorFlow's own code and text."""
    library = _library()
    assert library is not None, "ask `supported` first"
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


def signature_defs(path: Path, tags: Sequence[str]) -> dict[str, Any] | None:
    """The signatures of the meta graph with exactly these tags; None if there is none.

    Of saved_model.pb only these parts are read: the graph in between may be large. Raises ValueError for what is no
    protocol buffer.
    """
    with (path / "saved_model.pb").open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for begin, end in _fields(data, 0, len(data), _META_GRAPHS):
                meta = meta_graph_pb2.MetaGraphDef()
                for number in (_META_INFO_DEF, _SIGNATURE_DEF):
                    for first, last in _fields(data, begin, end, number):
                        part = bytes([number << 3 | 2]) + _varint_of(last - first) + data[first:last]
                        meta.MergeFromString(part)
                if set(meta.meta_info_def.tags) == set(tags):
                    return dict(meta.signature_def)
    return None


def _fields(data: mmap.mmap, at: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Where the values of a length-delimited field lie in a message."""
    while at < end:
        key, at = _varint(data, at, end)
        length = {0: 0, 1: 8, 5: 4}.get(key & 7)
        if key & 7 == 0:
            _, at = _varint(data, at, end)
        elif length is None:
            if key & 7 != 2:
                raise ValueError("saved_model.pb is not a protocol buffer")
            length, at = _varint(data, at, end)
            if key >> 3 == wanted:
                yield at, at + length
        at += length
        if at > end:
            raise ValueError("saved_model.pb ends too early")


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
