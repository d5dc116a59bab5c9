"""What a gRPC method raises, as the status that its client gets; and what is told of its calls."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from serve import log, trace
from serve.grpc_front import STATUS, cut
from serve.observe import GRPC, Observer, Seen
from serve.status import Code, ServingError

# A client without a deadline has one in some hundred years, more than locks can wait.
_FOREVER_S = 10 * 365 * 86400.0


class Service(Protocol):
    """A servicer whose methods are seen."""

    observer: Observer


def answered(method: Callable[[Any, Any], Any]) -> Callable:
    """Turns what a method raises into a gRPC status; tells the observer."""
    api = method.__name__

    def answer(self: Service, request: Any, context: grpc.ServicerContext) -> Any:
        seen = began(self.observer, context)
        response, failed = outcome(lambda: method(self, request), api, seen)
        ended(self.observer, seen, api, request, context, failed)
        if failed:
            context.abort(STATUS[failed.code], cut(failed.message))
        return response

    return answer


def began(observer: Observer, context: grpc.ServicerContext) -> Seen:
    """A call that begins."""
    seen = observer.began(_traceparent(context))
    remaining_s = context.time_remaining()
    if remaining_s is not None and remaining_s < _FOREVER_S:
        seen.deadline = time.monotonic() + remaining_s
    return seen


def outcome(step: Callable[[], Any], api: str, seen: Seen) -> tuple[Any, ServingError | None]:
    """What a step of a call gives, or why it fails."""
    try:
        return step(), None
    except ServingError as error:
        return None, error
    except MemoryError:
        return None, ServingError(Code.RESOURCE_EXHAUSTED, "not enough memory for this request")
    except Exception as error:  # noqa: BLE001 (a bug is logged, and its client told)
        with log.about(seen.trace):
            log.bug(api, error)
        return None, ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")


def ended(
    observer: Observer,
    seen: Seen,
    api: str,
    request: Any,
    context: grpc.ServicerContext,
    failed: ServingError | None,
) -> None:
    """The call's end, before its answer is sent: it may get a header."""
    header = observer.ended(seen, GRPC, api, _model(request), failed.code if failed else Code.OK)
    if header:
        context.set_trailing_metadata(((trace.ANSWER_HEADER, header),))


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
