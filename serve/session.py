"""A SavedModel in a TF1-style session, as TF Serving loads it: tensor names come from SignatureDefs.

TensorFlow is imported by its inner modules; see `serve.framework`.
"""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import session as tf_session
from tensorflow.python.framework import errors, ops
from tensorflow.python.saved_model import loader_impl
from tensorflow_serving.apis import get_model_metadata_pb2

from serve import dtypes, native, runs, signatures, tf_errors
from serve.status import Code, ServingError, not_found

_SMALL_BYTES = 4 << 20
_CALLERS_THREAD = -1
# Clients choose which outputs they want, and each choice costs memory.
_CALLABLES_AT_MOST = 128


@dataclass(frozen=True)
class SessionOptions:
    """How sessions are made: tags of the meta graph, threads (0: by the model's size), whether method names count."""

    tags: tuple[str, ...] = ("serve",)
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    check_method_names: bool = False


class SavedModel:
    """A SavedModel that can be run from several threads at once.

    `in_one_thread`: a run keeps to the thread that asks for it. Several runs then use several processors.
    """

    def __init__(
        self,
        session: Any,
        signature_defs: Mapping[str, Any],
        check_method_names: bool = False,
        in_one_thread: bool = False,
    ):
        self._session = session
        self.in_one_thread = in_one_thread
        self._callables: dict[tuple, Any] = {}
        self._prepared: set[tuple] = set()
        self._lock = threading.Lock()
        self._runs = runs.Runs(session.close)
        self.signatures = signatures.read(signature_defs, check_method_names)
        self.signature_defs = get_model_metadata_pb2.SignatureDefMap(signature_def=signature_defs)

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> Sequence[np.ndarray]:
        """Feeds tensors of any shape (TF Serving does not enforce the signature's) and returns others."""
        names = tuple(sorted(feeds))
        with tf_errors.told(), self._runs:
            found = self._callable(names, tuple(fetches))(*[feeds[name] for name in names])
        return [dtypes.as_tensor(value) for value in found]

    def prepare(self) -> None:
        """Makes ready what Predict runs of each signature, as a model's first client would wait for that.

        Seconds for a large graph, in which other threads go on. What cannot be prepared fails when it is asked for.
        """
        for signature in self.signatures.values():
            feeds = tuple(sorted(spec.name for spec in signature.inputs.values()))
            fetches = tuple(sorted({spec.name for spec in signature.outputs.values()}))
            if feeds and all(feeds) and all(fetches):
                with contextlib.suppress(errors.OpError, ValueError):
                    self._callable(feeds, fetches)
                    self._prepared.add((feeds, fetches))

    def close(self) -> None:
        """Ends the session once nothing runs in it; variables and graph are freed with it."""
        self._runs.end()

    def _callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Any:
        found = self._callables.get((feeds, fetches))
        if found is not None:
            return found
        with self._lock:  # preparing the graph may take a second; who asks for the same meanwhile waits
            found = self._callables.get((feeds, fetches))
            if found is None:
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                if self.in_one_thread:
                    options.run_options.inter_op_thread_pool = _CALLERS_THREAD
                found = self._session._make_callable_from_options(options)
                self._make_room()
                self._callables[feeds, fetches] = found
        return found

    def _make_room(self) -> None:
        """Forgets the oldest that a request's choice of outputs made; those of whole signatures stay."""
        if len(self._callables) >= _CALLABLES_AT_MOST + len(self._prepared):
            del self._callables[next(key for key in self._callables if key not in self._prepared)]


def load(path: Path, options: SessionOptions) -> SavedModel:
    """Loads the meta graph with exactly the given tags. Raises ServingError saying why it cannot."""
    _check_files(path)
    options = _threads(path, options)
    if native.supported() and (path / "saved_model.pb").is_file():
        return _load_natively(path, options)
    graph = ops.Graph()
    session = tf_session.Session(graph=graph, config=_config(options))
    try:
        with graph.as_default():
            meta_graph = loader_impl.SavedModelLoader(str(path)).load(session, list(options.tags))
    except BaseException as error:
        session.close()
        if isinstance(error, Exception):
            raise _load_error(error, path, options) from error
        raise
    graph.finalize()
    return _model(session, meta_graph, options)


def _model(session: Any, meta_graph: Any, options: SessionOptions) -> SavedModel:
    in_one_thread = options.intra_op_threads == options.inter_op_threads == 1
    model = SavedModel(session, meta_graph.signature_def, options.check_method_names, in_one_thread)
    model.prepare()
    return model


def _threads(path: Path, options: SessionOptions) -> SessionOptions:
    """One thread a run for small models, unless threads were asked for; for others all processors work on one run.

    Handing parts of small operations to other threads costs more than it saves (a run of one row takes several times
    as long), and where many wait, runs side by side use the processors better.
    """
    if options.intra_op_threads or options.inter_op_threads or _size(path) > _SMALL_BYTES:
        return options
    return replace(options, intra_op_threads=1, inter_op_threads=1)


def _size(path: Path) -> int:
    files = [*path.glob("saved_model.pb*"), *path.glob("variables/*")]
    return sum(file.stat().st_size for file in files)


def _load_natively(path: Path, options: SessionOptions) -> SavedModel:
    try:
        meta_graph = native.meta_graph(path, options.tags)
    except Exception as error:
        raise _load_error(error, path, options) from error
    if meta_graph is None:
        raise _no_meta_graph(options)
    if meta_graph.saver_def.filename_tensor_name and not (path / "variables" / "variables.index").is_file():
        # The C++ loader takes this for a model without variables, and requests would find them uninitialized.
        raise not_found(f"Failed to find any matching files for {path}/variables/variables")
    session = native.load(path, options.tags, _config(options))
    return _model(session, meta_graph, options)


def _check_files(path: Path) -> None:
    if (path / "saved_model.pb").is_file() or (path / "saved_model.pbtxt").is_file():
        return
    if (path / "export.meta").exists():
        raise ServingError(Code.UNIMPLEMENTED, "Session Bundle is deprecated and removed.")
    raise not_found(
        "Specified file path does not appear to contain a SavedModel bundle "
        f"(should have a file called `saved_model.pb`)\nSpecified file path: {path}"
    )


def _config(options: SessionOptions) -> Any:
    return config_pb2.ConfigProto(
        allow_soft_placement=True,
        intra_op_parallelism_threads=options.intra_op_threads,
        inter_op_parallelism_threads=options.inter_op_threads,
    )


def _load_error(error: Exception, path: Path, options: SessionOptions) -> ServingError:
    if isinstance(error, ServingError):
        return error
    if isinstance(error, errors.OpError):
        return tf_errors.serving_error(error)
    if isinstance(error, RuntimeError) and "MetaGraphDef" in str(error):
        return _no_meta_graph(options)
    if isinstance(error, OSError | ValueError | DecodeError):
        return ServingError(Code.DATA_LOSS, f"SavedModel below {path} cannot be read: {error}")
    return ServingError(Code.UNKNOWN, f"{type(error).__name__}: {error}")


def _no_meta_graph(options: SessionOptions) -> ServingError:
    return not_found(
        f"Could not find meta graph def matching supplied tags: {{ {' '.join(options.tags)} }}. "
        "To inspect available tag-sets in the SavedModel, please use the SavedModel CLI: `saved_model_cli`"
    )
