"""HTTP answers as bytes."""

import time
from http import HTTPStatus

from serve.rest import Answer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_CORS = (
    b"Access-Control-Allow-Origin: *\r\n"
    b"Access-Control-Allow-Methods: POST, GET\r\n"
    b"Access-Control-Allow-Headers: Content-Type\r\n"
)
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus} | {499: b"Client Closed Request"}


class Writer:
    """Writes answers, with the headers that all of them have."""

    def __init__(self, cors: bool = False):
        self._cors = _CORS if cors else b""
        self._heads: dict[tuple[int, bytes], bytes] = {}
        self._date, self._dated = b"", 0

    def write(self, answer: Answer, *, connection: bytes = b"", without_body: bool = False) -> bytes:
        """The answer to a request. `connection` is that header's value; `without_body` is for HEAD."""
        head = self._heads.get((answer.status, answer.kind if answer.body else b""))
        if head is None:
            head = self._head(answer)
        parts = [head, self._now(), b"Content-Length: %d\r\n" % len(answer.body)]
        if answer.headers:
            parts += [b"%s: %s\r\n" % pair for pair in answer.headers]
        if connection:
            parts.append(b"Connection: %s\r\n" % connection)
        parts.append(b"\r\n")
        if not without_body:
            parts.append(answer.body)
        return b"".join(parts)

    def _head(self, answer: Answer) -> bytes:
        kind = answer.kind if answer.body else b""
        typed = b"Content-Type: %s\r\n" % kind if kind else b""
        reason = _REASONS.get(answer.status, b"Unknown")
        head = b"HTTP/1.1 %d %s\r\n" % (answer.status, reason) + typed + self._cors
        self._heads[answer.status, kind] = head
        return head

    def _now(self) -> bytes:
        now = int(time.time())
        if now != self._dated:
            self._date = time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now)).encode()
            self._dated = now
        return self._date
