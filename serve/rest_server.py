"""The REST API's connections: an ASGI application. Models run in a pool of threads."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

from serve.models import Models
from serve.rest import Answer, Request, failure, handle
from serve.status import Code, ServingError

_JSON = (b"content-type", b"application/json")
_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
)


class Application:
    """The ASGI application. `timeout_s` None: no limit to the time that a request may take."""

    def __init__(self, models: Models, pool: Executor, timeout_s: float | None = None, cors: bool = False):
        self._models = models
        self._pool = pool
        self._timeout_s = timeout_s
        self._cors = _CORS if cors else ()

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict]],
        send: Callable[[dict], Awaitable[None]],
    ) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        body = await _body(receive)
        if body is not None:
            await self._send(await self._answer(_request(scope, body)), send)

    async def _answer(self, request: Request) -> Answer:
        running = asyncio.get_running_loop().run_in_executor(self._pool, handle, request, self._models)
        try:
            return await asyncio.wait_for(running, self._timeout_s)
        except TimeoutError:
            return failure(ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification"))
        except asyncio.CancelledError:  # the server stops, and this request had its time
            return failure(ServingError(Code.UNAVAILABLE, "The server is stopping"))

    async def _send(self, answer: Answer, send: Callable[[dict], Awaitable[None]]) -> None:
        headers = [(b"content-length", b"%d" % len(answer.body)), *self._cors]
        if answer.body:
            headers.append(_JSON)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


def _request(scope: dict[str, Any], body: bytes) -> Request:
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    return Request(scope["method"], target.decode("latin-1"), dict(scope["headers"]), body)


async def _body(receive: Callable[[], Awaitable[dict]]) -> bytes | None:
    """The whole body; None if the client left."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
