"""What a request body is in once its Content-Encoding is undone: gzip (RFC 1952) and nothing else."""

import zlib

from serve.status import invalid

# A body of empty members would otherwise cost far more time than its size says.
_MEMBERS_AT_MOST = 10_000
# What follows a member is copied when the member ends: parts keep that from growing with the body.
_PART_BYTES = 16 * 1024
_GZIP_HEADER = 31
_UNLIMITED = 2**63 - 1


class TooLarge(Exception):
    """A body that inflates to more than is read; answered by 413."""


class UnknownCoding(Exception):
    """A body in a coding that is not undone here; answered by 415. Its text is for the client."""


def decoded(body: bytes, coding: bytes, at_most: int) -> bytes:
    """A body whose Content-Encoding is `coding`, as it was before.

    Raises UnknownCoding, TooLarge beyond `at_most` bytes, INVALID_ARGUMENT for what is not whole gzip members.
    """
    names = [name.strip().lower() for name in coding.split(b",")]
    names = [name for name in names if name not in (b"", b"identity")]
    if not names:
        return body
    if len(names) > 1 or names[0] not in (b"gzip", b"x-gzip"):
        raise UnknownCoding(
            f"Content-Encoding {coding[:100].decode('latin-1')!r} cannot be undone: "
            "send the body as it is, or in gzip, once"
        )
    try:
        return _inflated(body, at_most)
    except zlib.error as error:
        raise invalid(f"Request body is not gzip, though its Content-Encoding says so: {error}") from None


def _inflated(body: bytes, at_most: int) -> bytes:
    inflater = zlib.decompressobj(wbits=_GZIP_HEADER)
    first = inflater.decompress(body, min(at_most + 1, _UNLIMITED))
    if len(first) > at_most:
        raise TooLarge
    if not inflater.eof:
        raise invalid("Request body in gzip ends too early")
    rest = inflater.unused_data
    return b"".join([first, *_further(rest, at_most - len(first))]) if rest else first


def _further(data: bytes, room: int) -> list[bytes]:
    """The contents of the members behind the first."""
    parts, view, at = [], memoryview(data), 0
    for _ in range(_MEMBERS_AT_MOST - 1):
        inflater = zlib.decompressobj(wbits=_GZIP_HEADER)
        while not inflater.eof:
            if at == len(data):
                raise invalid("Request body in gzip ends too early")
            given = view[at : at + _PART_BYTES]
            part = inflater.decompress(given, min(room + 1, _UNLIMITED))
            room -= len(part)
            if room < 0:
                raise TooLarge
            parts.append(part)
            at += len(given) - len(inflater.unused_data)
        if at == len(data):
            return parts
    raise invalid(f"Request body has more than {_MEMBERS_AT_MOST} gzip members: join them")
