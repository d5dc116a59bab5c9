"""The usual request, lists of numbers alike in shape, from its text straight to an array.

simdjson reads it and hands out the numbers of nested lists as one buffer. That the lists are alike is seen in what
is left of the text without all but its brackets and commas. Whatever is unusual is left to `serve.json_parse`.

A large text is read in pieces: simdjson needs 14 bytes for each byte that it reads at once, and holds the interpreter.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import simdjson

from serve import dtypes

_STRUCTURE = b'[]{},:"\\'
_ALL_ELSE = bytes(set(range(256)) - set(_STRUCTURE))
_FIRST, _SECOND = b'{"":[', b'{"":"","":['
_LAST, _LAST_BUT_ONE = b"]}", b'],"":""}'
_DIMENSIONS_AT_MOST = 16
_REMEMBERED_AT_MOST = 8192
# Bytes of a piece, and of the beginning that tells most of the unusual.
_AT_ONCE, _HEAD = 1 << 17, 256

_SIGNED = (dtypes.INT32, dtypes.UINT8, dtypes.INT16, dtypes.INT8, dtypes.INT64, dtypes.UINT32)
# simdjson's kind of numbers, and numpy's, for each type of tensorflow.DataType.
_KINDS: dict[int, tuple[str, Any]] = {
    dtypes.FLOAT: ("d", np.float64),
    dtypes.DOUBLE: ("d", np.float64),
    dtypes.UINT64: ("u", np.uint64),
    **dict.fromkeys(_SIGNED, ("i", np.int64)),
}


class _Pieces:
    """The numbers of a nested list that was read in pieces: each 64-bit integers where it can, else floats."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def add(self, numbers: Any) -> None:
        """Takes what simdjson read of a piece. Raises TypeError where it holds something else."""
        for kind, wide in (("i", np.int64), ("u", np.uint64)):
            try:
                self._arrays.append(np.frombuffer(numbers.as_buffer(of_type=kind), wide))
                return
            except (TypeError, ValueError):
                continue
        self._arrays.append(np.frombuffer(numbers.as_buffer(of_type="d"), np.float64))

    def joined(self, kind: str, dtype: Any) -> np.ndarray:
        """All of them. Raises TypeError where they are not of simdjson's kind."""
        whole = np.empty(sum(map(len, self._arrays)), dtype)
        at = 0
        with np.errstate(over="ignore"):
            for array in self._arrays:
                if kind != "d" and not _is_whole(array, kind):
                    raise TypeError
                whole[at : at + len(array)] = array
                at += len(array)
        return whole


def _is_whole(array: np.ndarray, kind: str) -> bool:
    """Whether numbers of a piece are signed integers ("i"), or unsigned ones ("u")."""
    if array.dtype == np.int64:
        return kind == "i" or not array.size or int(array.min()) >= 0
    return kind == "u" and array.dtype == np.uint64


class Plain:
    """A request of one nested list of numbers below `key`, and maybe a signature's name."""

    __slots__ = ("_numbers", "key", "shape", "signature")

    def __init__(self, key: str, numbers: Any, shape: Sequence[int], signature: str):
        self.key = key
        self.shape = shape
        self.signature = signature
        self._numbers = numbers

    def array(self, dtype: int) -> np.ndarray | None:
        """The numbers, of the kind that a type of tensorflow.DataType has, as 64-bit ones (floats of a large request:
        of the type itself); None where they are not."""
        if dtype not in _KINDS:
            return None
        kind, wide = _KINDS[dtype]
        try:
            if isinstance(self._numbers, _Pieces):
                found = self._numbers.joined(kind, np.float32 if dtype == dtypes.FLOAT else wide)
            else:
                found = np.frombuffer(self._numbers.as_buffer(of_type=kind), wide)
            return found.reshape(self.shape)
        except (TypeError, ValueError):  # other values, 1.0 for an integer, or an empty list among others
            return None


def read(body: bytes) -> Plain | None:
    """The request, if it is one of these."""
    if body[:_HEAD].count(b"{") > 1:  # rows by name
        return None
    if len(body) > _AT_ONCE:
        return _read_large(body)
    skeleton = body.translate(None, _ALL_ELSE)
    # Requests of one client look alike: the shape of a short one is remembered.
    shape = (_shape_of if len(skeleton) <= _REMEMBERED_AT_MOST else _shape_of.__wrapped__)(skeleton)
    if shape is None:
        return None
    try:
        document: Any = simdjson.Parser().parse(body)
    except (ValueError, RuntimeError):
        return None
    names = list(document.keys())
    return _plain(document, names, shape)


def _read_large(body: bytes) -> Plain | None:
    """The same in pieces; other threads have their turn after each."""
    shape = _shape(_nest(_skeleton(body)))
    if shape is None:
        return None
    begin, end = body.index(b"["), body.rindex(b"]") + 1
    pieces, parser = _Pieces(), simdjson.Parser()
    try:
        document: Any = simdjson.Parser().parse(body[:begin] + b"[]" + body[end:])
        plain = _plain(document, list(document.keys()), shape)
        if plain is None:
            return None
        for piece in _cut(body, begin, end, shape):
            pieces.add(parser.parse(piece))
            time.sleep(0)
    except (TypeError, ValueError, RuntimeError):
        return None
    return Plain(plain.key, pieces, shape, plain.signature)


def _skeleton(body: bytes) -> bytes:
    parts, step = [], 4 * _AT_ONCE  # it is faster than simdjson
    for at in range(0, len(body), step):
        parts.append(body[at : at + step].translate(None, _ALL_ELSE))
        time.sleep(0)
    return b"".join(parts)


def _cut(body: bytes, begin: int, end: int, shape: Sequence[int]) -> Iterator[bytes]:
    """The nested list body[begin:end] as lists that hold its numbers in their order, and are JSON if it is.

    It is cut at commas. How many of them came before tells which lists are open there: they are closed, and opened
    again in the next piece.
    """
    opened, numbers = b"", 0
    while (comma := body.find(b",", begin + _AT_ONCE, end)) >= 0:
        piece = body[begin:comma]
        numbers += piece.count(b",") + 1
        levels = _levels_open(numbers, shape)
        yield opened + piece + b"]" * levels
        opened, begin = b"[" * levels, comma + 1
    yield opened + body[begin:end]


def _levels_open(numbers: int, shape: Sequence[int]) -> int:
    """How many lists are open behind so many numbers, and a comma."""
    levels, size = len(shape), 1
    for width in reversed(shape):
        size *= width
        if numbers % size:
            break
        levels -= 1
    return levels


def _plain(document: Any, names: list[str], shape: Sequence[int]) -> Plain | None:
    keys = [key for key in names if key in ("instances", "inputs")]
    if len(keys) != 1:
        return None
    numbers, signature = document[keys[0]], document["signature_name"] if "signature_name" in names else ""
    if not isinstance(numbers, simdjson.Array) or not isinstance(signature, str):
        return None
    return Plain(keys[0], numbers, shape, signature)


@functools.lru_cache(256)
def _shape_of(skeleton: bytes) -> Sequence[int] | None:
    return _shape(_nest(skeleton))


def _nest(skeleton: bytes) -> bytes:
    """The brackets and commas of the one list; nothing if there is something else."""
    if skeleton.startswith(_FIRST):
        begin = len(_FIRST) - 1
    elif skeleton.startswith(_SECOND):
        begin = len(_SECOND) - 1
    else:
        return b""
    if skeleton.endswith(_LAST):
        return skeleton[begin : 1 - len(_LAST)]
    if skeleton.endswith(_LAST_BUT_ONE) and begin < len(_FIRST):
        return skeleton[begin : 1 - len(_LAST_BUT_ONE)]
    return b""


def _shape(nest: bytes) -> Sequence[int] | None:
    """The shape of a nested list whose lists of one level are all of one length; a list of nothing counts as one."""
    first = nest[: _DIMENSIONS_AT_MOST + 1]
    depth = len(first) - len(first.lstrip(b"["))
    if not 0 < depth <= _DIMENSIONS_AT_MOST:
        return None
    begin, end = depth - 1, nest.find(b"]") + 1
    shape = [end - begin - 1]
    if nest.count(b",", begin, end) != shape[0] - 1:
        return None
    for level in range(2, depth + 1):
        width = end - begin
        begin, end = depth - level, nest.find(b"]" * level, end - level + 1) + level
        count, odd = divmod(end - begin - 1, width + 1)
        if odd or count < 1 or not _repeats(nest, begin + 1, width, count):
            return None
        shape.append(count)
    return shape[::-1] if end == len(nest) else None


def _repeats(nest: bytes, begin: int, width: int, count: int) -> bool:
    """Whether so many parts of that width begin there, all like the first, with commas between and a bracket behind."""
    part = nest[begin : begin + width] + b","
    left, at_once = count - 1, max(1, _AT_ONCE // len(part))
    while left:
        some = min(left, at_once)
        if not nest.startswith(part * some, begin):
            return False
        begin += some * len(part)
        left -= some
    return nest.startswith(part[:-1] + b"]", begin)
