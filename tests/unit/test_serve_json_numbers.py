"""Numbers read straight into arrays, and written many at once: the same as one by one."""

import json

import numpy as np
import pytest

from serve import dtypes, json_digits, json_numbers, json_parse, json_plain, json_request
from serve.model import TensorSpec
from serve.status import ServingError

NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
SPECIAL = [
    0, -0.0, 9e6, 999999, 1e6, 1e5, 0.00003, 555557.5, 1 / 3, np.nan, np.inf, -np.inf, 1e22, 1e23, 9.999999e22,
    16777217, 123456789, 1e9, 999999999, 1e8, 3.4028235e38, 1e-45, 1.1754944e-38, 1e16, 1e17, 12345678901234567,
    -5, -1e-5, 999999.5, 0.1, 123456.5, 1234567.5, 2**53, 2**53 - 0.5, 1e15 + 0.125, 5e-324, 1.7976931348623157e308,
    9.999995, 99999.95, 0.0001, 0.00001, 0.00099999997, 99999.995, 9999995, 24999975e0, 99999900.0,
    0.3, 100, 1.5, -2.5e-7,
]  # fmt: skip


def rule(number) -> str:
    """The contract's words: six significant digits if they read back equal, else 9 or 17; `.0` where needed."""
    wide = float(number)
    with np.errstate(over="ignore"):
        is_short = type(number)(f"{wide:.6g}") == number
    text = f"{wide:.6g}" if is_short else f"{wide:.{9 if isinstance(number, np.float32) else 17}g}"
    return NOT_FINITE.get(text) or (text if "." in text or "e" in text else text + ".0")


def floats(count: int) -> np.ndarray:
    """32-bit floats of every kind: any bits, six digits and nine, halves, decimals, probabilities."""
    rng = np.random.default_rng(5)
    with np.errstate(all="ignore"):
        return np.concatenate([
            rng.integers(0, 2**32, count, np.uint32).view(np.float32),
            (rng.integers(1, 10**6, count) * 10.0 ** rng.integers(-44, 34, count)).astype(np.float32),
            (rng.integers(1, 10**9, count) * 10.0 ** rng.integers(-12, 4, count)).astype(np.float32),
            (rng.integers(0, 2**24, count) / 2).astype(np.float32),
            rng.random(count).astype(np.float32),
            np.array(SPECIAL, np.float32),
        ])  # fmt: skip


def test_floats_are_written_by_the_rule_however_many_they_are():
    values = floats(800)
    expected = [rule(value) for value in values]
    assert json_numbers.texts(values) == expected
    assert json_digits.rows(values.reshape(1, -1)) == [", ".join(expected)]
    for size in (1, 10, json_numbers._MANY - 1, json_numbers._MANY, 600):
        for at in range(0, len(values) - size, 397):
            assert json_numbers.texts(values[at : at + size]) == expected[at : at + size]


def test_doubles_are_written_by_the_rule():
    rng = np.random.default_rng(6)
    with np.errstate(all="ignore"):
        values = np.concatenate([
            rng.integers(0, 2**63, 1000, np.uint64).view(np.float64),
            rng.integers(1, 10**6, 1000) * 10.0 ** rng.integers(-300, 300, 1000),
            np.array(SPECIAL),
        ])  # fmt: skip
    assert json_numbers.texts(values) == [rule(value) for value in values]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (700, 1), (1, 700), (40, 30)])
def test_rows_are_joined_whatever_their_shape(shape):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 7
    assert json_numbers.rows(values) == [", ".join(map(rule, row)) for row in values]


# --- reading ---


def read(body: bytes, dtype=dtypes.FLOAT):
    """What a request's one input is, or its error; first straight, then by way of Python's lists."""
    try:
        document = json_parse.parse(body)
        slow = by_lists(document)
    except ServingError as error:  # no JSON, or no object: neither way can read it
        return str(error), str(error)
    inputs = {"x": TensorSpec("x:0", dtype)}
    found = []
    for each in (json_parse.parse(body), slow):
        try:
            tensors = json_request.tensors(each, inputs)
            array = tensors.values["x"]
            found.append(
                (tensors.form, json_request.named(each), array.dtype, array.shape, repr(array.tolist()))
            )
        except ServingError as error:
            found.append(str(error))
    return found


def by_lists(document):
    json_request.require_object(document)  # reads all of it
    slow = json_parse.Document(b'{"x": 1}')
    slow._value, slow._booleans = document.value, document.may_hold_booleans
    return slow


PLAIN = [
    b'{"instances": [1, 2.5, -3e2]}',
    b'{"instances": [[1, 2], [3, 4]]}',
    b' { "inputs" :\n[[[1],[2]],[[3],[4]],[[5],[6]]] } \n',
    b'{"signature_name": "s", "instances": [1]}',
    b'{"instances": [[0]], "signature_name": ""}',
    b'{"instances": [18446744073709551615, -0, 9007199254740993]}',
    b'{"inputs": [1e-400, 123456789012345678]}',
]
UNUSUAL = [
    b'{"instances": [[1, 2], [3]]}',
    b'{"instances": [[1, 2], 3]}',
    b'{"instances": [[1, 2], [3, [4]]]}',
    b'{"instances": [[1], [[2]]]}',
    b'{"instances": [[], [1]]}',
    b'{"instances": []}',
    b'{"instances": [[], []]}',
    b'{"instances": [1, true]}',
    b'{"instances": [1, null]}',
    b'{"instances": [NaN, 1]}',
    b'{"instances": ["1"]}',
    b'{"instances": [1]} trailing',
    b'{"instances": [1], "instances": [2]}',
    b'{"instances": [1], "inputs": [2]}',
    b'{"inputs": "[", "instances": [1]}',
    b'{"signature_name": ["s"], "instances": [1]}',
    b'{"signature_name": "a,[b", "instances": [1]}',
    b'{"signature_name": "a\\"b", "instances": [1]}',
    b'{"signature_name": "a", "signature_name": "b", "instances": [1]}',
    b'{"other": "s", "instances": [1]}',
    b'{"other": [1]}',
    b'{"instances": {"x": [1]}}',
    b'{"inputs": {"x": [1]}}',
    b'{"instances": [1e400]}',
    b'{"instances": [18446744073709551616]}',
    b'{"instances": [01]}',
    b'{"instances": [1,]}',
    b'{"instances": [1}',
    b'{"instances": [1]',
    b'{"instances": ' + b"[" * 20 + b"1" + b"]" * 20 + b"}",
    b"\xef\xbb\xbf" + b'{"instances": [1]}',
    b'{"inst\xff": [1]}',
    b"[1]",
]


@pytest.mark.parametrize("body", PLAIN)
def test_plain_lists_of_numbers_are_read_straight_and_alike(body):
    assert json_plain.read(body) is not None
    straight, by_list = read(body)
    assert straight == by_list
    assert not isinstance(straight, str)


@pytest.mark.parametrize("dtype", sorted({*dtypes.DTYPES} - {dtypes.COMPLEX64, dtypes.COMPLEX128}))
@pytest.mark.parametrize("body", [*PLAIN, *UNUSUAL])
def test_both_ways_of_reading_agree(body, dtype):
    straight, by_list = read(body, dtype)
    assert straight == by_list


def test_shapes_of_many_sizes_are_seen():
    for shape in ((1,), (7,), (1, 1), (3, 1), (1, 3), (4, 5), (2, 3, 4), (1, 1, 1, 1), (2, 1, 3, 1)):
        array = np.arange(np.prod(shape)).reshape(shape)
        plain = json_plain.read(json.dumps({"instances": array.tolist()}).encode())
        assert plain is not None
        assert plain.array(dtypes.INT64).tolist() == array.tolist()


def test_strings_alike_in_shape_are_read_at_once_and_alike():
    named = [{"a": [["x", "é"]], "b": 1.5}, {"a": [["", "z"]], "b": 2}]
    inputs = {"a": TensorSpec("a:0", dtypes.STRING), "b": TensorSpec("b:0", dtypes.FLOAT)}
    values = json_request.tensors(json_parse.parse(json.dumps({"instances": named}).encode()), inputs).values
    assert values["a"].tolist() == [[[b"x", "é".encode()]], [[b"", b"z"]]]
    assert values["b"].tolist() == [1.5, 2.0]
    for texts in (["a\0b", "c"], ["\0"], ["", ""], ["\0", "", "\0\0"]):
        document = json_parse.parse(json.dumps({"inputs": texts}).encode())
        (tensor,) = json_request.tensors(document, {"a": inputs["a"]}).values.values()
        assert tensor.tolist() == [text.encode() for text in texts]
    for uneven in (
        ["x", ["y"]],
        [["x"], ["y", "z"]],
        [["x"], "y"],
        ["x", 1],
        [["x"], [{"b64": "eA=="}, "y"]],
    ):
        with pytest.raises(ServingError, match="INVALID_ARGUMENT"):
            raise_for(uneven)


def raise_for(value):
    body = json.dumps({"inputs": value}).encode()
    json_request.tensors(json_parse.parse(body), {"x": TensorSpec("x:0", dtypes.STRING)})


# --- several inputs ---

NAMED = {
    "a": TensorSpec("a:0", dtypes.FLOAT),
    "b": TensorSpec("b:0", dtypes.FLOAT),
    "c": TensorSpec("c:0", dtypes.INT32),
    "d": TensorSpec("d:0", dtypes.INT32),
    "e": TensorSpec("e:0", dtypes.STRING),
    "f": TensorSpec("f:0", dtypes.STRING),
}
USUAL = {"a": 1.5, "b": 2, "c": 3, "d": -4, "e": "é", "f": ""}
ODD = [
    1, -1, 2**40, 2**64, 0.5, "x", "", True, None, [], [1], [1, 2], [[1], [2]], ["x", "y"], {"b64": "eA=="}, {},
]  # fmt: skip


def named_documents() -> list[dict]:
    """Requests of named inputs: usual ones, and such with a value, or a name, that is not."""
    rows = [dict(USUAL) for _ in range(3)]
    found = [{"instances": rows}, {"inputs": USUAL}, {"inputs": {name: [USUAL[name]] * 3 for name in USUAL}}]
    shuffled = [USUAL, dict(reversed(USUAL.items())), USUAL]
    found += [{"instances": shuffled}, {"instances": [*rows, {**USUAL, "g": 1}]}, {"instances": [*rows, 5]}]
    for name in USUAL:
        found.append({"instances": [*rows, {key: value for key, value in USUAL.items() if key != name}]})
        for odd in ODD:
            found.append({"instances": [*rows, {**USUAL, name: odd}]})
            found.append({"instances": [{**USUAL, name: odd}] * 2})
            found.append({"inputs": {**USUAL, name: odd}})
            found.append({"inputs": {**{each: [USUAL[each]] for each in USUAL}, name: odd}})
    return found


def told(document: dict) -> object:
    try:
        found = json_request.tensors(json_parse.parse(json.dumps(document).encode()), NAMED)
    except ServingError as error:
        return str(error)
    return found.form, {name: (each.dtype, each.shape, each.tolist()) for name, each in found.values.items()}


def test_inputs_read_together_are_the_same_as_one_by_one(monkeypatch):
    documents = named_documents()
    together = list(map(told, documents))
    monkeypatch.setattr(json_request.json_tensors, "regular_together", lambda *_: None)
    monkeypatch.setattr(json_request.json_tensors, "regular", lambda *_: None)
    assert together == list(map(told, documents))
    assert [type(each) for each in together[:4]] == [tuple] * 4


def test_what_is_beside_an_input_changes_nothing_of_its_value():
    inputs = {"a": TensorSpec("a:0", dtypes.FLOAT), "b": TensorSpec("b:0", dtypes.FLOAT)}
    found = []
    for beside in (0.5, 1, "x"):
        document = {"inputs": {"a": [9007199791611905], "b": [beside]}}
        try:
            read_both = json_request.tensors(json_parse.parse(json.dumps(document).encode()), inputs)
            found.append(read_both.values["a"].tolist())
        except ServingError:
            continue
    alone = json_request.tensors(
        json_parse.parse(b'{"inputs": [9007199791611905]}'), {"a": inputs["a"]}
    ).values["a"]
    assert found == [alone.tolist()] * 2
