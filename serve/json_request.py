"""From a predict request in JSON to tensors: row form (`instances`) and column form (`inputs`)."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from serve import json_tensors
from serve.json_parse import Document, describe
from serve.json_plain import Plain
from serve.json_tensors import Column, is_object
from serve.model import TensorSpec
from serve.status import ServingError, invalid


class Form(enum.Enum):
    """How a request is laid out; its answer has the same form."""

    ROWS = "instances"
    COLUMNS = "inputs"


@dataclass(frozen=True)
class Tensors:
    """A request's tensors by input alias, and the form that it came in."""

    form: Form
    values: Mapping[str, np.ndarray]


def require_object(document: Document) -> dict:
    """The request's members. Raises INVALID_ARGUMENT where its JSON is no object."""
    if not isinstance(document.value, dict):
        raise invalid(f"JSON Value: {describe(document.value)} Is not object")
    return document.value


def signature_name(members: dict) -> str:
    """The signature that a request names; empty where it names none."""
    name = members.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {describe(members)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def named(document: Document) -> str:
    """The same of a request. Raises INVALID_ARGUMENT."""
    if document.plain is not None:
        return document.plain.signature
    return signature_name(require_object(document))


def tensors(document: Document, inputs: Mapping[str, TensorSpec]) -> Tensors:
    """The tensors of a predict request. `inputs` are those of its signature, one or more."""
    if document.plain is not None:
        found = _plain_numbers(document.plain, inputs)
        if found is not None:
            return found
    members = require_object(document)
    if "instances" in members and "inputs" in members:
        raise invalid(
            f"JSON Value: {describe(members)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    types = {alias: spec.dtype for alias, spec in inputs.items()}
    if "instances" in members:
        return Tensors(Form.ROWS, _rows(_instances(members), types, document.may_hold_booleans))
    if "inputs" in members:
        return Tensors(Form.COLUMNS, _columns(members["inputs"], types, document.may_hold_booleans))
    raise invalid("Missing 'inputs' or 'instances' key")


def _plain_numbers(plain: Plain, inputs: Mapping[str, TensorSpec]) -> Tensors | None:
    """The one input's tensor; None where the numbers are not of its type."""
    if len(inputs) != 1:
        return None
    ((alias, spec),) = inputs.items()
    numbers = plain.array(spec.dtype)
    tensor = None if numbers is None else json_tensors.converted(numbers, spec.dtype)
    return None if tensor is None else Tensors(Form(plain.key), {alias: tensor})


def _instances(members: dict) -> list:
    rows = members["instances"]
    if not isinstance(rows, list):
        raise invalid(f"JSON Value: {describe(members)} Expecting 'instances' to be an list/array")
    if not rows:
        raise invalid(f"JSON Value: {describe(members)} No values in 'instances' array")
    return rows


def _rows(rows: list, types: Mapping[str, int], booleans: bool) -> dict[str, np.ndarray]:
    if is_object(rows[0]):
        return _named_rows(rows, types, booleans)
    if len(types) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    ((alias, dtype),) = types.items()
    whole = json_tensors.regular(rows, dtype, booleans)
    return {alias: _plain_rows(rows, dtype) if whole is None else whole}


def _plain_rows(rows: list, dtype: int) -> np.ndarray:
    column = Column(dtype)
    for index, row in enumerate(rows):
        if is_object(row):
            raise invalid(f"Expecting value/list but got object at item {index} of input list")
        with _Blame(f"Failed to process element: {index} of 'instances' list. Error: "):
            column.add(row)
    return column.tensor()


def _named_rows(rows: list, types: Mapping[str, int], booleans: bool) -> dict[str, np.ndarray]:
    lists = _lists(rows, types)
    regular = None if lists is None else json_tensors.regular_together(lists, types, booleans)
    if regular is not None:
        return regular
    columns = {name: Column(dtype) for name, dtype in types.items()}
    for index, row in enumerate(rows):
        _add_named_row(row, index, columns)
    return {name: column.tensor() for name, column in columns.items()}


def _lists(rows: list, types: Mapping[str, int]) -> dict[str, list] | None:
    """The values of each name, where all rows are objects with these names."""
    names = list(rows[0])
    if all(isinstance(row, dict) and list(row) == names for row in rows):
        if types.keys() != set(names):
            return None
        return dict(zip(names, map(list, zip(*[row.values() for row in rows], strict=True)), strict=True))
    if all(isinstance(row, dict) and row.keys() == types.keys() for row in rows):
        return {name: [row[name] for row in rows] for name in names}
    return None


def _add_named_row(row: object, index: int, columns: Mapping[str, Column]) -> None:
    if not is_object(row):
        raise invalid(f"Expecting object but got list at item {index} of input list")
    for name, value in row.items():
        with _Blame(f"Failed to process element: {index} key: {name} of 'instances' list. Error: "):
            if name not in columns:
                raise invalid(f"JSON object: does not have named input: {name}")
            columns[name].add(value)
    if row.keys() != columns.keys():
        raise invalid(
            f"Failed to process element: {index} of 'instances' list. JSON object: {describe(row)} "
            f"keys must be equal to: {','.join(sorted(columns))}"
        )


def _columns(inputs: object, types: Mapping[str, int], booleans: bool) -> dict[str, np.ndarray]:
    if is_object(inputs):
        missing = next((name for name in sorted(types) if name not in inputs), None)
        if missing is not None:
            raise invalid(f"Missing named input: {missing} in 'inputs' object.")
        columns = {name: inputs[name] for name in types}
        return json_tensors.regular_together(columns, types, booleans) or {
            name: json_tensors.tensor(value, types[name], booleans) for name, value in columns.items()
        }
    if len(types) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map"
        )
    ((alias, dtype),) = types.items()
    return {alias: json_tensors.tensor(inputs, dtype, booleans)}


class _Blame:
    """Rewords what fails within as INVALID_ARGUMENT of the element that it is about."""

    def __init__(self, prefix: str):
        self.prefix = prefix

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ServingError):
            raise invalid(f"{self.prefix}{error}") from error
