"""A small client of container registries: what publishing and pulling one image by digest needs.

Protocol: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md; tokens:
https://distribution.github.io/distribution/spec/auth/token/. Plain http is spoken to this machine only.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, BinaryIO, cast

from deploy.credentials import Login, login_for
from deploy.oci import CHUNK_BYTES, DOCKER_TYPES, INDEX, MANIFEST, Descriptor, of_bytes, parse_json
from pipeline.errors import IntegrityError, ProgramFailed

ATTEMPTS = 5
_BACKOFF_S = 0.25
_PATIENCE_S = 20.0  # the most that one Retry-After is waited for
_SOCKET_TIMEOUT_S = 60.0
_DOCUMENT_BYTES_AT_MOST = 16 << 20
_PAGES_AT_MOST = 10_000
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]")
_ACCEPT = ", ".join(
    (MANIFEST, INDEX, *(old for old, new in DOCKER_TYPES.items() if new in (MANIFEST, INDEX)))
)


class Unreachable(Exception):
    """A try that is worth another: no connection, too many requests, a server's trouble."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Request:
    """What is asked. `body` makes the bytes anew for each try; `size` is how many."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], Iterator[bytes]] | None = None
    size: int = 0


@dataclass
class Answer:
    """What came back; the body is still to be read."""

    status: int
    headers: Message
    body: BinaryIO


Transport = Callable[[Request], Answer]


def speak(request: Request) -> Answer:
    """One request over the network. Raises Unreachable if no answer came."""
    secret = {name: value for name, value in request.headers.items() if name == "Authorization"}
    raw = urllib.request.Request(request.url, method=request.method)  # noqa: S310 (http or https, see _endpoint)
    for name, value in request.headers.items():
        if name not in secret:
            raw.add_header(name, value)
    for (
        name,
        value,
    ) in secret.items():  # not sent on to where a redirect leads, which is often another company
        raw.add_unredirected_header(name, value)
    if request.body is not None:
        raw.data = request.body()
        raw.add_header("Content-Length", str(request.size))
    try:
        answer = _opener(request.url).open(raw, timeout=_SOCKET_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, cast("BinaryIO", error))  # it reads as what it wraps
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(str(getattr(error, "reason", None) or error) or type(error).__name__) from error
    return Answer(answer.status, answer.headers, answer)


def _opener(url: str) -> urllib.request.OpenerDirector:
    host = urllib.parse.urlsplit(url).hostname or ""
    no_proxy = [urllib.request.ProxyHandler({})] if _LOOPBACK.fullmatch(host) or host == "::1" else []
    return urllib.request.build_opener(*no_proxy)


class Client:
    """One repository of one registry, `HOST[:PORT]/NAME`.

    Connection errors, 429 and 5xx are tried again with growing pauses; other refusals
    raise ProgramFailed saying what the registry said and what to do.
    """

    def __init__(
        self,
        repository: str,
        *,
        transport: Transport = speak,
        login: Callable[[str], Login | None] = login_for,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.repository = repository
        self.host, _, self.name = repository.partition("/")
        self._api = f"{_endpoint(self.host)}/v2/{self.name}"
        self._transport = transport
        self._login = login
        self._sleep = sleep
        self._authorization = ""

    def manifest(self, digest: str) -> bytes:
        """The manifest of this digest, verified."""
        answer, body = self._read(f"{self._api}/manifests/{digest}")
        if answer.status == 404:
            raise ProgramFailed(
                f"{digest} is not in {self.repository}. Publish it again, or name another registry."
            )
        if of_bytes(body) != digest:
            raise IntegrityError(
                f"{self.repository} answered {of_bytes(body)} when asked for manifest {digest}"
            )
        return body

    def resolve(self, reference: str) -> str | None:
        """The digest that a tag (or digest) names; None if it names nothing."""
        answer = self._ask(
            Request("HEAD", f"{self._api}/manifests/{reference}", {"Accept": _ACCEPT}), (200, 404)
        )
        if answer.status == 404:
            return None
        named = answer.headers.get("Docker-Content-Digest")  # optional in the specification
        return named or of_bytes(self._read(f"{self._api}/manifests/{reference}")[1])

    def tagged(self, tag: str) -> bytes | None:
        """The manifest that a tag names now; None if it names nothing."""
        answer, body = self._read(f"{self._api}/manifests/{tag}")
        return None if answer.status == 404 else body

    def tags(self) -> list[str]:
        """All tags of the repository; none if it does not exist yet."""
        pages = self._pages("tags/list", "the list of tags")
        return [tag for page in pages for tag in page.get("tags") or []]

    def referrers(self, digest: str) -> list[dict] | None:
        """Descriptors of the manifests that refer to this one; None where the registry keeps no such list."""
        pages = self._pages(f"referrers/{digest}", "the list of referrers")
        return [raw for page in pages for raw in page.get("manifests") or []] if pages else None

    def _pages(self, what: str, name: str) -> list[dict]:
        """The documents of a list that comes in pages; none if there is no such list."""
        pages: list[dict] = []
        url: str | None = f"{self._api}/{what}"
        while url and len(pages) < _PAGES_AT_MOST:
            answer, body = self._read(url)
            if answer.status == 404:
                return pages
            pages.append(parse_json(body, f"{name} of {self.repository}"))
            following = re.search(r'<([^>]+)>\s*;\s*rel="?next', answer.headers.get("Link", ""))
            url = urllib.parse.urljoin(url, following[1]) if following else None
        return pages

    def lacks(self, blob: Descriptor) -> str | None:
        """Why a blob is not in the registry; None if it is."""
        answer = self._ask(Request("HEAD", f"{self._api}/blobs/{blob.digest}"), (200, 404))
        if answer.status == 404:
            return f"{blob.digest} is not in {self.repository}"
        size = answer.headers.get("Content-Length")
        if size is not None and int(size) != blob.size:
            return f"{blob.digest} in {self.repository} has {size} bytes instead of {blob.size}"
        return None

    def push(self, blob: Descriptor, open_blob: Callable[[], BinaryIO]) -> None:
        """Uploads a blob in one streamed request; the registry checks its digest."""
        self._retrying(lambda: self._upload(blob, open_blob))

    def _upload(self, blob: Descriptor, open_blob: Callable[[], BinaryIO]) -> None:
        opened = self._once(
            Request("POST", f"{self._api}/blobs/uploads/", body=lambda: iter(()), size=0), (202,)
        )
        place = urllib.parse.urljoin(f"{self._api}/", opened.headers.get("Location", ""))
        self._refuse_plain(place)
        place += ("&" if "?" in place else "?") + urllib.parse.urlencode({"digest": blob.digest})
        headers = {"Content-Type": "application/octet-stream"}
        self._once(Request("PUT", place, headers, lambda: _chunks(open_blob()), blob.size), (201, 204))

    def put_manifest(self, body: bytes, reference: str, media_type: str = MANIFEST) -> None:
        """Writes a manifest under its digest or a tag."""
        request = Request(
            "PUT",
            f"{self._api}/manifests/{reference}",
            {"Content-Type": media_type},
            lambda: iter((body,)),
            len(body),
        )
        self._ask(request, (201,))

    def open(self, blob: Descriptor) -> BinaryIO:
        """The bytes of a blob; goes on where it was when the connection breaks."""
        return io.BufferedReader(_Download(self, blob), CHUNK_BYTES)

    def fetch(self, blob: Descriptor, start: int) -> BinaryIO:
        """The bytes of a blob from `start` on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        answer = self._ask(Request("GET", f"{self._api}/blobs/{blob.digest}", headers), (200, 206))
        if start and answer.status == 200:  # this registry knows no ranges
            while start > 0:
                start -= len(answer.body.read(min(start, CHUNK_BYTES)) or b"\0" * start)
        return answer.body

    def pause(self, attempt: int, trouble: Unreachable) -> None:
        """Waits before the next try. Raises ProgramFailed when there have been enough."""
        if attempt + 1 >= ATTEMPTS:
            raise ProgramFailed(
                f"{self.host} failed {ATTEMPTS} times: {trouble}. Check that it runs and that this machine"
                " reaches it, then run this again; what was uploaded is kept."
            ) from trouble
        self._sleep(_BACKOFF_S * 2**attempt if trouble.wait_s is None else min(trouble.wait_s, _PATIENCE_S))

    def _read(self, url: str) -> tuple[Answer, bytes]:
        """A small document, whole; or the 404 that came instead."""

        def work() -> tuple[Answer, bytes]:
            answer = self._once(Request("GET", url, {"Accept": _ACCEPT}), (200, 404))
            return answer, _whole(answer)

        return self._retrying(work)

    def _ask(self, request: Request, expected: tuple[int, ...]) -> Answer:
        return self._retrying(lambda: self._once(request, expected))

    def _retrying(self, work: Callable) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                return work()
            except Unreachable as trouble:
                self.pause(attempt, trouble)
        raise AssertionError("pause raises on the last attempt")

    def _once(self, request: Request, expected: tuple[int, ...]) -> Answer:
        """One try, with one login if the registry asks for it."""
        answer = self._send(request)
        if answer.status == 401:
            self._authorization = self._authorize(answer)
            answer = self._send(request)
        if answer.status in expected:
            return answer
        if answer.status == 429 or answer.status >= 500:
            raise Unreachable(f"{_said(answer)} ({answer.status})", _retry_after(answer))
        raise ProgramFailed(self._refusal(request, answer))

    def _send(self, request: Request) -> Answer:
        same_host = urllib.parse.urlsplit(request.url).netloc == urllib.parse.urlsplit(self._api).netloc
        if self._authorization and same_host:
            headers = {**request.headers, "Authorization": self._authorization}
            request = Request(request.method, request.url, headers, request.body, request.size)
        return self._transport(request)

    def _authorize(self, refused: Answer) -> str:
        """The Authorization that a 401's challenge asks for."""
        challenge = refused.headers.get("WWW-Authenticate", "")
        scheme, _, rest = challenge.partition(" ")
        login = self._login(self.host)
        if scheme.lower() == "basic":
            if login is None or self._authorization:
                raise ProgramFailed(self._no_entry(login))
            return login.basic()
        if scheme.lower() == "bearer":
            return self._token(dict(re.findall(r'(\w+)="([^"]*)"', rest)), login)
        raise ProgramFailed(
            f"{self.host} asks for a login of a kind that is not known here: {challenge or 'none named'}"
        )

    def _token(self, challenge: Mapping[str, str], login: Login | None) -> str:
        realm = challenge.get("realm", "")
        self._refuse_plain(realm)
        query = urllib.parse.urlencode(
            {name: challenge[name] for name in ("service", "scope") if name in challenge}
        )
        headers = {"Authorization": login.basic()} if login else {}
        answer = self._transport(Request("GET", f"{realm}{'&' if '?' in realm else '?'}{query}", headers))
        if answer.status >= 500 or answer.status == 429:
            raise Unreachable(f"the token service said {answer.status}", _retry_after(answer))
        if answer.status != 200:
            raise ProgramFailed(self._no_entry(login))
        token = parse_json(_whole(answer), f"the token from {realm}")
        return f"Bearer {token.get('token') or token.get('access_token')}"

    def _no_entry(self, login: Login | None) -> str:
        if login is None:
            return f"{self.host} asks for a login, and the Docker configuration has none: docker login {self.host}"
        return f"{self.host} did not let {login.user} into {self.name}: docker login {self.host}, then run this again"

    def _refusal(self, request: Request, answer: Answer) -> str:
        does = f"{request.method} {urllib.parse.urlsplit(request.url).path}"
        what = f"{self.host} answered {answer.status} to {does}: {_said(answer)}"
        if answer.status == 401:
            return self._no_entry(self._login(self.host))
        moves = {
            403: "The login is known but has no right to this; ask for the right to push to it.",
            404: f"Create the repository {self.name} there, or correct publish.registry.",
            405: "The registry is read-only; publish when it is not.",
            413: "A proxy before the registry refuses bodies of this size; raise its limit.",
        }
        return f"{what}. {moves.get(answer.status, 'The registry does not take this image as it is.')}"

    def _refuse_plain(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme != "https" and not (
            parts.scheme == "http" and (_LOOPBACK.fullmatch(host) or host == "::1")
        ):
            raise ProgramFailed(f"{self.host} sends to {url!r}, which is not https; nothing was sent there")


class _Download(io.RawIOBase):
    """A blob as a stream that survives broken connections."""

    def __init__(self, client: Client, blob: Descriptor):
        self._client = client
        self._blob = blob
        self._at = 0
        self._body: Any = None
        self._broken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            try:
                return self._read(buffer)
            except Unreachable as trouble:
                self._client.pause(self._broken, trouble)
                self._broken += 1
                self._body = None

    def _read(self, buffer: memoryview) -> int:
        if self._at >= self._blob.size:
            return 0
        if self._body is None:
            self._body = self._client.fetch(self._blob, self._at)
        try:
            count = self._body.readinto(buffer)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(str(error)) from error
        if not count:
            raise Unreachable(f"the connection ended after {self._at} of {self._blob.size} bytes")
        self._at += count
        return count


def _endpoint(host: str) -> str:
    if _LOOPBACK.fullmatch(re.sub(r":\d+$", "", host)):
        return f"http://{host}"
    return "https://registry-1.docker.io" if host == "docker.io" else f"https://{host}"


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _whole(answer: Answer) -> bytes:
    """The body of a document. Raises Unreachable if the connection breaks in the middle."""
    try:
        with answer.body:
            return answer.body.read(_DOCUMENT_BYTES_AT_MOST)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"the connection broke: {error}") from error


def _said(answer: Answer) -> str:
    """What the registry says of its refusal, in one line."""
    try:
        text = answer.body.read(4096)
    except (OSError, http.client.HTTPException):
        text = b""
    try:
        first = json.loads(text)["errors"][0]
        return f"{first.get('code', '')} {first.get('message', '')}".strip()
    except (ValueError, LookupError, TypeError, AttributeError):
        return http.client.responses.get(answer.status, "no reason given")


def _retry_after(answer: Answer) -> float | None:
    seconds = answer.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdigit() else None
