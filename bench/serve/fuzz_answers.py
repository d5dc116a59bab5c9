"""Reads what an HTTP port answered, and takes nothing on trust."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_STATUSES = {200, 400, 404, 408, 409, 413, 415, 417, 429, 431, 499, 501, 503, 504}
_LEAKS = (b"Traceback (", b'File "', b"site-packages")


class Fault(Exception):
    """What an answer should not have been."""


@dataclass(frozen=True)
class Answered:
    """An answer that was well-formed."""

    status: int
    closes: bool


def send(connection: socket.socket, parts: Sequence[bytes]) -> bool:
    """Whether all was taken; a server may close before it has read what it refuses."""
    try:
        for part in parts:
            connection.sendall(part)
    except ConnectionError:
        return False
    return True


def to_the_end(connection: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    found: list[bytes] = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            found.append(part)
    return b"".join(found)


def all_of(raw: bytes, without_body: bool) -> tuple[list[int], bytes]:
    """The statuses of all answers in some bytes, and what is left. Raises Fault."""
    file = io.BytesIO(raw)
    found: list[int] = []
    while (at := file.tell()) < len(raw):
        if raw.startswith(b"HTTP/1.1 100 Continue\r\n\r\n", at):
            file.seek(25, os.SEEK_CUR)
            continue
        answer = one(file, without_body)
        if answer is None:
            return found, raw[at:]
        found.append(answer.status)
    return found, b""


def one(file: Any, without_body: bool = False) -> Answered | None:
    """Reads one answer; None at the end. Raises Fault where it is not well-formed."""
    first = file.readline(1000)
    if not first:
        return None
    words = first.split(b" ", 2)
    if len(words) != 3 or words[0] != b"HTTP/1.1" or not words[1].isdigit():
        raise Fault(f"no status line: {first!r}")
    headers: dict[bytes, bytes] = {}
    while (line := file.readline(65536)) != b"\r\n":
        name, colon, value = line.partition(b": ")
        if not colon or not line.endswith(b"\r\n"):
            raise Fault(f"no header: {line!r}")
        headers[name.lower()] = value.strip()
    size = int(headers.get(b"content-length", b"0"))
    content = b"" if without_body else file.read(size)
    if not without_body and len(content) != size:
        raise Fault(f"an answer of {size} bytes ended after {len(content)}")
    _check(int(words[1]), content)
    return Answered(int(words[1]), headers.get(b"connection", b"").lower() == b"close")


def _check(status: int, content: bytes) -> None:
    no_leak(content)
    if status not in _STATUSES:
        raise Fault(f"status {status}: {content[:300]!r}")
    if not content:
        return
    try:
        told = json.loads(content.decode("utf-8", "surrogateescape"), strict=False)
    except (ValueError, RecursionError) as error:
        raise Fault(f"status {status}, and no JSON ({error}): {content[:300]!r}") from error
    if status != 200 and not (isinstance(told, dict) and isinstance(told.get("error"), str)):
        raise Fault(f"status {status} without an error: {content[:300]!r}")


def no_leak(told: bytes) -> None:
    """Raises Fault where a text shows our insides."""
    if any(leak in told for leak in _LEAKS):
        raise Fault(f"a traceback: {told[:500]!r}")
