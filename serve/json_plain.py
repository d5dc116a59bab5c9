"""The usual request, lists of numbers alike in shape, from its text straight to an array.

simdjson reads it and hands out the numbers of nested lists as one buffer. That the lists are alike is seen in what
is left of the text without all but its brackets and commas. Whatever is unusual is left to `serve.json_parse`.
"""

import functools
from collections.abc import Sequence
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

_SIGNED = (dtypes.INT32, dtypes.UINT8, dtypes.INT16, dtypes.INT8, dtypes.INT64, dtypes.UINT32)
# simdjson's kind of numbers, and numpy's, for each type of tensorflow.DataType.
_KINDS: dict[int, tuple[str, Any]] = {
    dtypes.FLOAT: ("d", np.float64),
    dtypes.DOUBLE: ("d", np.float64),
    dtypes.UINT64: ("u", np.uint64),
    **dict.fromkeys(_SIGNED, ("i", np.int64)),
}


class Plain:
    """A request of one nested list of numbers below `key`, and maybe a signature's name."""

    __slots__ = ("_numbers", "key", "shape", "signature")

    def __init__(self, key: str, numbers: Any, shape: Sequence[int], signature: str):
        self.key = key
        self.shape = shape
        self.signature = signature
        self._numbers = numbers

    def array(self, dtype: int) -> np.ndarray | None:
        """The numbers as 64-bit ones of the kind that a type of tensorflow.DataType has; None where they are not."""
        if dtype not in _KINDS:
            return None
        kind, wide = _KINDS[dtype]
        try:
            found = np.frombuffer(self._numbers.as_buffer(of_type=kind), wide)
            return found.reshape(self.shape)
        except (TypeError, ValueError):  # other values, 1.0 for an integer, or an empty list among others
            return None


def read(body: bytes) -> Plain | None:
    """The request, if it is one of these."""
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
    depth = len(nest) - len(nest.lstrip(b"["))
    if not 0 < depth <= _DIMENSIONS_AT_MOST:
        return None
    part = nest[depth - 1 : nest.find(b"]") + 1]
    shape = [len(part) - 1]
    if part != b"[%b]" % (b"," * (shape[0] - 1)):
        return None
    for level in range(2, depth + 1):
        size = nest.find(b"]" * level) + level - (depth - level)
        count, odd = divmod(size - 1, len(part) + 1)
        if odd or count < 1:
            return None
        part = b"[" + b",".join([part] * count) + b"]"
        shape.append(count)
    return shape[::-1] if part == nest else None
