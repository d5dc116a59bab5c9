"""The REST API's connections: an ASGI application. Models run in a pool of threads."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import nullcontext
from typing import Any

from serve import log, trace
from serve.models import Models
from serve.observe import Observer, Seen
from serve.pages import Pages
from serve.rest import Answer, Call, Request, failure, read, run
from serve.status import Code, ServingError

_TRACEPARENT = trace.REQUEST_HEADER.encode()
_TRACERESPONSE = trace.ANSWER_HEADER.encode()
_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
)


class Application:
    """The ASGI application. `timeout_s` None: no limit to the time that a request may take."""

    def __init__(
        self,
        models: Models,
        pool: Executor,
        timeout_s: float | None = None,
        cors: bool = False,
        observer: Observer | None = None,
        pages: Pages | None = None,
    ):
        self._observer = observer or Observer()
        self._pages = pages
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
            await self._answer_seen(_request(scope, body), send)

    async def _answer_seen(self, request: Request, send: Callable[[dict], Awaitable[None]]) -> None:
        answer = self._pages.answer(request) if self._pages else None
        if answer:
            await self._send(answer, None, send)
            return
        seen = self._observer.began(request.headers.get(_TRACEPARENT, b"").decode("latin-1"))
        answer = await self._answer(request, seen)
        await self._send(answer, self._observer.ended_rest(seen, request, answer), send)

    async def _answer(self, request: Request, seen: Seen) -> Answer:
        running = asyncio.get_running_loop().run_in_executor(self._pool, self._handle, request, seen)
        try:
            return await asyncio.wait_for(running, self._timeout_s)
        except TimeoutError:
            return failure(ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification"))
        except asyncio.CancelledError:  # the server stops, and this request had its time
            return failure(ServingError(Code.UNAVAILABLE, "The server is stopping"))

    def _handle(self, request: Request, seen: Seen) -> Answer:
        with log.about(seen.trace) if seen.trace else nullcontext():
            found = read(request, self._models)
            return run(request, self._observer.called(seen, found)) if isinstance(found, Call) else found

    async def _send(
        self, answer: Answer, trace_header: str | None, send: Callable[[dict], Awaitable[None]]
    ) -> None:
        headers = [(b"content-length", b"%d" % len(answer.body)), *self._cors]
        if answer.body:
            headers.append((b"content-type", answer.kind))
        if trace_header:
            headers.append((_TRACERESPONSE, trace_header.encode()))
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
