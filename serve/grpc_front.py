"""Calls of gRPC that hold no thread while their model runs.

gRPC's server gives each call a thread of its executor, which waits for the message, for the model, and for its turn of
the interpreter: six switches of threads for a call take more time than the call. Methods that can begin a call and
answer it later need none: they begin it in the thread that reads from all connections.

gRPC's public interface has no such methods (and its asyncio server is no faster). Everything about a connection is left
to gRPC; only what its threads would do with a call is done here, by its own functions, which are private: where they
are not as they are in grpcio 1.85, `supported` says so, and calls get their threads.
"""

import inspect
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Protocol

import grpc

from serve import log
from serve.status import Code, ServingError

try:
    from grpc import _server
    from grpc._cython import cygrpc
except ImportError:
    _server = cygrpc = None

# What a call is handed over with, and what is used of gRPC's server.
_HANDED = (
    "rpc_event",
    "state",
    "behavior",
    "argument_thunk",
    "request_deserializer",
    "response_serializer",
)
_USED = (
    "_abort",
    "_CANCELLED",
    "_Context",
    "_is_rpc_state_active",
    "_receive_message",
    "_RECEIVE_MESSAGE_TOKEN",
    "_serialize_response",
    "_serialized_request",
    "_status",
)
_NO_FLAGS = 0
_DETAIL_BYTES_AT_MOST = 1024
# Longer messages are read in a thread aside, as others wait meanwhile.
_ASIDE_BYTES = 32 * 1024

# Takes the response or why there is none, once, in any thread.
Reply = Callable[[Any], None]


class Method(Protocol):
    """A unary method that need not be answered in the thread that begins it."""

    def begin(self, request: Any, context: grpc.ServicerContext, reply: Reply) -> None:
        """Begins a call, and soon returns. `reply` gets a response or a ServingError."""


def supported() -> bool:
    """Whether this gRPC hands calls over as it is known here."""
    run = getattr(_server, "_unary_response_in_pool", None)
    return (
        run is not None
        and tuple(inspect.signature(run).parameters) == _HANDED
        and all(hasattr(_server, name) for name in _USED)
    )


class Front(Executor):
    """The executor of a gRPC server: begins calls of a `Method`, and hands all others to `threads`."""

    def __init__(self, threads: Executor):
        self._threads = threads
        self._supported = supported()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """See `concurrent.futures.Executor`. gRPC calls it in the thread that serves, the call's lock held."""
        if self._supported and len(args) == 1 + len(_HANDED) and args[0] is _server._unary_response_in_pool:
            call = _Call(*args[1:])
            if hasattr(call.method, "begin"):
                return call.receive(self._threads)
        return self._threads.submit(fn, *args, **kwargs)


class _Call:
    """A call that was handed over."""

    __slots__ = ("_deserialize", "_event", "_open", "_over", "_serialize", "_state", "method")

    def __init__(self, event: Any, state: Any, method: Any, _: Any, deserialize: Any, serialize: Any):
        self.method = method
        self._event = event
        self._state = state
        self._deserialize = deserialize
        self._serialize = serialize
        self._over: Future = Future()  # gRPC counts calls by it
        self._open = [True]

    def receive(self, aside: Executor) -> Future:
        """Has the message read, and begins the call when it is there."""
        state, rpc = self._state, self._event.call
        take = _server._receive_message(state, rpc, self._deserialize)

        def received(event: Any) -> Any:
            message = _server._serialized_request(event)
            finished = take(event)
            if message is not None and len(message) > _ASIDE_BYTES:
                aside.submit(self._begin)
            else:
                self._begin()
            return finished

        with state.condition:
            if _server._is_rpc_state_active(state):
                rpc.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), received)
                state.due.add(_server._RECEIVE_MESSAGE_TOKEN)
            else:
                self._over.set_result(None)
        return self._over

    def _begin(self) -> None:
        """Never raises, as this would end the thread that serves."""
        state = self._state
        request, state.request = state.request, None
        if request is None:
            self._end(self._refuse_nothing)
            return
        try:
            self.method.begin(request, _server._Context(self._event, state, self._deserialize), self._reply)
        except Exception as error:  # noqa: BLE001 (a bug is logged, and its client told)
            log.bug("begin", error)
            self._reply(ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}"))

    def _refuse_nothing(self) -> None:
        """Answers a call without a message, or with one that is none (to which gRPC has answered)."""
        state = self._state
        with state.condition:
            if not state.statused and state.client is not _server._CANCELLED:
                what = f'"{_text(self._event.call_details.method)}" requires exactly one request message.'
                self._abort(Code.UNIMPLEMENTED, what)

    def _reply(self, answer: Any) -> None:
        """Sends a response, or the status of an error; the first of several."""
        self._end(lambda: self._send(answer))

    def _end(self, step: Callable[[], None]) -> None:
        try:
            self._open.pop()  # one step for the interpreter: only one thread gets it
        except IndexError:
            return
        try:
            step()
        except Exception as error:  # noqa: BLE001 (the thread that answers goes on)
            log.bug("reply", error)
        finally:
            self._over.set_result(None)

    def _send(self, answer: Any) -> None:
        if isinstance(answer, ServingError):
            self._abort(answer.code, cut(answer.message))
            return
        message = _server._serialize_response(self._event, self._state, answer, self._serialize)
        if message is not None:
            _server._status(self._event, self._state, message)

    def _abort(self, code: Code, details: str) -> None:
        state = self._state
        with state.condition:
            state.code, state.details, state.aborted = STATUS[code], details.encode("utf-8", "replace"), True
            _server._abort(state, self._event.call, cygrpc.StatusCode.unknown, b"")


STATUS = {Code(status.value[0]): status for status in grpc.StatusCode}


def cut(details: str) -> str:
    """The details of a status, as TF Serving cuts them."""
    encoded = details.encode("utf-8", "replace")
    if len(encoded) <= _DETAIL_BYTES_AT_MOST:
        return encoded.decode()
    return encoded[:_DETAIL_BYTES_AT_MOST].decode("utf-8", "ignore") + "...TRUNCATED"


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
