"""The standard gRPC health service (grpc.health.v1), and what it says of this server.

Its two messages hold one field each, so they are made from descriptors. Source: grpc/health/v1/health.proto.
"""

import enum
import threading
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

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


def handler(healths: Healths) -> grpc.GenericRpcHandler:
    """The service, to be added to a gRPC server."""

    def check(request: Any, context: grpc.ServicerContext) -> Any:
        health = healths.check(request.service)
        if health is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service[:200]}")
        return Response(status=health)

    def watch(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
        def tell(health: Health | None) -> None:
            send(None if health is None else Response(status=health))

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


def _messages() -> tuple[Any, Any]:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="serve/health.proto", package="grpc.health.v1", syntax="proto3"
    )
    # The status is an enum there, which on the wire is an int32.
    for name, field, kind in (
        ("HealthCheckRequest", "service", kinds.TYPE_STRING),
        ("HealthCheckResponse", "status", kinds.TYPE_INT32),
    ):
        message = file.message_type.add(name=name)
        message.field.add(name=field, number=1, type=kind, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    found = (pool.FindMessageTypeByName(f"grpc.health.v1.{message.name}") for message in file.message_type)
    request, response = map(message_factory.GetMessageClass, found)
    return request, response


Request, Response = _messages()
