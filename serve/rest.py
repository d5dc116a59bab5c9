"""TF Serving's REST API: routes, bodies, codes. No connections here, and nothing runs unless it is asked to."""

import json
import re
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote

from serve import json_answer, json_parse, json_request, log, metadata, predict
from serve.model import DEFAULT_SIGNATURE, Model, Signature
from serve.models import Lease, Models
from serve.status import Code, ServingError, http_status, invalid, not_yet
from serve.work import Work

Found = TypeVar("Found")

_INT64_AT_MOST = 2**63 - 1
_BODY_BYTES_AT_MOST = 2**31 - 1

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


@dataclass(frozen=True)
class Call:
    """A request that needs its model: the version in use, which its owner gives back, and what it has to run."""

    lease: Lease
    work: Work[Answer]


def read(request: Request, models: Models) -> Answer | Call:
    """The answer of a request, or what has to run for it. Never raises; takes the time that the body's JSON needs."""
    return answered(request, lambda: _route(request, models))


def run(request: Request, call: Call) -> Answer:
    """Runs a call in this thread, and gives its model back. Never raises."""
    try:
        return answered(request, lambda: call.work.run(call.lease.model))
    finally:
        call.lease.release()


def handle(request: Request, models: Models) -> Answer:
    """Answers a request, all in this thread."""
    found = read(request, models)
    return run(request, found) if isinstance(found, Call) else found


def answered(request: Request, step: Callable[[], Found]) -> Found | Answer:
    """What a step gives, or the answer for what it raises."""
    try:
        return step()
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


def _route(request: Request, models: Models) -> Answer | Call:
    if not _BELOW.match(request.target):
        return Answer(404)
    if request.method == "OPTIONS":
        origin = request.headers.get(b"origin", b"")
        return Answer(200 if b"http://" in origin or b"https://" in origin else 400)
    call = _CALL.fullmatch(request.target) if request.method == "POST" else None
    if call:
        if call["verb"] not in _VERBS:
            raise not_yet(call["verb"])
        return _call(call["verb"], _which(call), _inflated(request), models)
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


def _predict(document: json_parse.Document, model: Model) -> Work[Answer]:
    named = json_request.signature_name(json_request.require_object(document))
    signature = _signature(model, named)
    request = json_request.tensors(document, signature.inputs)
    types = {alias: spec.dtype for alias, spec in signature.outputs.items()}
    return predict.work(
        signature,
        request.values,
        lambda outputs: Answer(200, json_answer.answer(request.form, outputs, types)),
    )


def _signature(model: Model, named: str) -> Signature:
    signature = model.signatures.get(named or DEFAULT_SIGNATURE)
    if signature is None:
        raise invalid(f'Serving signature name: "{named or DEFAULT_SIGNATURE}" not found in signature def')
    if not signature.inputs:
        raise invalid(f"Failed to get input map for signature: {named or 'DEFAULT'}")
    return signature


# The verbs of TF Serving that are not here yet are refused by name.
_VERBS: dict[str, Callable[[json_parse.Document, Model], Work[Answer]]] = {"predict": _predict}


def _call(verb: str, which: Which, body: bytes, models: Models) -> Call:
    """Reads a call of a model. TF Serving looks at the JSON first, then for the model, then at the rest."""
    document = json_parse.parse(body)
    json_request.signature_name(json_request.require_object(document))
    lease = models.acquire(which.name, which.version, which.label)
    try:
        return Call(lease, _VERBS[verb](document, lease.model))
    except BaseException:
        lease.release()
        raise


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
