"""TensorProto to numpy and back, without TensorFlow's own (which answers in tensor_content)."""

import math
from typing import Any

import numpy as np

from serve import dtypes, packed
from serve.dtypes import DTYPES, DType
from serve.status import Code, ServingError, invalid

# A message of a few bytes can ask for any shape.
_REPEATED_BYTES_AT_MOST = 16 << 20


def decode(proto: Any) -> np.ndarray:
    """The array of a TensorProto. A short typed list repeats its last value, an empty one is zeros;
    of a long one the first values count, as in TensorFlow.

    Raises INVALID_ARGUMENT for a malformed one and UNIMPLEMENTED for types that numpy lacks.
    """
    dtype = DTYPES.get(proto.dtype)
    if dtype is None and not dtypes.is_known(proto.dtype):
        raise invalid(f"TensorProto has {dtypes.name_of(proto.dtype)}")
    if dtype is None:
        raise ServingError(
            Code.UNIMPLEMENTED, f"tensors of type {dtypes.name_of(proto.dtype)} are not served"
        )
    shape = _shape(proto.tensor_shape)
    size = math.prod(shape)
    if proto.tensor_content and proto.dtype == dtypes.STRING:
        values = _strings_from_content(proto.tensor_content, size)
    elif proto.tensor_content:
        values = _from_content(proto.tensor_content, shape, size, dtype)
    else:
        values = _typed_values(proto, dtype)[:size]
    if len(values) < size:
        values = _repeated(values, size, dtype)
    try:
        return values.reshape(shape)
    except ValueError:  # of no elements, and more than numpy counts in the other dimensions
        raise invalid(f"TensorProto has a shape that no tensor can have here: {list(shape)}") from None


def _shape(shape_proto: Any) -> tuple[int, ...]:
    shape = tuple(dim.size for dim in shape_proto.dim)
    if shape_proto.unknown_rank or any(size < 0 for size in shape):
        raise invalid(f"TensorProto has no complete shape: {list(shape)}")
    if len(shape) > dtypes.DIMENSIONS_AT_MOST:
        raise invalid(
            f"TensorProto has {len(shape)} dimensions; no more than {dtypes.DIMENSIONS_AT_MOST} are served"
        )
    return shape


def _from_content(content: bytes, shape: tuple[int, ...], size: int, dtype: DType) -> np.ndarray:
    needed = size * dtype.numpy.itemsize
    if len(content) != needed:
        raise invalid(
            f"TensorProto has {len(content)} bytes of tensor_content, "
            f"its shape {list(shape)} of {dtype.name} needs {needed}"
        )
    return np.frombuffer(content, dtype.numpy)


def _strings_from_content(content: bytes, size: int) -> np.ndarray:
    """Strings as tensorflow/core/platform/tensor_coding.cc writes them: all lengths as varints, then all bytes."""
    lengths, at = [], 0
    for _ in range(size):
        length, at = _varint(content, at)
        lengths.append(length)
    if len(content) - at != sum(lengths):
        raise invalid(
            f"TensorProto has {len(content)} bytes of tensor_content, its strings {at + sum(lengths)}"
        )
    values = np.empty(size, object)
    for index, length in enumerate(lengths):
        values[index] = content[at : at + length]
        at += length
    return values


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at a place of some bytes, and the place behind it."""
    number = 0
    for shift in range(0, 35, 7):
        if at >= len(content):
            break
        number |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return number, at
    raise invalid("TensorProto has tensor_content that ends within the lengths of its strings")


def _typed_values(proto: Any, dtype: DType) -> np.ndarray:
    field = getattr(proto, dtype.field)
    if dtype.field == "string_val":
        values = np.empty(len(field), object)
        values[:] = list(field)
        return values
    if dtype.field == "half_val":
        return np.array(field, np.int64).astype(np.uint16).view(dtype.numpy)
    if dtype.field in ("scomplex_val", "dcomplex_val"):
        return np.array(field[: len(field) // 2 * 2], _part_of(dtype)).view(dtype.numpy)
    many = packed.read(proto, dtype.field, dtype.numpy)
    if many is not None:
        return many
    wide = np.dtype(np.int64) if dtype.field == "int_val" else dtype.numpy
    return np.fromiter(field, wide, len(field)).astype(dtype.numpy, copy=False)


def _part_of(dtype: DType) -> type:
    return np.float32 if dtype.numpy == np.complex64 else np.float64


def _repeated(values: np.ndarray, size: int, dtype: DType) -> np.ndarray:
    if size * dtype.numpy.itemsize > _REPEATED_BYTES_AT_MOST:
        raise invalid(f"TensorProto has {len(values)} values and a shape of {size}: too many to be repeated")
    filled = np.empty(size, dtype.numpy)
    filled[: len(values)] = values
    filled[len(values) :] = values[-1] if len(values) else (b"" if dtype.field == "string_val" else 0)
    return filled


def encode(array: np.ndarray, dtype_number: int, proto: Any, as_content: bool = False) -> None:
    """Fills a TensorProto in typed fields (`float_val` …), or in tensor_content if asked."""
    dtype = DTYPES.get(dtype_number)
    if dtype is None:
        raise ServingError(
            Code.UNIMPLEMENTED, f"tensors of type {dtypes.name_of(dtype_number)} are not served"
        )
    proto.dtype = dtype_number
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if as_content and dtype_number != dtypes.STRING:
        proto.tensor_content = np.ascontiguousarray(array, dtype.numpy).tobytes()
    else:
        flat = array.reshape(-1)
        if flat.dtype != dtype.numpy or not packed.write(proto, dtype.field, flat):
            getattr(proto, dtype.field).extend(_field_values(flat, dtype))


def _field_values(flat: np.ndarray, dtype: DType) -> list:
    if dtype.field == "string_val":
        return [value if isinstance(value, bytes) else str(value).encode() for value in flat.tolist()]
    if dtype.field == "half_val":
        return flat.view(np.uint16).tolist()
    if dtype.field in ("scomplex_val", "dcomplex_val"):
        return flat.view(_part_of(dtype)).tolist()
    return flat.tolist()
