"""What a gRPC method raises, as the status that its client gets."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from serve import log, trace
from serve.observe import GRPC, Observer, Seen
from serve.status import Code, ServingError, not_yet

_DETAIL_BYTES_AT_MOST = 1024
# A client without a deadline has one in some hundred years, more than locks can wait.
_FOREVER_S = 10 * 365 * 86400.0


class Service(Protocol):
    """A servicer whose methods are seen."""

    observer: Observer


def answered(method: Callable[[Any, Any, Seen], Any]) -> Callable:
    """Turns what a method raises into a gRPC status, its details cut as TF Serving cuts them; tells the observer."""
    api = method.__name__

    def answer(self: Service, request: Any, context: grpc.ServicerContext) -> Any:
        seen = self.observer.began(_traceparent(context))
        seen.when_left = context.add_callback
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s < _FOREVER_S:
            seen.deadline = time.monotonic() + remaining_s
        response, failed = _outcome(method, self, request, seen)
        code = failed.code if failed else Code.OK
        header = self.observer.ended(seen, GRPC, api, _model(request), code)
        if header:
            context.set_trailing_metadata(((trace.ANSWER_HEADER, header),))
        if failed:
            context.abort(_STATUS[code], _cut(failed.message))
        self.observer.sampled(api, request, response)
        return response

    return answer


def _outcome(method: Callable, service: Any, request: Any, seen: Seen) -> tuple[Any, ServingError | None]:
    try:
        return method(service, request, seen), None
    except ServingError as error:
        return None, error
    except MemoryError:
        return None, ServingError(Code.RESOURCE_EXHAUSTED, "not enough memory for this request")
    except Exception as error:  # noqa: BLE001 (a bug is logged, and its client told)
        with log.about(seen.trace):
            log.bug(method.__name__, error)
        return None, ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")


def _traceparent(context: grpc.ServicerContext) -> str | None:
    for key, value in context.invocation_metadata():
        if key == trace.REQUEST_HEADER:
            return value
    return None


def _model(request: Any) -> str:
    """The model that a request names."""
    if hasattr(request, "model_spec"):
        return request.model_spec.name
    return request.tasks[0].model_spec.name if getattr(request, "tasks", None) else ""


def later(method: str) -> Callable:
    """A method of the contract that is not here yet."""

    def refuse(_self: Any, _request: Any, _seen: Seen) -> Any:
        raise not_yet(method)

    refuse.__name__ = method
    return answered(refuse)


_STATUS = {Code(status.value[0]): status for status in grpc.StatusCode}


def _cut(details: str) -> str:
    encoded = details.encode("utf-8", "replace")
    if len(encoded) <= _DETAIL_BYTES_AT_MOST:
        return encoded.decode()
    return encoded[:_DETAIL_BYTES_AT_MOST].decode("utf-8", "ignore") + "...TRUNCATED"
