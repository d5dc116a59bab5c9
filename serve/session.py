"""A SavedModel in a TF1-style session, as TF Serving loads it: tensor names come from SignatureDefs.

TensorFlow is imported by its inner modules; see `serve.framework`.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import session as tf_session
from tensorflow.python.framework import errors, ops
from tensorflow.python.saved_model import loader_impl
from tensorflow_serving.apis import get_model_metadata_pb2

from serve import native, signatures
from serve.status import Code, ServingError, code_of, not_found


@dataclass(frozen=True)
class SessionOptions:
    """How sessions are made: the tags of the meta graph, threads (0: automatic), whether method names count."""

    tags: tuple[str, ...] = ("serve",)
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    check_method_names: bool = False


class SavedModel:
    """A SavedModel that can be run from several threads at once."""

    def __init__(self, session: Any, signature_defs: Mapping[str, Any], check_method_names: bool = False):
        self._session = session
        self._callables: dict[tuple, Any] = {}
        self._lock = threading.Lock()
        self.signatures = signatures.read(signature_defs, check_method_names)
        self.signature_defs = get_model_metadata_pb2.SignatureDefMap(signature_def=signature_defs)

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> Sequence[np.ndarray]:
        """Feeds tensors of any shape (TF Serving does not enforce the signature's) and returns others."""
        names = tuple(feeds)
        try:
            return self._callable(names, tuple(fetches))(*feeds.values())
        except errors.OpError as error:
            raise _serving_error(error) from error

    def close(self) -> None:
        """Ends the session; variables and graph are freed with it."""
        self._session.close()

    def _callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Any:
        found = self._callables.get((feeds, fetches))
        if found is None:
            options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
            with self._lock:
                found = self._session._make_callable_from_options(options)
                self._callables[feeds, fetches] = found
        return found


def load(path: Path, options: SessionOptions) -> SavedModel:
    """Loads the meta graph with exactly the given tags. Raises ServingError saying why it cannot."""
    _check_files(path)
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
    return SavedModel(session, meta_graph.signature_def, options.check_method_names)


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
    return SavedModel(session, meta_graph.signature_def, options.check_method_names)


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


def _serving_error(error: errors.OpError) -> ServingError:
    return ServingError(code_of(error.error_code), error.message)


def _load_error(error: Exception, path: Path, options: SessionOptions) -> ServingError:
    if isinstance(error, ServingError):
        return error
    if isinstance(error, errors.OpError):
        return _serving_error(error)
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
