"""TF Serving's REST API as an ASGI application: routes, bodies, codes. Models run in a pool of threads."""

import asyncio
import json
import re
import traceback
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from serve import json_answer, json_parse, json_request, log, metadata, predict
from serve.model import DEFAULT_SIGNATURE, Model, Signature
from serve.models import Models
from serve.status import Code, ServingError, http_status, invalid, not_yet

_INT64_AT_MOST = 2**63 - 1
_BODY_BYTES_AT_MOST = 2**31 - 1
_JSON = (b"content-type", b"application/json")
_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
)

_WHICH = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_CALL = re.compile(r"(?i:/v1/models/(?P<name>[^/:]+)" + _WHICH + r"):(?P<verb>classify|regress|predict)")
_LOOK = re.compile(r"(?i:/v1/models(?:/(?P<name>[^/:]+))?" + _WHICH + r"(?P<metadata>/metadata)?)")
_BELOW = re.compile(r"(?i:/v1/)")


@dataclass(frozen=True)
class Request:
    """An HTTP request, its body still as it came. `target` is the path with the query, not decoded."""

    method: str
    target: str
    headers: dict[bytes, bytes]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. Without a body it has no content type either."""

    status: int
    body: bytes = b""


@dataclass(frozen=True)
class Which:
    """The model, and maybe the version or label, that a path names."""

    name: str
    version: int | None
    label: str | None


class _HugeVersion(Exception):
    """A version number that no int64 holds; answered by 400 and nothing else."""


def handle(request: Request, models: Models) -> Answer:
    """Answers a request. Runs models; call it from a thread."""
    try:
        return _route(request, models)
    except _HugeVersion:
        return Answer(400)
    except ServingError as error:
        return failure(error)
    except MemoryError:
        return failure(ServingError(Code.RESOURCE_EXHAUSTED, "not enough memory for this request"))
    except Exception as error:  # noqa: BLE001 (a bug is logged, and its client told)
        log.error("bug", where=f"{request.method} {request.target[:200]}", trace=traceback.format_exc())
        return failure(ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}"))


def failure(error: ServingError) -> Answer:
    """The answer for an error: its message, without the code."""
    text = json_answer.quoted(error.message).encode("utf-8", "replace")
    return Answer(http_status(error.code), b'{"error": ' + text + b"}")


def _route(request: Request, models: Models) -> Answer:
    if not _BELOW.match(request.target):
        return Answer(404)
    if request.method == "OPTIONS":
        origin = request.headers.get(b"origin", b"")
        return Answer(200 if b"http://" in origin or b"https://" in origin else 400)
    call = _CALL.fullmatch(request.target) if request.method == "POST" else None
    if call:
        if call["verb"] not in _VERBS:
            raise not_yet(call["verb"])
        return _VERBS[call["verb"]](_which(call), _inflated(request), models)
    look = _LOOK.fullmatch(request.target) if request.method == "GET" else None
    if look is None:
        raise invalid(f"Malformed request: {request.method} {request.target}")
    if not look["name"]:
        raise invalid("Missing model name in request.")
    return (_metadata if look["metadata"] else _status)(_which(look), models)


def _which(match: re.Match) -> Which:
    version = match["version"]
    if version is not None and (len(version) > 30 or int(version) > _INT64_AT_MOST):
        raise _HugeVersion
    label = match["label"]
    return Which(
        unquote(match["name"], errors="surrogateescape"),
        None if version is None else int(version),
        None if label is None else unquote(label, errors="surrogateescape"),
    )


def _inflated(request: Request) -> bytes:
    if b"gzip" not in request.headers.get(b"content-encoding", b"").lower():
        return request.body
    inflater = zlib.decompressobj(wbits=31)
    try:
        body = inflater.decompress(request.body, _BODY_BYTES_AT_MOST)
    except zlib.error as error:
        raise invalid(f"Request body is not gzip, though its Content-Encoding says so: {error}") from None
    if not inflater.eof:
        raise invalid("Request body in gzip ends too early, or is larger than 2 GiB")
    return body


def _predict(which: Which, body: bytes, models: Models) -> Answer:
    document = json_parse.parse(body)
    named = json_request.signature_name(json_request.require_object(document))
    model = models.find(which.name, which.version, which.label).model
    signature = _signature(model, named)
    request = json_request.tensors(document, signature.inputs)
    outputs = predict.run(model, signature, request.values)
    types = {alias: spec.dtype for alias, spec in signature.outputs.items()}
    return Answer(200, json_answer.answer(request.form, outputs, types))


def _signature(model: Model, named: str) -> Signature:
    signature = model.signatures.get(named or DEFAULT_SIGNATURE)
    if signature is None:
        raise invalid(f'Serving signature name: "{named or DEFAULT_SIGNATURE}" not found in signature def')
    if not signature.inputs:
        raise invalid(f"Failed to get input map for signature: {named or 'DEFAULT'}")
    return signature


# The verbs of TF Serving that are not here yet are refused by name.
_VERBS: dict[str, Callable[[Which, bytes, Models], Answer]] = {"predict": _predict}


def _status(which: Which, models: Models) -> Answer:
    versions = [
        {
            "version": str(version.number),
            "state": version.state.name,
            "status": {
                "error_code": version.error.code.name if version.error else "OK",
                "error_message": version.error.message if version.error else "",
            },
        }
        for version in models.status(which.name, which.version)
    ]
    return Answer(200, json.dumps({"model_version_status": versions}, indent=1).encode())


def _metadata(which: Which, models: Models) -> Answer:
    return Answer(200, metadata.as_json(models.find(which.name, which.version, which.label)))


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
