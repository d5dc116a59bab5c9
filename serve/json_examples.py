"""From a classify or regress request in JSON to serialized tf.Examples."""

from typing import Any, NoReturn

from serve import examples
from serve.json_parse import describe
from serve.json_tensors import base64_bytes, is_base64, json_type
from serve.status import invalid

_INT64_AT_MOST = 2**63 - 1


def read(members: dict) -> list[bytes]:
    """The examples of a request, the context's features in each. Raises INVALID_ARGUMENT."""
    names = examples.Names()
    context = _example(members["context"], names) if "context" in members else b""
    if "examples" not in members:
        raise invalid(
            f"JSON Value: {describe(members)} When method is classify, key 'examples' is expected and was not found"
        )
    found = members["examples"]
    if not isinstance(found, list):
        raise invalid(f"JSON Value: {describe(members)} Expecting 'examples' value to be an list/array")
    if not found:
        raise invalid(f"JSON Value: {describe(members)} 'examples' value is an empty array")
    # Messages merge when their bytes are joined: an example's own feature replaces the context's.
    return [context + _example(item, names) for item in found]


def _example(value: object, names: examples.Names) -> bytes:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {json_type(value)}")
    return examples.example({name: _feature(name, content) for name, content in value.items()}, names)


def _feature(name: str, content: object) -> bytes:
    """A feature of the kind that its elements show; most have one kind, which is seen at once."""
    values: list[Any] = content if isinstance(content, list) else [content]
    types = set(map(type, values))
    if types == {float}:
        return examples.of_floats(values)
    if types == {str}:
        return examples.of_bytes([_text(value) for value in values])
    if types and types <= {int, bool} and max(values) <= _INT64_AT_MOST:
        return examples.of_integers(map(int, values))
    return _mixed(name, values) if values else b""


def _mixed(name: str, values: list[Any]) -> bytes:
    """A feature of strings and base64 objects; anything else that gets here is refused."""
    kind = _kind(name, values[0])
    found = []
    for value in values:
        if _kind(name, value) != kind:
            raise invalid(f"Unexpected element type in feature: {name} expecting type: {kind}")
        if kind == "int64" and value > _INT64_AT_MOST:
            raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        if kind == "bytes":
            found.append(_text(value) if isinstance(value, str) else base64_bytes(value))
    return examples.of_bytes(found)


_KINDS: dict[type, str] = {bool: "int64", int: "int64", float: "float", str: "bytes"}


def _kind(name: str, value: object) -> str:
    if type(value) in _KINDS:
        return _KINDS[type(value)]
    return "bytes" if is_base64(value) else _refuse(name, value)


def _refuse(name: str, value: object) -> NoReturn:
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {json_type(value)}")


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")
