"""The element types of tensors: TensorFlow's numbers and names for them, numpy's types, TensorProto's fields.

Kept apart from TensorFlow, so that requests are read and answered without importing it.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class DType:
    """An element type: TensorFlow's C++ name, numpy's type, and the TensorProto field that holds its values."""

    name: str
    numpy: np.dtype
    field: str


def _dtype(name: str, numpy: Any, field: str) -> DType:
    return DType(name, np.dtype(numpy), field)


FLOAT, DOUBLE, INT32, UINT8, INT16, INT8, STRING = 1, 2, 3, 4, 5, 6, 7
COMPLEX64, INT64, BOOL, BFLOAT16, UINT16, COMPLEX128, HALF, UINT32, UINT64 = 8, 9, 10, 14, 17, 18, 19, 22, 23

# TensorFlow turns strings into its own and back by an iterator of numpy that goes no further, and does not look whether
# it got one: the process would end.
DIMENSIONS_AT_MOST = 32

DTYPES = {
    FLOAT: _dtype("float", np.float32, "float_val"),
    DOUBLE: _dtype("double", np.float64, "double_val"),
    INT32: _dtype("int32", np.int32, "int_val"),
    UINT8: _dtype("uint8", np.uint8, "int_val"),
    INT16: _dtype("int16", np.int16, "int_val"),
    INT8: _dtype("int8", np.int8, "int_val"),
    STRING: _dtype("string", object, "string_val"),
    COMPLEX64: _dtype("complex64", np.complex64, "scomplex_val"),
    INT64: _dtype("int64", np.int64, "int64_val"),
    BOOL: _dtype("bool", np.bool_, "bool_val"),
    BFLOAT16: _dtype("bfloat16", ml_dtypes.bfloat16, "half_val"),
    UINT16: _dtype("uint16", np.uint16, "int_val"),
    COMPLEX128: _dtype("complex128", np.complex128, "dcomplex_val"),
    HALF: _dtype("half", np.float16, "half_val"),
    UINT32: _dtype("uint32", np.uint32, "uint32_val"),
    UINT64: _dtype("uint64", np.uint64, "uint64_val"),
}

_OTHER_NAMES = {
    11: "qint8",
    12: "quint8",
    13: "qint32",
    15: "qint16",
    16: "quint16",
    20: "resource",
    21: "variant",
}
_REFERENCE = 100
_NUMBERS = {dtype.numpy: number for number, dtype in DTYPES.items()}


def name_of(number: int) -> str:
    """TensorFlow's C++ name of a type (`float`, not `float32`)."""
    if number in DTYPES:
        return DTYPES[number].name
    return _OTHER_NAMES.get(number, f"unknown dtype enum ({number})")


def is_known(number: int) -> bool:
    """Whether TensorFlow has such a type; those without elements here (resource …) are known, too."""
    return number in DTYPES or number in _OTHER_NAMES


def of(tensor: np.ndarray, otherwise: int = 0) -> int:
    """TensorFlow's number of what a tensor holds; `otherwise` where numpy's type says nothing."""
    return STRING if tensor.dtype == object else number_of(tensor.dtype) or otherwise


def as_tensor(value: Any) -> np.ndarray:
    """What TensorFlow gave, as an array. A single string stays as it is: numpy would cut zero bytes off."""
    return np.array(value, object) if isinstance(value, bytes) else np.asarray(value)


def number_of(dtype: np.dtype) -> int | None:
    """TensorFlow's number of a numpy type (byte and text strings included); None where it has none."""
    return STRING if dtype.kind in "SU" else _NUMBERS.get(dtype)


def without_reference(number: int) -> int:
    """The type of what a reference to a TF1 variable holds; other types are themselves."""
    return number - _REFERENCE if number > _REFERENCE else number
