"""From tensors to a predict answer in JSON, numbers written as TF Serving writes them."""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from serve import dtypes, json_numbers
from serve.json_request import Form
from serve.status import invalid


def answer(form: Form, outputs: Mapping[str, np.ndarray], types: Mapping[str, int]) -> bytes:
    """The JSON answer. `types` gives each output's number of tensorflow.DataType."""
    text = _rows(outputs, types) if form is Form.ROWS else _columns(outputs, types)
    return text.encode("utf-8", "surrogateescape")


def _rows(outputs: Mapping[str, np.ndarray], types: Mapping[str, int]) -> str:
    count = None
    for alias, tensor in outputs.items():
        if tensor.ndim == 0:
            raise invalid(f"Tensor name: {alias} has no shape information ")
        if count is not None and tensor.shape[0] != count:
            raise invalid(
                f"Tensor name: {alias} has inconsistent batch size: {tensor.shape[0]} expecting: {count}"
            )
        count = tensor.shape[0]
    columns = [_nested(tensor, 1, alias, types[alias]) for alias, tensor in outputs.items()]
    if len(columns) == 1:
        rows = columns[0]
    else:
        keys = [f"{quoted(alias)}: " for alias in outputs]
        rows = [
            "{" + ", ".join(map("".join, zip(keys, row, strict=True))) + "}"
            for row in zip(*columns, strict=True)
        ]
    return '{"predictions": [' + ", ".join(rows) + "]}"


def _columns(outputs: Mapping[str, np.ndarray], types: Mapping[str, int]) -> str:
    texts = {alias: _nested(tensor, 0, alias, types[alias])[0] for alias, tensor in outputs.items()}
    if len(texts) == 1:
        (whole,) = texts.values()
    else:
        whole = "{" + ", ".join(f"{quoted(alias)}: {text}" for alias, text in texts.items()) + "}"
    return '{"outputs": ' + whole + "}"


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
