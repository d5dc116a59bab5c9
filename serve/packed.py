"""Floats of a TensorProto's typed fields in one step: on the wire they lie as they do in an array.

protobuf's Python API gives and takes lists of numbers only. A message's bytes are had and taken quickly.
"""

from typing import Any

import numpy as np

# Field numbers of tensorflow.TensorProto; numbers of fixed size, little-endian as all machines that TensorFlow runs on.
_FIELDS = {"float_val": 5, "double_val": 6, "scomplex_val": 9, "dcomplex_val": 12}
_LENGTH_DELIMITED = 2
# Below, a list is as quick.
_MANY = 32


def read(proto: Any, field: str, dtype: np.dtype) -> np.ndarray | None:
    """The numbers of a field; None where they do not lie at the message's end, or are few."""
    count = len(getattr(proto, field))
    if count < _MANY or field not in _FIELDS:
        return None
    message = proto.SerializeToString()
    size = count * dtype.itemsize
    head = _head(field, size)
    begin = len(message) - size
    if not message.startswith(head, begin - len(head)):
        return None
    return np.frombuffer(message, dtype, count, begin)


def write(proto: Any, field: str, values: np.ndarray) -> bool:
    """Adds numbers to a field; whether it did, which it does not for few of them."""
    if values.size < _MANY or field not in _FIELDS:
        return False
    proto.MergeFromString(_head(field, values.nbytes) + values.tobytes())
    return True


def _head(field: str, size: int) -> bytes:
    return bytes([_FIELDS[field] << 3 | _LENGTH_DELIMITED]) + _varint(size)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
