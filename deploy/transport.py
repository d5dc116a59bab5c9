"""How requests reach a registry: connections that stay open, proxies, redirects, and what another try is worth."""

from __future__ import annotations

import email.utils
import io
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO, cast

from pipeline.digest import CHUNK_BYTES
from pipeline.errors import ProgramFailed

if TYPE_CHECKING:
    import urllib3

CONNECTIONS = 4  # to one host; more only divide the same line
_CONNECT_TIMEOUT_S = 10.0
_SOCKET_TIMEOUT_S = 60.0
_DOCUMENT_BYTES_AT_MOST = 16 << 20
_REDIRECTS_AT_MOST = 5
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|\[?::1\]?")


class Unreachable(Exception):
    """A try that is worth another: no connection, too many requests, a server's trouble."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


class Refused(ProgramFailed):
    """The registry's answer was no, and it will be no the next time."""

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Request:
    """What is asked. `body` makes the bytes anew for each try; `size` is how many."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], Iterator[bytes]] | None = None
    size: int = 0

    def with_header(self, name: str, value: str) -> Request:
        """The same request with one more header."""
        return replace(self, headers={**self.headers, name: value})


@dataclass
class Answer:
    """What came back; the body is still to be read."""

    status: int
    headers: Mapping[str, str]
    body: BinaryIO


Transport = Callable[[Request], Answer]


class Network:
    """Requests over HTTP. Connections stay open between requests; any number of threads may ask at once.

    The proxies of the environment (HTTPS_PROXY, NO_PROXY) are used, but not for this machine.
    """

    def __init__(self) -> None:
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Answer:
        """The answer, after redirects of what is only read. Raises Unreachable if none came."""
        answer = self._one(request)
        for _ in range(_REDIRECTS_AT_MOST):
            place = answer.headers.get("Location")
            if request.method not in ("GET", "HEAD") or not 300 <= answer.status < 400 or not place:
                return answer
            answer.body.close()
            request = _moved(request, place)
            answer = self._one(request)
        raise ProgramFailed(f"{request.url} is the end of more than {_REDIRECTS_AT_MOST} redirects")

    def _one(self, request: Request) -> Answer:
        import urllib3  # not loaded to look at a folder

        try:
            response = self._pool(request.url).request(
                request.method,
                request.url,
                body=request.body() if request.body else None,
                headers=_headers(request),
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
            )
            if request.method != "GET":  # what is small is read at once, which frees the connection
                return Answer(response.status, response.headers, io.BytesIO(response.read()))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(_reason(error)) from error
        return Answer(response.status, response.headers, cast("BinaryIO", response))

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy(url)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = _manager(proxy)
            return self._pools[proxy]


def _manager(proxy: str) -> urllib3.PoolManager:
    import urllib3

    timeout = urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=_SOCKET_TIMEOUT_S)
    if proxy:
        return urllib3.ProxyManager(proxy, maxsize=CONNECTIONS, timeout=timeout, blocksize=CHUNK_BYTES)
    return urllib3.PoolManager(maxsize=CONNECTIONS, timeout=timeout, blocksize=CHUNK_BYTES)


def _headers(request: Request) -> dict[str, str]:
    size = {"Content-Length": str(request.size)} if request.body else {}
    return {"User-Agent": "tidegate", **request.headers, **size}


def _proxy(url: str) -> str:
    """The proxy for a URL, as the environment names it; empty for none."""
    import urllib.request

    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(parts.netloc):
        return ""
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    return proxy if "://" in proxy or not proxy else f"http://{proxy}"


def _moved(request: Request, place: str) -> Request:
    """The request to where a redirect leads. A login stays behind: it often leads to another company."""
    was = urllib.parse.urlsplit(request.url)
    url = following(was.netloc, request.url, place)
    kept = request.headers
    if was.netloc != urllib.parse.urlsplit(url).netloc:
        kept = {name: text for name, text in kept.items() if name != "Authorization"}
    return replace(request, url=url, headers=kept)


def _reason(error: Exception) -> str:
    """What went wrong, without urllib3's own objects in the text."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return re.sub(r"^<?[\w.]*Connection\w*\(.*?\)>?: ", "", str(cause)) or type(cause).__name__


def is_loopback(host: str) -> bool:
    """Whether a host (without its port) is this machine."""
    return bool(_LOOPBACK.fullmatch(host))


def following(host: str, base: str, place: str) -> str:
    """The address that a host names for what comes next. Raises ProgramFailed if it is none, or not safe."""
    try:
        url = urllib.parse.urljoin(base, place)
    except ValueError:
        url = place
    if not is_safe(url):
        # Without its query: that may hold a ticket.
        raise ProgramFailed(
            f"{host} sends to {url.partition('?')[0]!r}, which is not https; nothing was sent there"
        )
    return url


def is_safe(url: str) -> bool:
    """Whether what is sent there cannot be read on the way: https, or this machine."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return False  # no address at all
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def is_token(text: str) -> bool:
    """Whether a text can stand in a header as a token."""
    return bool(re.fullmatch(r"[!-~]+", text))


def whole(answer: Answer) -> bytes:
    """The body of a document. Raises Unreachable if the connection breaks in the middle."""
    with answer.body:
        return read(answer.body, _DOCUMENT_BYTES_AT_MOST)


def read(body: BinaryIO, size: int) -> bytes:
    """Up to `size` bytes of a body. Raises Unreachable if the connection breaks."""
    import http.client

    import urllib3

    try:
        return body.read(size)
    except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError) as error:
        raise Unreachable(f"the connection broke: {_reason(error)}") from error


def said(answer: Answer) -> str:
    """What a server says of its refusal, in one line."""
    try:
        with answer.body:
            first = json.loads(read(answer.body, 4096))["errors"][0]
        return f"{first.get('code', '')} {first.get('message', '')}".strip()
    except (Unreachable, ValueError, LookupError, TypeError, AttributeError):
        return _phrase(answer.status)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no reason given"


def number(text: str | None) -> int | None:
    """A number as a header says it; None where it says none."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


def retry_after_s(answer: Answer) -> float | None:
    """How long a server asks to be left alone (seconds, or a date: RFC 9110, 10.2.3); None if it does not say."""
    text = answer.headers.get("Retry-After", "").strip()
    seconds = number(text)
    if seconds is not None:
        return float(seconds)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
