"""From the bytes of an HTTP/1 connection to requests. No connection here.

llhttp reads the syntax, and refuses what could be read in two ways. What it would keep without end is counted here.
"""

from collections import deque
from typing import Any

import httptools

from serve.http_limits import Limits, Room
from serve.rest import Answer, Request, failure, with_status
from serve.status import Code, ServingError


class Refusal(Exception):
    """A request that is answered without being read to its end; the connection cannot go on after it."""

    def __init__(self, answer: Answer):
        super().__init__()
        self.answer = answer


class Received:
    """A whole request, and how its answer has to look."""

    __slots__ = ("keep_alive", "old", "request", "size", "without_body")

    def __init__(self, request: Request, keep_alive: bool, old: bool):
        self.request: Request | None = request
        self.size = len(request.body)
        self.keep_alive = keep_alive
        self.old = old
        self.without_body = request.method == "HEAD"


class Reader:
    """Reads one connection. `received` are the requests that are whole; who takes one frees its body in `room`."""

    __slots__ = (
        "_begun", "_body", "_fed", "_head_bytes", "_headers", "_in_head", "_limits", "_parser", "_refusal", "_room",
        "_target", "_unseen",
        "began", "expects_continue", "received", "receiving", "size",
    )  # fmt: skip

    def __init__(self, limits: Limits, room: Room):
        self._limits = limits
        self._room = room
        self._parser: Any = None
        self._refusal: Answer | None = None
        self._in_head = False
        self._head_bytes = self._unseen = self._begun = self._fed = 0
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: bytes | bytearray = b""
        self.received: deque[Received] = deque()
        self.receiving = self.expects_continue = False
        self.size = 0
        self.began: float | None = None

    def feed(self, data: bytes) -> None:
        """Reads what came. Raises Refusal; then nothing more can be read."""
        in_head, was_receiving = self._in_head, self.receiving
        self._begun = 0
        while data:
            data = self._feed(data)
        if self._in_head:
            self._count_unseen(in_head, was_receiving)

    def _feed(self, data: bytes) -> bytes:
        """Reads, and gives what has to be read again."""
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        self._fed = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._downgraded() + data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            raise Refusal(
                self._refusal or _refused(Code.INVALID_ARGUMENT, f"Malformed HTTP: {error}")
            ) from None
        return b""

    def _downgraded(self) -> bytes:
        """The head of the last request without its wish for another protocol: none is spoken here.

        The parser takes what follows such a head for that protocol, though it is the request's body.
        """
        self._parser = None
        request = self.received.pop().request
        if request is None or request.method == "CONNECT":
            raise Refusal(_refused(Code.INVALID_ARGUMENT, "Malformed HTTP: CONNECT is for proxies"))
        lines = [b"%b %b HTTP/1.1" % (request.method.encode("latin-1"), self._target)]
        lines += [
            b"%b: %b" % pair for pair in request.headers.items() if pair[0] not in (b"upgrade", b"connection")
        ]
        return b"\r\n".join([*lines, b"", b""])

    def drop(self) -> None:
        """Frees all that was read."""
        self._room.used -= self.size
        self.size, self._body = 0, b""
        while self.received:
            self._room.used -= self.received.popleft().size
        self._parser = None
        self.receiving = False

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self.receiving = self._in_head = True
        self.began = None
        self._begun += 1
        self._head_bytes = self._unseen = 0
        self._target = b""
        self._headers = {}

    def on_url(self, url: bytes) -> None:
        """A part of the target, mostly all of it."""
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer, which nobody here needs."""
        self._count_head(len(name) + len(value) + 4)
        if self._in_head:
            name = name.lower()
            if name == b"content-encoding" and name in self._headers:  # each line names one more coding
                value = self._headers[name] + b"," + value
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        headers = self._headers
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            self._refuse(self._body_too_large())
        if b"expect" in headers:
            is_new = self._parser.get_http_version() != "1.0"
            self.expects_continue = is_new and headers[b"expect"].lower() == b"100-continue"

    def on_body(self, part: bytes) -> None:
        """A part of the body, mostly all of it."""
        self.expects_continue = False
        self.size += len(part)
        self._room.used += len(part)
        if self.size > self._limits.body_bytes:
            self._refuse(self._body_too_large())
        if self._room.used > self._room.at_most:
            what = "the bodies of all requests are too large together (--rest_all_bodies_bytes_at_most)"
            self._refuse(_refused(Code.RESOURCE_EXHAUSTED, what))
        if not self._body:
            self._body = part
            return
        if isinstance(self._body, bytes):
            self._body = bytearray(self._body)
        self._body += part

    def on_message_complete(self) -> None:
        """The request is whole."""
        self.receiving = self.expects_continue = False
        body, self._body, self.size = bytes(self._body), b"", 0
        method = self._parser.get_method().decode("latin-1")
        request = Request(method, _path(self._target), self._headers, body)
        is_old = self._parser.get_http_version() == "1.0"
        self.received.append(Received(request, self._parser.should_keep_alive(), is_old))

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes:
            self._refuse(self._head_too_large())

    def _count_unseen(self, in_head: bool, was_receiving: bool) -> None:
        """Counts what the parser keeps of a header that has not ended; where the head began behind others, not yet."""
        if in_head and not self._begun:
            self._unseen += self._fed
        elif self._begun == 1 and not was_receiving:
            self._unseen = self._fed
        if self._unseen > self._limits.head_bytes:
            raise Refusal(self._head_too_large())

    def _refuse(self, answer: Answer) -> None:
        self._refusal = answer
        raise Refusal(answer)  # the parser makes an error of its own of it

    def _head_too_large(self) -> Answer:
        most = self._limits.head_bytes
        return with_status(431, f"Request head is larger than {most} bytes (--rest_head_bytes_at_most)")

    def _body_too_large(self) -> Answer:
        most = self._limits.body_bytes
        return with_status(413, f"Request body is larger than {most} bytes (--rest_body_bytes_at_most)")


def _refused(code: Code, message: str) -> Answer:
    return failure(ServingError(code, message))


def _path(target: bytes) -> str:
    """The path and query of a target; a proxy may send them behind scheme and host."""
    text = target.decode("latin-1")
    if not text.startswith("/") and "://" in text:
        _, slash, rest = text.partition("://")[2].partition("/")
        return slash + rest or "/"
    return text
