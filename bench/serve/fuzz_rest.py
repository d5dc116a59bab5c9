"""Bytes for an HTTP port: bodies by a grammar, broken in known ways, in requests that may be broken as well."""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

STAY, HALF, CUT = "stay", "half", "cut"


@dataclass(frozen=True)
class Case:
    """What is sent on a connection. `end`: STAY on a connection that goes on (one whole request), HALF-close it after
    this, or CUT it off. `answers`: how many have to come, None where that depends on how the bytes are read."""

    parts: tuple[bytes, ...]
    end: str
    answers: int | None = None
    without_body: bool = False


_NUMBERS = ("0", "-0", "1", "-1", "1.0", "1e5", "1E-400", "1e400", "-1e9999", "2147483647", "2147483648",
            "-2147483649",
            "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551615",
            "18446744073709551616", "0.1", "3.4028236e38", "5e-324", "NaN", "Infinity", "-Inf", "01", "1.",
            ".5", "+1",
            "1e", "-", "0x10", "1" * 400, "0." + "3" * 400, "255", "256", "127", "128")  # fmt: skip
_STRINGS = (b'""', b'"a"', b'"\\u0000"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\udead\\ubeef"', b'"\\q"', b'"\\u12"',
            b'"\xff\xfe"', b'"\xc3\x28"', b'"\xf0\x9f\x98\x80"', b'"\x00"', b'"\n"', b'"',
            b'"serving_default"', b'"b64"',
            b'"' + b"x" * 3000 + b'"', b'"AAAA"', b"'a'", b'"\\"')  # fmt: skip
_WORDS = (
    "null",
    "true",
    "false",
    "nul",
    "TRUE",
    "undefined",
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    "[[],[1]]",
    "/*c*/1",
    "",
)
_KEYS = ("instances", "inputs", "signature_name", "examples", "context", "b64", "a", "b", "x", "s", "m", "names", "",
         "\u00e9", "__class__")  # fmt: skip
_SIGNATURES = ("classify", "regress", "text", "float32", "float64", "int64", "int32", "int16", "int8", "uint8",
               "uint32", "uint64", "bool", "float16",
               "complex64", "serving_default", "text", "matrix", "reshape", "pick", "no_inputs", "classify",
               "regress", "none", "", "DEFAULT")  # fmt: skip
_METHODS = (
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "get",
    "PRI",
    "FOO",
    "M-SEARCH",
)
_HEADERS = (b"Origin: http://x", b"Origin: x", b"Content-Type: text/html", b"Expect: 100-continue", b"Expect: x",
            b"Connection: close", b"Connection: keep-alive", b"Connection: upgrade", b"Upgrade: h2c",
            b"Upgrade: websocket", b"Content-Encoding: gzip", b"Content-Encoding: br", b"Accept-Encoding: gzip",
            b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"traceparent: \xff-00-zz",
            b"A: " + b"b" * 4000, b"A\x00: b", b"A : b", b": b", b"A", b"\xff: \xff", b"A: b\r\n c", b"Host:",
            b"TE: trailers",
            b"HTTP2-Settings: AAMAAABkAAQAAP__", b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: identity")  # fmt: skip


def case(rng: random.Random) -> Case:
    """One case; the same for the same state of `rng`."""
    pick = rng.random()
    if pick < 0.62:
        return Case((_sound(rng, body(rng)),), STAY, 1)
    if pick < 0.72:
        return _odd(rng)
    if pick < 0.78:
        return _chunked(rng)
    if pick < 0.84:
        return _gzipped(rng)
    if pick < 0.90:
        return _pipelined(rng)
    if pick < 0.96:
        return _cut(rng)
    return Case((_noise(rng, _sound(rng, body(rng))),), HALF)


# --- bodies ---


def body(rng: random.Random) -> bytes:
    """A body, most often close to one that is right."""
    if rng.random() < 0.03:
        return _deep(rng)
    space = rng.choice((b"",) * 9 + (b" ", b"\n\t", b"\x0b"))
    text = _written(rng, _mutated(rng, _right(rng)), space)
    return _noise(rng, text) if rng.random() < 0.25 else text


def _right(rng: random.Random) -> dict[str, Any]:
    signature = rng.choice(_SIGNATURES)
    rows = rng.choice((1, 1, 2, 3, 9, 40, 2000 if rng.random() < 0.02 else 5))
    if signature in ("classify", "regress"):
        examples = [{"x": rng.random(), "names": ["n"] * rng.randrange(4)} for _ in range(rows)]
        return {"signature_name": signature, "examples": examples, "context": {"x": 0.5}}
    document: dict[str, Any] = {"signature_name": signature}
    columns = {alias: [make(rng) for _ in range(rows)] for alias, make in _columns(signature).items()}
    if rng.random() < 0.5:
        document["inputs"] = (
            columns if len(columns) != 1 or rng.random() < 0.5 else next(iter(columns.values()))
        )
    elif len(columns) == 1 and rng.random() < 0.5:
        document["instances"] = next(iter(columns.values()))
    else:
        document["instances"] = [
            {alias: column[row] for alias, column in columns.items()} for row in range(rows)
        ]
    return document


def _columns(signature: str) -> dict[str, Callable[[random.Random], Any]]:
    known: dict[str, dict[str, Callable[[random.Random], Any]]] = {
        "serving_default": {"a": random.Random.random, "b": _integer},
        "text": {"s": _text},
        "matrix": {"m": lambda rng: [rng.random() for _ in range(3)]},
        "reshape": {"a": random.Random.random},
        "pick": {"b": lambda rng: rng.randrange(-1, 11)},
        "bool": {"x": lambda rng: rng.random() < 0.5},
        "no_inputs": {},
    }
    return known.get(signature, {"x": random.Random.random if "float" in signature else _integer})


def _integer(rng: random.Random) -> int:
    return rng.randrange(100)


def _text(rng: random.Random) -> Any:
    if rng.random() < 0.3:
        return {"b64": base64.b64encode(rng.randbytes(rng.randrange(20))).decode()}
    return "".join(
        chr(rng.choice((0x41, 0xE9, 0x1F600, 0x22, 0x5C, 0x7F, 0))) for _ in range(rng.randrange(9))
    )


class _Raw(bytes):
    """JSON text that is written as it is."""


def _mutated(rng: random.Random, document: Any) -> Any:
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        document = _changed(rng, document)
    return document


def _changed(rng: random.Random, node: Any) -> Any:
    """The document with one node changed; goes down by chance."""
    if isinstance(node, dict) and node and rng.random() < 0.9:
        key = rng.choice(list(node))
        return _with_key(rng, dict(node), key)
    if isinstance(node, list) and node and rng.random() < 0.9:
        at = rng.randrange(len(node))
        return [*node[:at], _changed(rng, node[at]), *node[at + 1 :]]
    return rng.choice((lambda: _value(rng), lambda: [node], lambda: [node, node], lambda: {"b64": node}))()


def _with_key(rng: random.Random, node: dict, key: str) -> dict:
    pick = rng.random()
    if pick < 0.6:
        node[key] = _changed(rng, node[key])
    elif pick < 0.75:
        del node[key]
    elif pick < 0.9:
        node[rng.choice(_KEYS)] = _value(rng)
    else:
        node[rng.choice(_KEYS)] = node.pop(key)
    return node


def _value(rng: random.Random) -> _Raw:
    pick = rng.random()
    if pick < 0.45:
        return _Raw(rng.choice(_NUMBERS).encode())
    if pick < 0.7:
        return _Raw(rng.choice(_STRINGS))
    if pick < 0.9:
        return _Raw(rng.choice(_WORDS).encode())
    return _Raw(b"[" + b",".join(_value(rng) for _ in range(rng.randrange(4))) + b"]")


def _written(rng: random.Random, node: Any, space: bytes) -> bytes:
    if isinstance(node, _Raw):
        return space + node
    if isinstance(node, list):
        return space + b"[" + b",".join(_written(rng, each, space) for each in node) + b"]"
    if isinstance(node, dict):
        members = [
            json.dumps(key).encode() + b":" + _written(rng, value, space) for key, value in node.items()
        ]
        if members and rng.random() < 0.05:
            members.append(rng.choice(members))
        return space + b"{" + b",".join(members) + b"}"
    return space + json.dumps(node, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _deep(rng: random.Random) -> bytes:
    count = rng.choice((30, 63, 64, 65, 1000, 20_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"x":', b"}]")))
    nest = opened * count + rng.choice((b"1", b"", b'""')) + closed * rng.choice((count, count, count - 1, 0))
    return rng.choice((b"%b", b'{"instances":%b}', b'{"inputs":%b}', b'{"signature_name":%b}',
                       b'{"u":%b,"instances":[1]}',
                       b'{"examples":[%b]}')) % nest  # fmt: skip


def _noise(rng: random.Random, text: bytes) -> bytes:
    """Some bytes flipped, cut, doubled or put in."""
    found = bytearray(text)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(found) + 1)
        pick = rng.randrange(5)
        if pick == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif pick == 1:
            found[at:at] = rng.choice(
                (rng.randbytes(3), b'"', b",", b"[", b"}", b"\r\n", b"\x00", b"\\", b"1e")
            )
        elif pick == 2:
            del found[at : at + rng.randrange(1, 20)]
        elif pick == 3:
            found[at:at] = found[at : at + 30]
        elif rng.random() < 0.3:
            del found[at:]
    return bytes(found)


# --- requests ---


def target(rng: random.Random, content: bytes = b"") -> bytes:
    """A path; most often of a model that is there, by the verb that the body is for."""
    if rng.random() < 0.8:
        verbs = (b"classify", b"regress") if b'"examples"' in content else (b"predict",)
        return b"/v1/models/kinds:" + rng.choice(verbs if rng.random() < 0.9 else (b"predict", b"classify"))
    pieces = (b"/v1/models", b"/v1", b"/", b"kinds", b"/half", b"/kinds", b"/versions/", b"/labels/", b"1",
              b"99", b"9" * 25,
              b"/metadata", b":predict", b":classify", b":Predict", b"%00", b"%ff", b"%2f", b"..", b"?x=1",
              b"#f", b"\xc3\xa9",
              b"%", b"%4", b"//", b"stable", b":", b"http://h/v1/models/half", b"*", b"-1",
              b"/monitoring")  # fmt: skip
    if rng.random() < 0.7:
        return b"/v1/models/" + b"".join(rng.choices(pieces, k=rng.randrange(1, 5)))
    return b"".join(rng.choices(pieces, k=rng.randrange(1, 6)))


def _sound(rng: random.Random, content: bytes) -> bytes:
    """A request whose syntax is right, and whose frame is too."""
    path = bytes(byte for byte in target(rng, content) if 0x20 < byte < 0x7F)
    if path[:1] != b"/":
        path = b"/" + path
    method = b"POST" if b":" in path or rng.random() < 0.2 else b"GET"
    if method == b"GET":
        content = b""
    return b"%b %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (
        method,
        path,
        len(content),
        content,
    )


def _odd(rng: random.Random) -> Case:
    """A request with a method, a version, headers or a frame that are not usual or not right."""
    content = body(rng) if rng.random() < 0.7 else b""
    size = rng.choice((str(len(content)),) * 4 + ("-1", "+5", "0", "99999999999999999999", "1e3", "",
                       str(len(content) + 7),
                      "1,1"))  # fmt: skip
    lines = [b"Host: h", b"Content-Length: " + size.encode(), *rng.choices(_HEADERS, k=rng.randrange(4))]
    if rng.random() < 0.1:
        lines.append(b"Content-Length: 3")
    rng.shuffle(lines)
    method, end = rng.choice(_METHODS).encode(), rng.choice((b"\r\n",) * 8 + (b"\n", b"\r"))
    version = rng.choice(
        (b" HTTP/1.1",) * 5 + (b" HTTP/1.0", b" HTTP/2.0", b" HTTP/9", b"", b" http/1.1", b" HTTP/1.1 ")
    )
    head = method + b" " + target(rng) + version + end + end.join(lines) + end * 2
    return Case(_split(rng, head + content), HALF)


def _chunked(rng: random.Random) -> Case:
    content, chunks = body(rng), []
    while content:
        size = rng.randrange(1, max(2, min(len(content), 400)))
        chunks.append(b"%x%b\r\n%b\r\n" % (size, rng.choice((b"", b"", b";x=y")), content[:size].ljust(size)))
        content = content[size:]
    message = b"".join(chunks) + rng.choice((b"0\r\n\r\n",) * 6 + (b"0\r\nA: b\r\n\r\n", b"", b"-1\r\n\r\n",
                       b"zz\r\n",
                                             b"fffffffffffffffff\r\n"))  # fmt: skip
    if rng.random() < 0.2:
        message = _noise(rng, message)
    both = rng.choice((b"", b"", b"", b"Content-Length: 5\r\n"))
    head = b"POST %b HTTP/1.1\r\nHost: h\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (
        b"/v1/models/kinds:predict",
        both,
    )
    return Case(_split(rng, head + message), HALF)


def _gzipped(rng: random.Random) -> Case:
    packed = gzip.compress(body(rng), 1, mtime=0)
    pick = rng.random()
    if pick < 0.2:
        packed = packed[: rng.randrange(len(packed))]
    elif pick < 0.4:
        packed = _noise(rng, packed)
    elif pick < 0.5:
        packed = packed + rng.choice((packed, b"tail"))
    elif pick < 0.55:
        packed = gzip.compress(b'{"instances":' + b"[" * 200_000, 9, mtime=0)
    head = (
        b"POST /v1/models/kinds:predict HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        % len(packed)
    )
    return Case((head + packed,), STAY, 1)


def _pipelined(rng: random.Random) -> Case:
    count = rng.randrange(2, 20)
    return Case(_split(rng, b"".join(_sound(rng, body(rng)) for _ in range(count))), HALF, count)


def _cut(rng: random.Random) -> Case:
    """A connection that ends in the middle of a request, or before its answer."""
    whole = _sound(rng, body(rng))
    at = rng.choice((len(whole), rng.randrange(len(whole)), rng.randrange(len(whole))))
    return Case((whole[:at],), rng.choice((CUT, CUT, HALF)))


def _split(rng: random.Random, message: bytes) -> tuple[bytes, ...]:
    """The message in one or a few parts, each sent by itself."""
    if rng.random() < 0.7 or len(message) < 3:
        return (message,)
    at = sorted(rng.randrange(len(message)) for _ in range(rng.randrange(1, 4)))
    return tuple(message[begin:end] for begin, end in zip([0, *at], [*at, len(message)], strict=True))
