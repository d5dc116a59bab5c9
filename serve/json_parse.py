"""Reads JSON as TF Serving does: NaN and Infinity are numbers, text after the first value is ignored,
nesting has no limit, of repeated keys the first wins, bytes of a string need not be UTF-8.

orjson reads nearly every request. What it refuses, or would read differently, goes to the reader
below, which is slower and never recurses, and words its errors as RapidJSON does.
"""

import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import NoReturn

import orjson

from serve import json_loads, json_plain
from serve.status import invalid

DEBUG_BYTES = 256
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Document:
    """A request's JSON. `plain` is set where it is nothing but a list of numbers; then `value` is read when needed."""

    __slots__ = ("_body", "_booleans", "_value", "plain")

    def __init__(self, body: bytes, plain: json_plain.Plain | None = None):
        self.plain = plain
        self._body = body
        self._value: object = None
        self._booleans = False
        if plain is None:
            self._read()

    @property
    def value(self) -> object:
        """The first JSON value."""
        if self._body:
            self._read()
        return self._value

    @property
    def may_hold_booleans(self) -> bool:
        """False only where there are certainly none."""
        return self._booleans

    def _read(self) -> None:
        body, self._body = self._body, b""
        self._value, self._booleans = _read(body)


def parse(body: bytes) -> Document:
    """The first JSON value of a request body. Raises INVALID_ARGUMENT with the byte offset of a mistake."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    body = body.removeprefix(_BYTE_ORDER_MARK)
    return Document(body, json_plain.read(body))


def limit_depth(levels: int) -> None:
    """Sets how deep the values of all requests may be nested."""
    global _depth_at_most
    _depth_at_most = levels


_depth_at_most = 1_000_000


def _read(body: bytes) -> tuple[object, bool]:
    """The value, and whether it may hold booleans."""
    booleans = b"true" in body or b"false" in body
    try:
        value = json_loads.loads(body)
        if not _may_repeat_keys(body, value):
            return value, booleans
    except orjson.JSONDecodeError:
        pass
    return _Reader(body).read(), booleans


_KEY_END = re.compile(rb'"[ \t\r\n]*:')


def _may_repeat_keys(body: bytes, value: object) -> bool:
    """Whether some object may name a key twice; counts colons first, and looks closer only if it must."""
    if body.count(b":") == _outer_members(value):
        return False
    keys = len(_KEY_END.findall(body))
    return keys != _outer_members(value) and keys != _members(value)


def _outer_members(value: object) -> int:
    """How many members a predict request has, as far as its usual form goes."""
    if not isinstance(value, dict):
        return 0
    inner = [member for member in value.values() if isinstance(member, dict)]
    for member in value.values():
        if isinstance(member, list) and member and isinstance(member[0], dict):
            inner += [row for row in member if isinstance(row, dict)]
    return len(value) + sum(map(len, inner))


def _members(value: object) -> int:
    """How many members all objects of a value have together."""
    total, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            total += len(item)
            item = item.values()
        elif not isinstance(item, list):
            continue
        todo += [inner for inner in item if isinstance(inner, dict | list)]
    return total


_OPENINGS = re.compile(r"(?:\[(?=\[))*")
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_LITERALS = (
    ("null", None),
    ("true", True),
    ("false", False),
    ("NaN", math.nan),
    ("-NaN", math.nan),
    ("Infinity", math.inf),
    ("-Infinity", -math.inf),
    ("Inf", math.inf),
    ("-Inf", -math.inf),
)
_ESCAPES = {
    '"': '"',
    "\\": "\\",
    "/": "/",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}


class _Reader:
    """One pass over a text. Bytes that are no UTF-8 become lone surrogates, and go back so."""

    def __init__(self, body: bytes):
        self.text = body.decode("utf-8", "surrogateescape")
        self.at = 0

    def read(self) -> object:
        """The first value. Open containers are kept on a stack, so that depth costs only memory."""
        self._skip()
        if self.at == len(self.text):
            self._fail("The document is empty.")
        open_: list = []
        keys: list[str] = []
        while True:
            self._open_lists(open_)
            self._check_depth(len(open_))
            value, opened = self._value_or_opening()
            if opened:
                open_.append(value)
                if isinstance(value, dict):
                    keys.append(self._key())
                continue
            value = self._close_lists(open_, value)
            while open_ and not self._put(open_[-1], keys, value):
                value = self._close_lists(open_, open_.pop())
            if not open_:
                return value

    def _open_lists(self, open_: list) -> None:
        """Opens the lists whose first element is a list: the quick way into a deep nest."""
        start = self.at
        self.at = _end(_OPENINGS, self.text, start)
        self._check_depth(len(open_) + self.at - start)
        open_ += [[] for _ in range(self.at - start)]

    def _check_depth(self, depth: int) -> None:
        if depth > _depth_at_most:
            self._fail(f"Nested deeper than {_depth_at_most} (--json_depth_at_most)")

    def _close_lists(self, open_: list, value: object) -> object:
        """Closes the lists whose last element just ended: the quick way out of it."""
        at, text = self.at, self.text
        while open_ and text.startswith("]", at) and isinstance(open_[-1], list):
            open_[-1].append(value)
            value = open_.pop()
            at += 1
        self.at = at
        return value

    def _put(self, container: dict | list, keys: list[str], value: object) -> bool:
        """Adds a value to its container; whether the container goes on after it."""
        if isinstance(container, list):
            container.append(value)
            return self._goes_on("]", "Missing a comma or ] after an array element.")
        container.setdefault(keys.pop(), value)
        if not self._goes_on("}", "Missing a comma or } after an object member."):
            return False
        keys.append(self._key())
        return True

    def _goes_on(self, end: str, otherwise: str) -> bool:
        self._skip()
        char = self.text[self.at : self.at + 1]
        if char not in (",", end):
            self._fail(otherwise)
        self.at += 1
        self._skip()
        return char == ","

    def _value_or_opening(self) -> tuple[object, bool]:
        """The value here, and whether it is a container whose contents follow."""
        char = self.text[self.at : self.at + 1]
        if char in ("[", "{"):
            self.at += 1
            self._skip()
            is_empty = self.text[self.at : self.at + 1] == {"[": "]", "{": "}"}[char]
            self.at += is_empty
            return ([] if char == "[" else {}), not is_empty
        return (self._string() if char == '"' else self._number_or_word()), False

    def _key(self) -> str:
        if self.text[self.at : self.at + 1] != '"':
            self._fail("Missing a name for object member.")
        key = self._string()
        self._skip()
        if self.text[self.at : self.at + 1] != ":":
            self._fail("Missing a colon after a name of object member.")
        self.at += 1
        self._skip()
        return key

    def _number_or_word(self) -> object:
        for word, value in _LITERALS:
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return value
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            self._fail("Invalid value.")
        following = self.text[match.end() : match.end() + 1]
        if following == "." and match[1] is None and match[2] is None:
            self._fail("Miss fraction part in number.", match.end() + 1)
        if following in ("e", "E") and match[2] is None:
            self._fail("Miss exponent in number.", match.end() + 1)
        number = _number(match)
        if isinstance(number, float) and math.isinf(number):
            self._fail("Number too big to be stored in double.")
        self.at = match.end()
        return number

    def _string(self) -> str:
        start = self.at
        self.at += 1
        parts = []
        while True:
            plain = self.at
            self.at = _end(_PLAIN, self.text, plain)
            parts.append(self.text[plain : self.at])
            char = self.text[self.at : self.at + 1]
            if char == '"':
                self.at += 1
                return "".join(parts)
            if char == "\\":
                parts.append(self._escape())
            elif char == "":
                self._fail("Missing a closing quotation mark in string.", start)
            else:
                self._fail("Invalid encoding in string.")

    def _escape(self) -> str:
        char = self.text[self.at + 1 : self.at + 2]
        if char == "u":
            return self._unicode_escape()
        if char not in _ESCAPES:
            self._fail("Invalid escape character in string.")
        self.at += 2
        return _ESCAPES[char]

    def _unicode_escape(self) -> str:
        start = self.at
        first = self._hex4()
        if not 0xD800 <= first <= 0xDFFF:
            return chr(first)
        is_pair = first < 0xDC00 and self.text.startswith("\\u", self.at)
        second = self._hex4() if is_pair else 0
        if not 0xDC00 <= second <= 0xDFFF:
            self._fail("The surrogate pair in string is invalid.", start)
        return chr(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))

    def _hex4(self) -> int:
        match = _HEX.match(self.text, self.at + 2)
        if match is None:
            self._fail("Incorrect hex digit after \\u escape in string.")
        self.at = match.end()
        return int(match[0], 16)

    def _skip(self) -> None:
        self.at = _end(_SPACE, self.text, self.at)

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        before = self.text[: self.at if at is None else at]
        offset = len(before.encode("utf-8", "surrogateescape"))
        raise invalid(f"JSON Parse error: {what} at offset: {offset}")


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where what `pattern` describes ends; `at` itself where there is nothing of it."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _number(match: re.Match) -> int | float:
    """A number as RapidJSON has it: an integer where 64 bits hold it, else a double."""
    is_integer = match[1] is None and match[2] is None and len(match[0]) <= len("-9223372036854775808")
    if is_integer and -(2**63) <= int(match[0]) < 2**64:
        return int(match[0])
    return float(match[0])


def describe(value: object) -> str:
    """A value as error texts show it: indented by 4, arrays on one line, stopped after 256 bytes."""
    if isinstance(value, float) and math.isfinite(value):
        return _decimal(value)
    pieces, size = [], 0
    for piece in _pieces(value):
        pieces.append(piece)
        size += len(piece)
        if size >= DEBUG_BYTES:
            break
    text = "".join(pieces).encode("utf-8", "surrogateescape")[:DEBUG_BYTES]
    return text.decode("utf-8", "replace")


def _decimal(value: float) -> str:
    """A number by the rule of answers; one that a 32-bit float can hold is shown as such."""
    import numpy as np

    narrow = np.float32(value) if abs(value) <= float(np.finfo(np.float32).max) else value
    text = f"{narrow:.6g}"
    if type(narrow)(text) != narrow:
        text = f"{narrow:.9g}" if isinstance(narrow, np.float32) else f"{value:.17g}"
    return text if "." in text or "e" in text else text + ".0"


def _pieces(value: object) -> Iterator[str]:
    """The parts of a printed value. Nothing beyond what 256 bytes can show is looked at."""
    todo: list[tuple[object, int, bool]] = [(value, 0, False)]
    while todo:
        item, level, is_text = todo.pop()
        if is_text:
            yield str(item)
        elif isinstance(item, list):
            yield "["
            todo.append(("]", level, True))
            todo += reversed(list(_list_parts(item, level)))
        elif isinstance(item, dict):
            yield "{"
            todo.append(("\n" + "    " * level + "}" if item else "}", level, True))
            todo += reversed(list(_dict_parts(item, level + 1)))
        else:
            yield _scalar(item)


def _list_parts(items: list, level: int) -> Iterator[tuple[object, int, bool]]:
    for index, item in enumerate(islice(items, DEBUG_BYTES)):
        if index:
            yield ", ", level, True
        yield item, level, False


def _dict_parts(items: dict, level: int) -> Iterator[tuple[object, int, bool]]:
    for index, (key, item) in enumerate(islice(items.items(), DEBUG_BYTES)):
        yield f"{',' if index else ''}\n{'    ' * level}{_scalar(key)}: ", level, True
        yield item, level, False


def _scalar(value: object) -> str:
    if isinstance(value, str):
        shown = value[:DEBUG_BYTES].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return orjson.dumps(shown).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return orjson.dumps(value).decode()
