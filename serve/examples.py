"""tf.Example messages as bytes, written without TensorFlow's messages.

Field numbers and types: tensorflow/core/example/{example,feature}.proto. Models get serialized examples, so
there is nothing to be gained by a message in between, and requests can be read where TensorFlow is not.
"""

import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence

_UINT64 = 2**64 - 1

# Tags of length-delimited fields, by the fields' numbers.
_FIRST, _SECOND, _THIRD = b"\x0a", b"\x12", b"\x1a"
_BYTES, _FLOATS, _INT64S = _FIRST, _SECOND, _THIRD


class Names(dict[str, bytes]):
    """The names of features as fields; a request's examples share them."""

    def __missing__(self, name: str) -> bytes:
        self[name] = field = _field(_FIRST, name.encode("utf-8", "surrogateescape"))
        return field


def example(features: Mapping[str, bytes], names: Names) -> bytes:
    """A serialized tf.Example of features, each as one of the functions below makes it."""
    entries = [_field(_FIRST, names[name] + _field(_SECOND, feature)) for name, feature in features.items()]
    return _field(_FIRST, b"".join(entries))


def of_bytes(values: Iterable[bytes]) -> bytes:
    """A feature of byte strings."""
    return _field(_BYTES, b"".join([_field(_FIRST, value) for value in values]))


def of_floats(values: Sequence[float]) -> bytes:
    """A feature of 32-bit floats; what is too large for one becomes infinite."""
    form = f"<{len(values)}f"
    try:
        packed = struct.pack(form, *values)
    except OverflowError:
        packed = struct.pack(form, *array("f", values))
    return _field(_FLOATS, _field(_FIRST, packed))


def of_integers(values: Iterable[int]) -> bytes:
    """A feature of 64-bit integers."""
    return _field(_INT64S, _field(_FIRST, b"".join([_varint(value & _UINT64) for value in values])))


def _field(tag: bytes, payload: bytes) -> bytes:
    """A length-delimited field of a message."""
    return tag + _varint(len(payload)) + payload


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
