"""tensorflow.ProfilerService on the gRPC port: what TensorBoard's "capture profile" asks.

TensorFlow has a server of its own for it, which opens another port to all addresses; this one answers where the models
do. It writes files where its clients say, so it is for an address that only this machine reaches.
Needs `serve.framework.lean` (or TensorFlow itself) before it is used.
Source: tsl/profiler/protobuf/profiler_service.proto.
"""

import contextlib
import ipaddress
import threading
from pathlib import Path
from typing import Any

import grpc

from serve import call_threads, log, protos

_MESSAGES = protos.make(
    "tensorflow",
    {
        "ProfileRequest": """
            uint64 duration_ms 1
            string repository_root 5
            string session_id 6
            string host_name 7
        """,
        "ProfileResponse": "bool empty_trace 7",
    },
)
ProfileRequest, ProfileResponse = _MESSAGES["ProfileRequest"], _MESSAGES["ProfileResponse"]

_MS_AT_MOST = 10 * 60 * 1000
_NO_EVENTS_BYTES = 100  # a trace that holds the name of the host alone
_one_at_a_time = threading.Lock()


def profile(request: Any, context: grpc.ServicerContext) -> Any:
    """Traces for a while, and writes what TensorFlow did to where TensorBoard looks."""
    if request.duration_ms > _MS_AT_MOST:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"duration_ms is at most {_MS_AT_MOST}")
    target = _target(request)
    if target is None:
        return context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, "session_id and host_name are names, not paths"
        )
    if not _one_at_a_time.acquire(blocking=False):
        context.abort(grpc.StatusCode.ALREADY_EXISTS, "Another profile session is running")
    try:
        trace = _trace(request, context)
    finally:
        _one_at_a_time.release()
    if request.repository_root:
        _write(target, trace, context)
    return ProfileResponse(empty_trace=len(trace) < _NO_EVENTS_BYTES)


def _target(request: Any) -> Path | None:
    """The file of a trace; None for names that would lead elsewhere."""
    host = request.host_name.replace(":", "_") or "localhost"
    for name in (request.session_id, host):
        if "/" in name or "\0" in name or name in (".", ".."):
            return None
    return Path(request.repository_root) / request.session_id / f"{host}.xplane.pb"


def _trace(request: Any, context: grpc.ServicerContext) -> bytes:
    """A serialized XSpace, with TensorFlow's default options: its Python session takes no others (2.20, 2.21)."""
    from tensorflow.python.profiler.internal import _pywrap_profiler

    session = _pywrap_profiler.ProfilerSession()
    session.start("", {})
    left = threading.Event()
    if context.add_callback(left.set):
        with call_threads.waiting():
            left.wait(request.duration_ms / 1000)
    return session.stop()


def _write(target: Path, trace: bytes, context: grpc.ServicerContext) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(trace)
    except OSError as error:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{target} cannot be written: {error.strerror}")
    log.info("profiled", file=target, bytes=len(trace))


def is_for(address: str) -> bool:
    """Whether only this machine reaches an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return address == "localhost"


def handler() -> grpc.GenericRpcHandler:
    """The service, to be added to a gRPC server. It has Profile alone; Monitor and Terminate are UNIMPLEMENTED."""
    method = grpc.unary_unary_rpc_method_handler(
        profile, ProfileRequest.FromString, ProfileResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler("tensorflow.ProfilerService", {"Profile": method})
