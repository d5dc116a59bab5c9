"""From one value of a request in JSON to a tensor.

numpy reads what is regular and of one kind at once. Everything else is read element by element,
which is slower and knows which error to raise.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from itertools import chain
from typing import NoReturn, TypeGuard

import numpy as np

from serve import dtypes
from serve.dtypes import DTYPES
from serve.json_parse import describe
from serve.status import Code, ServingError, invalid

_NESTED_AT_MOST = dtypes.DIMENSIONS_AT_MOST - 1  # rows add a dimension
# Of what is read at once.
_REGULAR_AT_MOST = 16
_INTEGERS = (
    dtypes.INT32,
    dtypes.UINT8,
    dtypes.INT16,
    dtypes.INT8,
    dtypes.INT64,
    dtypes.UINT32,
    dtypes.UINT64,
)
_KINDS = {dtypes.FLOAT: "fiu", dtypes.DOUBLE: "fiu", dtypes.BOOL: "b"} | dict.fromkeys(_INTEGERS, "iu")


def tensor(value: object, dtype: int, booleans: bool) -> np.ndarray:
    """The tensor of a nested list, or of one value. Raises INVALID_ARGUMENT."""
    whole = regular(value, dtype, booleans)
    if whole is not None:
        return whole
    shape = _shape(value)
    return _array(_elements(value, shape, dtype), shape, dtype)


class Column:
    """The rows of one input, gathered one by one; all must have the first one's size and shape."""

    def __init__(self, dtype: int):
        self.dtype = dtype
        self.values: list = []
        self.rows = 0
        self.shape: tuple[int, ...] = ()

    def add(self, row: object) -> None:
        """Takes one more row. Raises INVALID_ARGUMENT."""
        shape = _shape(row)
        values = _elements(row, shape, self.dtype)
        if self.rows == 0:
            self.shape, self.size = shape, len(values)
        elif len(values) != self.size:
            raise invalid(f"Expecting tensor size: {self.size} but got: {len(values)}")
        elif shape != self.shape:
            raise invalid(f"Expecting shape {_shown(self.shape)} but got: {_shown(shape)}")
        self.rows += 1
        self.values += values

    def tensor(self) -> np.ndarray:
        """The rows one below the other."""
        return _array(self.values, (self.rows, *self.shape), self.dtype)


def regular_together(
    columns: Mapping[str, object], types: Mapping[str, int], booleans: bool
) -> dict[str, np.ndarray] | None:
    """The tensors of several inputs, where all are regular: those alike in type and shape are read as one.

    Of forty inputs with a value for each row, this takes half of the time or less.
    """
    kinds: dict[tuple, list[str]] = {}
    for name, value in columns.items():
        kinds.setdefault((types[name], *_outline(value)), []).append(name)
    found: dict[str, np.ndarray] = {}
    for (dtype, *_), names in kinds.items():
        whole = regular([columns[name] for name in names], dtype, booleans) if len(names) > 1 else None
        for index, name in enumerate(names):
            tensor = regular(columns[name], dtype, booleans) if whole is None else whole[index, ...]
            if tensor is None:
                return None
            found[name] = tensor
    return found


def _outline(value: object) -> list[int]:
    """The shape that the first elements tell, of as many levels as are read at once."""
    shape: list[int] = []
    while isinstance(value, list) and value and len(shape) < _REGULAR_AT_MOST:
        shape.append(len(value))
        value = value[0]
    return shape


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def regular(value: object, dtype: int, booleans: bool) -> np.ndarray | None:
    """The tensor, where numpy sees regular rows of the right kind at once; None where it does not.

    numpy takes true for 1 among numbers: where a request may hold booleans, numbers are read one by one.
    """
    if dtype == dtypes.STRING:
        return _regular_strings(value)
    kinds = _KINDS.get(dtype, "")
    if not kinds or (booleans and dtype != dtypes.BOOL):
        return None
    try:
        found = np.array(value)
    except (ValueError, OverflowError):
        return None
    if found.dtype.kind not in kinds or found.size == 0 or found.ndim > dtypes.DIMENSIONS_AT_MOST:
        return None
    return converted(found, dtype)


def converted(numbers: np.ndarray, dtype: int) -> np.ndarray | None:
    """Numbers, one or more, in a tensor's type; None where one of them is beyond an integer's range."""
    if dtype in _INTEGERS and not _in_range(numbers, dtype):
        return None
    # Every number is a double first, as in TF Serving.
    if dtype == dtypes.FLOAT and numbers.dtype.kind in "iu":
        numbers = numbers.astype(np.float64)
    with np.errstate(over="ignore"):
        return numbers.astype(DTYPES[dtype].numpy, copy=False)


def _regular_strings(value: object) -> np.ndarray | None:
    """The tensor of nested lists alike in shape that hold nothing but strings; None for others."""
    widths: list[int] = []
    items = value
    while isinstance(items, list) and items and set(map(type, items)) == {list}:
        sizes = set(map(len, items))
        if len(sizes) > 1 or len(widths) == _REGULAR_AT_MOST:
            return None
        widths += sizes
        items = list(chain.from_iterable(items))
    if not isinstance(items, list) or set(map(type, items)) != {str}:
        return None
    tensor = np.empty(len(items), object)
    tensor[:] = _encoded(items)
    return tensor.reshape(-1, *widths)


def _encoded(texts: list[str]) -> list[bytes]:
    """The bytes of strings; those of many are had at once, where none holds a NUL."""
    together = "\0".join(texts).encode("utf-8", "surrogateescape").split(b"\0")
    if len(together) == len(texts):
        return together
    return [text.encode("utf-8", "surrogateescape") for text in texts]


def _integer_range(dtype: int) -> tuple[int, int]:
    """Small integers are read as int32 is, and wrap; as TF Serving does."""
    wide = dtype in (dtypes.INT64, dtypes.UINT32, dtypes.UINT64)
    info = np.iinfo(DTYPES[dtype].numpy if wide else np.int32)
    return int(info.min), int(info.max)


def _in_range(found: np.ndarray, dtype: int) -> bool:
    lowest, highest = _integer_range(dtype)
    return lowest <= int(found.min()) and int(found.max()) <= highest


def _shape(value: object) -> tuple[int, ...]:
    """The shape that the first element of each nesting level tells."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > _NESTED_AT_MOST:
            raise invalid(f"JSON Value: {describe(value)} is nested deeper than {_NESTED_AT_MOST} lists")
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _elements(value: object, shape: tuple[int, ...], dtype: int) -> list:
    """The values of a nested list, in order, converted one by one."""
    found: list = []
    _collect(value, 0, shape, _converter(dtype), found)
    return found


def _collect(value: object, level: int, shape: tuple[int, ...], convert: Callable, found: list) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {describe(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        found.append(convert(value))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        _collect(item, level + 1, shape, convert, found)


def _array(values: list, shape: tuple[int, ...], dtype: int) -> np.ndarray:
    if dtype not in DTYPES:
        return np.empty(shape, object)
    if dtype == dtypes.STRING:
        array = np.empty(len(values), object)
        array[:] = values
    elif dtype in _INTEGERS:
        wide = np.uint64 if dtype == dtypes.UINT64 else np.int64
        array = np.array(values, wide).astype(DTYPES[dtype].numpy)
    else:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64 if dtype == dtypes.FLOAT else None).astype(
                DTYPES[dtype].numpy
            )
    return array.reshape(shape)


def _converter(dtype: int) -> Callable[[object], object]:
    if dtype in (dtypes.FLOAT, dtypes.DOUBLE):
        return lambda value: float(value) if _is_number(value) else _refuse(value, dtype)
    if dtype in _INTEGERS:
        lowest, highest = _integer_range(dtype)
        return lambda value: (
            value if type(value) is int and lowest <= value <= highest else _refuse(value, dtype)
        )
    if dtype == dtypes.BOOL:
        return lambda value: value if isinstance(value, bool) else _refuse(value, dtype)
    if dtype == dtypes.STRING:
        return _string
    return lambda value: _refuse_type(value, dtype)


def _is_number(value: object) -> TypeGuard[int | float]:
    return type(value) in (int, float)


def _string(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return base64_bytes(value) if isinstance(value, dict) else _refuse(value, dtypes.STRING)


def _refuse(value: object, dtype: int) -> NoReturn:
    raise invalid(
        f"JSON Value: {describe(value)} Type: {json_type(value)} is not of expected type: {dtypes.name_of(dtype)}"
    )


def _refuse_type(value: object, dtype: int) -> NoReturn:
    if isinstance(value, dict):
        _refuse(value, dtype)
    raise ServingError(
        Code.UNIMPLEMENTED, f"Conversion of JSON Value: {describe(value)} to type: {dtypes.name_of(dtype)}"
    )


def json_type(value: object) -> str:
    """What error texts call the type of a JSON value."""
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    names: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def is_base64(value: object) -> TypeGuard[dict[str, str]]:
    """Whether a JSON value stands for bytes: an object with the one key `b64` and a string."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def is_object(value: object) -> TypeGuard[dict[str, object]]:
    """Whether a JSON value is an object that does not stand for bytes."""
    return isinstance(value, dict) and not is_base64(value)


_BLANKS = re.compile(r"\s+")


def base64_bytes(value: object) -> bytes:
    """The bytes of a `{"b64": …}` object; missing padding is tolerated."""
    if not is_base64(value):
        raise invalid(f"JSON Value: {describe(value)} not formatted correctly for base64 data")
    given = _BLANKS.sub("", value["b64"])
    text = given.rstrip("=")
    try:
        if len(given) - len(text) not in (0, -len(text) % 4):
            raise invalid("Unable to base64 decode")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None
