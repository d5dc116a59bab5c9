"""From tensors to a predict answer in JSON, numbers written as TF Serving writes them.

A large answer is written in pieces: a text for each number takes far more memory than they have joined.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from serve import dtypes, json_numbers
from serve.json_request import Form
from serve.status import invalid

# Values of a piece, about; an empty list counts as one.
_AT_ONCE = 8192


def answer(form: Form, outputs: Mapping[str, np.ndarray], types: Mapping[str, int]) -> bytes:
    """The JSON answer. `types` gives each output's number of tensorflow.DataType."""
    if form is Form.ROWS:
        _check_rows(outputs)
    if sum([tensor.size or _places(tensor.shape) for tensor in outputs.values()]) > _AT_ONCE:
        texts = _large_rows(outputs, types) if form is Form.ROWS else _large_columns(outputs, types)
        return b"".join(_encoded(texts))
    text = _rows(outputs, types) if form is Form.ROWS else _columns(outputs, types)
    return text.encode("utf-8", "surrogateescape")


def _check_rows(outputs: Mapping[str, np.ndarray]) -> None:
    count = None
    for alias, tensor in outputs.items():
        if tensor.ndim == 0:
            raise invalid(f"Tensor name: {alias} has no shape information ")
        if count is not None and tensor.shape[0] != count:
            raise invalid(
                f"Tensor name: {alias} has inconsistent batch size: {tensor.shape[0]} expecting: {count}"
            )
        count = tensor.shape[0]


def _rows(outputs: Mapping[str, np.ndarray], types: Mapping[str, int]) -> str:
    return '{"predictions": [' + ", ".join(_row_texts(outputs, types)) + "]}"


def _row_texts(outputs: Mapping[str, np.ndarray], types: Mapping[str, int]) -> list[str]:
    columns = [_nested(tensor, 1, alias, types[alias]) for alias, tensor in outputs.items()]
    if len(columns) == 1:
        return columns[0]
    row = ", ".join(f"{quoted(alias)}: ".replace("%", "%%") + "%s" for alias in outputs)
    return list(map(f"{{{row}}}".__mod__, zip(*columns, strict=True)))


def _columns(outputs: Mapping[str, np.ndarray], types: Mapping[str, int]) -> str:
    texts = {alias: _nested(tensor, 0, alias, types[alias])[0] for alias, tensor in outputs.items()}
    if len(texts) == 1:
        (whole,) = texts.values()
    else:
        whole = "{" + ", ".join(f"{quoted(alias)}: {text}" for alias, text in texts.items()) + "}"
    return '{"outputs": ' + whole + "}"


# --- in pieces ---


def _encoded(texts: Iterable[str]) -> Iterator[bytes]:
    """The texts' bytes; other threads have their turn after each that is long."""
    for text in texts:
        yield text.encode("utf-8", "surrogateescape")
        if len(text) > _AT_ONCE:
            time.sleep(0)


def _large_rows(outputs: Mapping[str, np.ndarray], types: Mapping[str, int]) -> Iterator[str]:
    """What `_rows` gives: many rows at a time where they are small, each in pieces where they are not."""
    row_places = sum(_places(tensor.shape[1:]) for tensor in outputs.values())
    count = min(map(len, outputs.values()))
    step = max(1, _AT_ONCE // row_places)
    yield '{"predictions": ['
    for at in range(0, count, step):
        if at:
            yield ", "
        if row_places <= _AT_ONCE:
            some = {alias: tensor[at : at + step] for alias, tensor in outputs.items()}
            yield ", ".join(_row_texts(some, types))
        else:
            yield from _together({alias: tensor[at, ...] for alias, tensor in outputs.items()}, types)
    yield "]}"


def _large_columns(outputs: Mapping[str, np.ndarray], types: Mapping[str, int]) -> Iterator[str]:
    yield '{"outputs": '
    yield from _together(outputs, types)
    yield "}"


def _together(outputs: Mapping[str, np.ndarray], types: Mapping[str, int]) -> Iterator[str]:
    """The one tensor, or an object of them."""
    if len(outputs) == 1:
        ((alias, tensor),) = outputs.items()
        yield from _tensor(tensor, alias, types[alias])
        return
    for number, (alias, tensor) in enumerate(outputs.items()):
        yield (", " if number else "{") + f"{quoted(alias)}: "
        yield from _tensor(tensor, alias, types[alias])
    yield "}"


def _tensor(tensor: np.ndarray, alias: str, dtype: int) -> Iterator[str]:
    if tensor.ndim == 0 or _places(tensor.shape) <= _AT_ONCE:
        yield _nested(tensor, 0, alias, dtype)[0]
        return
    places = _places(tensor.shape[1:])
    step = max(1, _AT_ONCE // places)
    yield "["
    for at in range(0, len(tensor), step):
        if at:
            yield ", "
        if places <= _AT_ONCE:
            yield ", ".join(_nested(tensor[at : at + step], 1, alias, dtype))
        else:
            yield from _tensor(tensor[at], alias, dtype)
    yield "]"


def _places(shape: Sequence[int]) -> int:
    """How many values a tensor has, where an empty list counts as one."""
    return math.prod([max(1, length) for length in shape])


# --- a tensor, or a piece of one ---


def _nested(tensor: np.ndarray, kept: int, alias: str, dtype: int) -> list[str]:
    """The JSON of a tensor's parts below its first `kept` dimensions, in order."""
    levels = tensor.ndim
    if dtype in (dtypes.FLOAT, dtypes.DOUBLE) and tensor.ndim > kept:
        levels -= 1
        lists = tensor.reshape(math.prod(tensor.shape[:levels]), tensor.shape[levels])
        texts = [f"[{numbers}]" for numbers in json_numbers.rows(lists)]
    else:
        texts = _writer(alias, dtype)(tensor.reshape(-1))
    for level in range(levels - 1, kept - 1, -1):
        width, count = tensor.shape[level], math.prod(tensor.shape[:level])
        texts = [f"[{', '.join(texts[at * width : (at + 1) * width])}]" for at in range(count)]
    return texts


def _writer(alias: str, dtype: int) -> Callable[[np.ndarray], list[str]]:
    if dtype not in _WRITERS:
        raise invalid(f"Failed to write JSON value for tensor type: {dtypes.name_of(dtype)}")
    is_bytes = dtype == dtypes.STRING and alias.endswith("_bytes")
    return _base64_texts if is_bytes else _WRITERS[dtype]


def _integer_texts(values: np.ndarray) -> list[str]:
    return list(map(str, values.tolist()))


def _boolean_texts(values: np.ndarray) -> list[str]:
    return ["true" if value else "false" for value in values.tolist()]


def _string_texts(values: np.ndarray) -> list[str]:
    return [quoted(_bytes(value).decode("utf-8", "surrogateescape")) for value in values.tolist()]


def _base64_texts(values: np.ndarray) -> list[str]:
    from base64 import b64encode

    return [f'{{"b64": "{b64encode(_bytes(value)).decode()}"}}' for value in values.tolist()]


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


_INTEGER_TYPES: Sequence[int] = (
    dtypes.INT32,
    dtypes.INT16,
    dtypes.INT8,
    dtypes.UINT8,
    dtypes.INT64,
    dtypes.UINT32,
    dtypes.UINT64,
)
_WRITERS = dict.fromkeys(_INTEGER_TYPES, _integer_texts) | {
    dtypes.FLOAT: json_numbers.texts,
    dtypes.DOUBLE: json_numbers.texts,
    dtypes.BOOL: _boolean_texts,
    dtypes.STRING: _string_texts,
}

_SPECIAL = re.compile(r'["\\\x00-\x1f]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quoted(text: str) -> str:
    """A JSON string. Bytes that are no UTF-8 (lone surrogates here) are left as they are."""
    return '"' + _SPECIAL.sub(lambda match: _SHORT.get(match[0]) or f"\\u{ord(match[0]):04X}", text) + '"'
