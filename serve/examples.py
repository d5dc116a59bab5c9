"""tf.Example messages as bytes, written without TensorFlow's messages.

Field numbers and types: tensorflow/core/example/{example,feature}.proto. Models get serialized examples, so
there is nothing to be gained by building the message first.
"""

import struct
from collections.abc import Iterable, Mapping

import numpy as np

_BYTES, _FLOATS, _INT64S = 1, 2, 3
_UINT64 = 2**64 - 1


def example(features: Mapping[str, bytes]) -> bytes:
    """A serialized tf.Example of features, each as one of the functions below makes it."""
    entries = [
        _field(1, _field(1, name.encode("utf-8", "surrogateescape")) + _field(2, feature))
        for name, feature in features.items()
    ]
    return _field(1, b"".join(entries))


def of_bytes(values: Iterable[bytes]) -> bytes:
    """A feature of byte strings."""
    return _field(_BYTES, b"".join([_field(1, value) for value in values]))


def of_floats(values: list[float]) -> bytes:
    """A feature of 32-bit floats; what is too large for one becomes infinite."""
    try:
        packed = struct.pack(f"<{len(values)}f", *values)
    except OverflowError:
        with np.errstate(over="ignore"):
            packed = np.array(values, np.float64).astype("<f4").tobytes()
    return _field(_FLOATS, _field(1, packed))


def of_integers(values: Iterable[int]) -> bytes:
    """A feature of 64-bit integers."""
    return _field(_INT64S, _field(1, b"".join([_varint(value & _UINT64) for value in values])))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a message."""
    return bytes((number << 3 | 2,)) + _varint(len(payload)) + payload


_SMALL = [bytes((number,)) for number in range(0x80)]


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _SMALL[number]
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
