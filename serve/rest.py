"""TF Serving's REST API: routes, bodies, codes. No connections here, and nothing runs unless it is asked to."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import unquote

import numpy as np

from serve import (
    content_coding,
    dtypes,
    inference,
    json_answer,
    json_examples,
    json_parse,
    json_request,
    json_results,
    log,
    metadata,
    predict,
)
from serve.model import DEFAULT_SIGNATURE, Model, Signature
from serve.models import Lease, Models, Version
from serve.queues import run_in
from serve.status import Code, ServingError, http_status, invalid
from serve.work import Work

Found = TypeVar("Found")

_INT64_AT_MOST = 2**63 - 1
_CACHED_PATH_AT_MOST = 256
_INFLATED_BYTES_AT_MOST = 256 * 1024 * 1024
_TAKEN = ((b"accept-encoding", b"gzip"),)

_WHICH = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_CALL = re.compile(r"(?i:/v1/models/(?P<name>[^/:]+)" + _WHICH + r"):(?P<verb>classify|regress|predict)")
_LOOK = re.compile(r"(?i:/v1/models(?:/(?P<name>[^/:]+))?" + _WHICH + r"(?P<metadata>/metadata)?)")
_BELOW = re.compile(r"(?i:/v1/)")


@dataclass(slots=True)
class Request:
    """An HTTP request, its body still as it came. `target` is the path with the query, not decoded."""

    method: str
    target: str
    headers: dict[bytes, bytes]
    body: bytes
    inflated_bytes_at_most: int = _INFLATED_BYTES_AT_MOST


@dataclass(slots=True)
class Answer:
    """An HTTP answer. Without a body it has no content type either."""

    status: int
    body: bytes = b""
    code: Code = Code.OK
    kind: bytes = b"application/json"
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclass(frozen=True)
class Which:
    """The model, and maybe the version or label, that a path names."""

    name: str
    version: int | None
    label: str | None


class _HugeVersion(Exception):
    """A version number that no int64 holds; answered by 400 and nothing else."""


@dataclass(slots=True)
class Call:
    """A request that needs its model: the version in use, which its owner gives back, and what it has to run."""

    lease: Lease
    work: Work[Answer]
    verb: str = ""
    signature: str = ""


def read(request: Request, models: Models) -> Answer | Call:
    """The answer of a request, or what has to run for it. Never raises; takes the time that the body's JSON needs."""
    return answered(request, lambda: _route(request, models))


def run(request: Request, call: Call) -> Answer:
    """Runs a call, waits for it, and gives its model back. Never raises."""
    try:
        return answered(request, lambda: run_in(call.lease.queue, call.work))
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
        return Answer(400, code=Code.INVALID_ARGUMENT)
    except content_coding.TooLarge:
        return with_status(413, "Request body inflates to more than is read (--rest_inflated_bytes_at_most)")
    except content_coding.UnknownCoding as error:
        return replace(with_status(415, str(error), Code.UNIMPLEMENTED), headers=_TAKEN)
    except ServingError as error:
        return failure(error)
    except MemoryError:
        return failure(ServingError(Code.RESOURCE_EXHAUSTED, "not enough memory for this request"))
    except Exception as error:  # noqa: BLE001 (a bug is logged, and its client told)
        log.bug(f"{request.method} {request.target.partition('?')[0][:200]}", error)
        return failure(ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}"))


def failure(error: ServingError) -> Answer:
    """The answer for an error: its message, without the code."""
    return with_status(http_status(error.code), error.message, error.code)


def with_status(status: int, message: str, code: Code = Code.INVALID_ARGUMENT) -> Answer:
    """The answer for an error that may have a status of HTTP's own."""
    return Answer(status, b'{"error": ' + json_answer.quoted(message).encode("utf-8", "replace") + b"}", code)


def counted_as(method: str, target: str) -> tuple[str, str] | None:
    """The verb and the model under which a request is counted, empty where it has none.

    None for what is not counted: paths outside /v1/, and OPTIONS.
    """
    # The cache must not hold many long paths of strangers.
    return (_counted_as if len(target) <= 256 else _counted_as.__wrapped__)(method, target)


@functools.lru_cache(1024)
def _counted_as(method: str, target: str) -> tuple[str, str] | None:
    if method == "OPTIONS" or not _BELOW.match(target):
        return None
    match = (_CALL if method == "POST" else _LOOK).fullmatch(target) if method in ("POST", "GET") else None
    if match is None or not match["name"]:
        return "", ""
    verb = match["verb"] if method == "POST" else ""
    return verb, unquote(match["name"], errors="replace")


def _route(request: Request, models: Models) -> Answer | Call:
    if not _BELOW.match(request.target):
        return Answer(404)
    if request.method == "OPTIONS":
        origin = request.headers.get(b"origin", b"")
        return Answer(200 if b"http://" in origin or b"https://" in origin else 400)
    call = _called(request.target) if request.method == "POST" else None
    if call:
        verb, which = call
        return _call(verb, which, _body(request), models)
    look = _LOOK.fullmatch(request.target) if request.method == "GET" else None
    if look is None:
        raise invalid(f"Malformed request: {request.method} {request.target}")
    if not look["name"]:
        raise invalid("Missing model name in request.")
    return (_metadata if look["metadata"] else _status)(_which(look), models)


def _called(target: str) -> tuple[str, Which] | None:
    # Paths of strangers must not fill the cache with long texts.
    return (_call_at if len(target) <= _CACHED_PATH_AT_MOST else _call_at.__wrapped__)(target)


@functools.lru_cache(1024)
def _call_at(target: str) -> tuple[str, Which] | None:
    match = _CALL.fullmatch(target)
    return (match["verb"], _which(match)) if match else None


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


def _body(request: Request) -> bytes:
    coding = request.headers.get(b"content-encoding")
    if coding is None:
        return request.body
    return content_coding.decoded(request.body, coding, request.inflated_bytes_at_most)


# What is left to read of a request when its model is known.
Rest = Callable[[Model], Work[Answer]]


def _predict(document: json_parse.Document) -> Rest:
    named = json_request.named(document)

    def read_rest(model: Model) -> Work[Answer]:
        signature = _signature(model, named)
        request = json_request.tensors(document, signature.inputs)
        form = request.form  # the request itself is not to be kept until its answer
        return predict.work(signature, request.values, lambda outputs: _answer(form, signature, outputs))

    return read_rest


def _answer(form: json_request.Form, signature: Signature, outputs: dict[str, np.ndarray]) -> Answer:
    types = {alias: dtypes.of(tensor, signature.outputs[alias].dtype) for alias, tensor in outputs.items()}
    return Answer(200, json_answer.answer(form, outputs, types))


def _classify(document: json_parse.Document) -> Rest:
    return _on_examples(document, inference.classify, json_results.classes)


def _regress(document: json_parse.Document) -> Rest:
    return _on_examples(document, inference.regress, json_results.regressions)


def _on_examples(
    document: json_parse.Document,
    task: Callable[[Signature], inference.Task[Found]],
    written: Callable[[Found], bytes],
) -> Rest:
    members = json_request.require_object(document)
    named = json_request.signature_name(members) or DEFAULT_SIGNATURE
    examples = json_examples.read(members)
    return lambda model: inference.work(
        [task(inference.signature(model, named))],
        examples,
        lambda results: Answer(200, written(results[0])),
    )


def _signature(model: Model, named: str) -> Signature:
    signature = model.signatures.get(named or DEFAULT_SIGNATURE)
    if signature is None:
        raise invalid(f'Serving signature name: "{named or DEFAULT_SIGNATURE}" not found in signature def')
    if not signature.inputs:
        raise invalid(f"Failed to get input map for signature: {named or 'DEFAULT'}")
    return signature


_VERBS: dict[str, Callable[[json_parse.Document], Rest]] = {
    "predict": _predict,
    "classify": _classify,
    "regress": _regress,
}


def _call(verb: str, which: Which, body: bytes, models: Models) -> Call:
    """Reads a call of a model. TF Serving looks at the JSON first (all of it, if it holds examples), then
    for the model, then at what depends on its signature."""
    document = json_parse.parse(body)
    read_rest = _VERBS[verb](document)
    lease = models.acquire(which.name, which.version, which.label)
    try:
        signature = json_request.named(document)
        return Call(lease, read_rest(lease.model), verb, signature)
    except BaseException:
        lease.release()
        raise


def _status(which: Which, models: Models) -> Answer:
    versions = told(models.status(which.name, which.version))
    return Answer(200, json.dumps({"model_version_status": versions}, indent=1).encode() + b"\n")


def told(versions: Iterable[Version]) -> list[dict]:
    """Versions as a status answer tells them."""
    return [
        {
            "version": str(version.number),
            "state": version.state.name,
            "status": {
                "error_code": version.error.code.name if version.error else "OK",
                "error_message": version.error.message if version.error else "",
            },
        }
        for version in versions
    ]


def _metadata(which: Which, models: Models) -> Answer:
    return Answer(200, metadata.as_json(models.find(which.name, which.version, which.label)))
