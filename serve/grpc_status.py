"""What a gRPC method raises, as the status that its client gets."""

import traceback
from collections.abc import Callable
from typing import Any

import grpc

from serve import log
from serve.status import Code, ServingError, not_yet

_DETAIL_BYTES_AT_MOST = 1024


def answered(method: Callable) -> Callable:
    """Turns what a method raises into a gRPC status, its details cut as TF Serving cuts them."""

    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request)
        except ServingError as error:
            failed = error
        except MemoryError:
            failed = ServingError(Code.RESOURCE_EXHAUSTED, "not enough memory for this request")
        except Exception as error:  # noqa: BLE001 (a bug is logged, and its client told)
            log.error("bug", where=method.__name__, trace=traceback.format_exc())
            failed = ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")
        return context.abort(_STATUS[failed.code], _cut(failed.message))

    return answer


def later(method: str) -> Callable:
    """A method of the contract that is not here yet."""

    def refuse(_self: Any, _request: Any) -> Any:
        raise not_yet(method)

    return answered(refuse)


_STATUS = {Code(status.value[0]): status for status in grpc.StatusCode}


def _cut(details: str) -> str:
    encoded = details.encode("utf-8", "replace")
    if len(encoded) <= _DETAIL_BYTES_AT_MOST:
        return encoded.decode()
    return encoded[:_DETAIL_BYTES_AT_MOST].decode("utf-8", "ignore") + "...TRUNCATED"
