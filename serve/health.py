"""The standard gRPC health service (grpc.health.v1), and what it says of this server.

Source: grpc/health/v1/health.proto.
"""

import enum
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import grpc

from serve import call_threads, protos

_MESSAGES = protos.make(
    "grpc.health.v1",
    # The status is an enum there, which on the wire is an int32.
    {"HealthCheckRequest": "string service 1", "HealthCheckResponse": "int32 status 1"},
)
Request, Response = _MESSAGES["HealthCheckRequest"], _MESSAGES["HealthCheckResponse"]

# The whole server, and the services under the names that TF Serving gives them.
NAMES = ("", "ModelService", "PredictionService")


class Health(enum.IntEnum):
    """What is said of a service."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


Tell = Callable[[Health | None], None]


class Healths:
    """The health of each name. Safe to use from several threads."""

    def __init__(self) -> None:
        self._states = dict.fromkeys(NAMES, Health.SERVING)
        self._watchers: dict[str, list[Tell]] = {}
        self._lock = threading.Lock()

    def check(self, name: str) -> Health | None:
        """What a name's health is; None for a name that is not known."""
        return self._states.get(name)

    def set_all(self, health: Health) -> None:
        """Says the same of every name, to those who watch, too."""
        with self._lock:
            self._states = dict.fromkeys(NAMES, health)
            for name in NAMES:
                for tell in self._watchers.get(name, ()):
                    tell(health)

    def watch(self, name: str, tell: Tell) -> None:
        """Tells a name's health now, and whenever it changes; None at the end. `tell` must not wait."""
        with self._lock:
            self._watchers.setdefault(name, []).append(tell)
            tell(self._states.get(name, Health.SERVICE_UNKNOWN))

    def end(self) -> None:
        """Ends all watches: a server that drains waits for what is open."""
        with self._lock:
            for watchers in self._watchers.values():
                for tell in watchers:
                    tell(None)
            self._watchers = {}

    def leave(self, name: str, tell: Tell) -> None:
        """Ends a watch."""
        with self._lock:
            watchers = self._watchers.get(name, [])
            if tell in watchers:
                watchers.remove(tell)
            if not watchers:
                self._watchers.pop(name, None)


class _Watcher:
    """Tells one client what it watches, in its order, in threads that may wait for it: gRPC's sending does.

    It waits for the thread that serves, which at the same time may want to end another watch.
    """

    def __init__(self, send: Callable[[Any], None], threads: Executor):
        self._send = send
        self._threads = threads
        self._lock = threading.Lock()
        self._pending: deque[Health | None] = deque()
        self._is_telling = False

    def tell(self, health: Health | None) -> None:
        """Never waits."""
        with self._lock:
            self._pending.append(health)
            if self._is_telling:
                return
            self._is_telling = True
        self._threads.submit(self._tell_all)

    def _tell_all(self) -> None:
        while True:
            with self._lock:
                if not self._pending:
                    self._is_telling = False
                    return
                health = self._pending.popleft()
            with call_threads.waiting():
                self._send(None if health is None else Response(status=health))


def handler(healths: Healths, threads: Executor) -> grpc.GenericRpcHandler:
    """The service, to be added to a gRPC server. `threads` run what waits for a client."""

    def check(request: Any, context: grpc.ServicerContext) -> Any:
        health = healths.check(request.service)
        if health is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service[:200]}")
        return Response(status=health)

    def watch(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
        tell = _Watcher(send, threads).tell
        if not context.add_callback(lambda: healths.leave(request.service, tell)):
            return
        healths.watch(request.service, tell)

    # Whoever watches stays for long, and must not take one of the server's few threads for it.
    watch.experimental_non_blocking = True  # type: ignore[attr-defined]
    codec = {"request_deserializer": Request.FromString, "response_serializer": Response.SerializeToString}
    methods = {
        "Check": grpc.unary_unary_rpc_method_handler(check, **codec),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, **codec),
    }
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods)
