"""JSON in and out of the model server: what is read, what is refused and how, how numbers are written."""

import base64
import json
import math
import random

import numpy as np
import orjson
import pytest

from serve import dtypes, json_answer, json_parse, json_request
from serve.json_request import Form
from serve.model import TensorSpec
from serve.status import ServingError

FLOAT_X = {"x": TensorSpec("x:0", dtypes.FLOAT)}
TWO = {"a": TensorSpec("a:0", dtypes.FLOAT), "b": TensorSpec("b:0", dtypes.INT32)}


def read(body: str | bytes | dict, inputs=FLOAT_X) -> json_request.Tensors:
    if isinstance(body, dict):
        body = json.dumps(body)
    raw = body if isinstance(body, bytes) else body.encode("utf-8")
    return json_request.tensors(json_parse.parse(raw), inputs)


def refused(body, inputs=FLOAT_X) -> str:
    with pytest.raises(ServingError) as caught:
        read(body, inputs)
    return str(caught.value)


def typed(dtype: int) -> dict[str, TensorSpec]:
    return {"x": TensorSpec("x:0", dtype)}


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[NaN, -NaN, Infinity, -Infinity, Inf, -Inf]", [math.nan, math.nan, *[math.inf, -math.inf] * 2]),
        (b'{"a": 1} and what follows is ignored', {"a": 1}),
        (b'{"a": 1}{"a": 2}', {"a": 1}),
        (b'{"a": 1, "a": 2}', {"a": 1}),
        (b'{"a": {"b": 1, "b": 2}}', {"a": {"b": 1}}),
        (b'{"a": "http://x:1/"}', {"a": "http://x:1/"}),
        (b'{"a": "\\":\\":"}', {"a": '":":'}),
        (b'{"\\u0061": 1, "a": 2}', {"a": 1}),
        (b"\xef\xbb\xbf[1]", [1]),
        (b" [1, -0.5e3, 18446744073709551615] x", [1, -500.0, 18446744073709551615]),
        (b'["\\ud83d\\ude00\\n\\u00e9"] x', ["\U0001f600\né"]),
        (b'["\xff"]', ["\udcff"]),
        (b'[true, false, null, {}, [], ""] x', [True, False, None, {}, [], ""]),
        (b"[18446744073709551616] x", [18446744073709551616.0]),
    ],
)
def test_parser_reads_what_tf_serving_reads(body, value):
    found = json_parse.parse(body).value
    assert repr(found) == repr(value)


def random_value(draw: random.Random, depth: int):
    """A JSON value: lists, objects, and what they hold."""
    kind = draw.randrange(9 if depth else 7)
    if kind >= 7:
        items = [random_value(draw, depth - 1) for _ in range(draw.randrange(4))]
        return (
            items
            if kind == 7
            else {draw.choice(['a"', "b\\", "é:", ""]) + str(i): v for i, v in enumerate(items)}
        )
    text = "".join(draw.choice('ab"\\/\n\té\U0001f600:,[]{}') for _ in range(draw.randrange(8)))
    return [
        None,
        True,
        False,
        draw.randrange(-(10**9), 10**19),
        draw.uniform(-1e9, 1e-9),
        text,
        draw.random(),
    ][kind]


def test_slow_reader_agrees_with_orjson_on_common_json():
    draw = random.Random(7)
    for _ in range(300):
        value = random_value(draw, 4)
        for body in (json.dumps(value), json.dumps(value, indent=1), json.dumps(value, ensure_ascii=False)):
            assert json_parse.parse(body.encode() + b" !").value == orjson.loads(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"  ", "JSON Parse error: The document is empty. at offset: 2"),
        (b"hello", "JSON Parse error: Invalid value. at offset: 0"),
        (b'{"a": nope}', "JSON Parse error: Invalid value. at offset: 6"),
        (b"[1 2]", "JSON Parse error: Missing a comma or ] after an array element. at offset: 3"),
        (b"[1,]", "JSON Parse error: Invalid value. at offset: 3"),
        (b'{"a" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 5"),
        (b"{1: 1}", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (b'{"a": 1 "b"}', "JSON Parse error: Missing a comma or } after an object member. at offset: 8"),
        (b'{"a": "b', "JSON Parse error: Missing a closing quotation mark in string. at offset: 6"),
        (b'["\\q"]', "JSON Parse error: Invalid escape character in string. at offset: 2"),
        (b'["\\u12g4"]', "JSON Parse error: Incorrect hex digit after \\u escape in string. at offset: 2"),
        (b'["\\ud800"]', "JSON Parse error: The surrogate pair in string is invalid. at offset: 2"),
        (b'["a\x01"]', "JSON Parse error: Invalid encoding in string. at offset: 3"),
        (b"[1.]", "JSON Parse error: Miss fraction part in number. at offset: 3"),
        (b"[1e]", "JSON Parse error: Miss exponent in number. at offset: 3"),
        (b"[1e999]", "JSON Parse error: Number too big to be stored in double. at offset: 1"),
        ('["é", x]'.encode(), "JSON Parse error: Invalid value. at offset: 7"),
    ],
)
def test_parser_says_what_is_wrong_and_at_which_byte(body, message):
    with pytest.raises(ServingError) as caught:
        json_parse.parse(body)
    assert caught.value.message == message


def test_parser_reads_half_a_million_nested_brackets():
    deep = b"[" * 500_000 + b"]" * 500_000
    document = json_parse.parse(b'{"unused": ' + deep + b', "instances": [1.5]}')
    assert json_request.tensors(document, FLOAT_X).values["x"].tolist() == [1.5]
    named_deep = json_parse.parse(b'{"signature_name": ' + deep + b"}").value
    with pytest.raises(ServingError, match="'signature_name' key must be a string value") as caught:
        json_request.signature_name(named_deep)
    assert len(caught.value.message) < 500


def test_instances_nested_deeper_than_any_tensor_are_refused():
    assert "is nested deeper than 31 lists" in refused(
        b'{"instances": ' + b"[" * 5000 + b"1" + b"]" * 5000 + b"}"
    )


def test_debug_text_is_indented_by_four_with_lists_on_one_line_and_stops_after_256_bytes():
    assert json_parse.describe({"a": [1, 2.5, "x"], "b": {}}) == '{\n    "a": [1, 2.5, "x"],\n    "b": {}\n}'
    assert json_parse.describe([math.nan, None, True]) == "[NaN, null, true]"
    numbers = [json_parse.describe(number) for number in (1.0, 0.1, 0.1234567, 9e6, 1e300, -1e-60, 3)]
    assert numbers == ["1.0", "0.1", "0.123456702", "9e+06", "1e+300", "-0.0", "3"]
    assert len(json_parse.describe(list(range(100_000)))) == 256
    assert len(json_parse.describe("é" * 1000).encode()) <= 256 + 2


@pytest.mark.parametrize(
    ("body", "shape", "values"),
    [
        ({"instances": [1, 2.5]}, (2,), [1, 2.5]),
        ({"instances": [[1], [2]]}, (2, 1), [1, 2]),
        ({"instances": [{"x": [1, 2]}]}, (1, 2), [1, 2]),
        ({"instances": [[], []]}, (2, 0), []),
        ({"inputs": 3}, (), [3]),
        ({"inputs": [[1, 2, 3]]}, (1, 3), [1, 2, 3]),
        ({"inputs": {"x": [4], "more": "ignored"}}, (1,), [4]),
        ({"inputs": []}, (0,), []),
        ({"signature_name": "s", "instances": [1], "unknown": True}, (1,), [1]),
        ('{"instances": [1e39, -1e39, 1e-60, 16777217]}', (4,), [math.inf, -math.inf, 0, 16777216]),
        ('{"instances": [NaN, 1]}', (2,), [math.nan, 1]),
    ],
)
def test_float_requests_become_tensors(body, shape, values):
    tensor = read(body).values["x"]
    assert (tensor.dtype, tensor.shape) == (np.float32, shape)
    np.testing.assert_array_equal(tensor.ravel(), np.array(values, np.float32))


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (dtypes.INT32, [1, -2], [1, -2]),
        (dtypes.UINT8, [255, 256, -1], [255, 0, 255]),
        (dtypes.INT64, [2**63 - 1, -(2**63)], [2**63 - 1, -(2**63)]),
        (dtypes.UINT64, [2**64 - 1, 0], [2**64 - 1, 0]),
        (dtypes.UINT64, [2**64 - 1], [2**64 - 1]),
        (dtypes.DOUBLE, [0.1, 2**64 - 1], [0.1, float(2**64 - 1)]),
        (dtypes.BOOL, [True, False], [True, False]),
        (dtypes.STRING, ["é", "\0"], ["é".encode(), b"\0"]),
        (dtypes.STRING, [{"b64": "/w=="}, {"b64": "/w"}], [b"\xff", b"\xff"]),
        (dtypes.STRING, ["true"], [b"true"]),
    ],
)
def test_each_type_takes_its_values(dtype, value, expected):
    assert read({"instances": value}, typed(dtype)).values["x"].tolist() == expected
    assert read({"inputs": value}, typed(dtype)).values["x"].tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "value", "complaint"),
    [
        (dtypes.FLOAT, "a", '"a" Type: String is not of expected type: float'),
        (dtypes.FLOAT, True, "true Type: True is not of expected type: float"),
        (dtypes.FLOAT, None, "null Type: Null is not of expected type: float"),
        (dtypes.FLOAT, {"b64": "AA=="}, "Type: Object is not of expected type: float"),
        (dtypes.DOUBLE, False, "false Type: False is not of expected type: double"),
        (dtypes.INT32, 1.0, "1.0 Type: Number is not of expected type: int32"),
        (dtypes.INT32, 2**31, "2147483648 Type: Number is not of expected type: int32"),
        (dtypes.INT8, 2**31, "Type: Number is not of expected type: int8"),
        (dtypes.INT64, 2**63, "Type: Number is not of expected type: int64"),
        (dtypes.UINT64, -1, "-1 Type: Number is not of expected type: uint64"),
        (dtypes.UINT32, 2**32, "Type: Number is not of expected type: uint32"),
        (dtypes.BOOL, 1, "1 Type: Number is not of expected type: bool"),
        (dtypes.STRING, 1, "1 Type: Number is not of expected type: string"),
        (dtypes.STRING, {"b64": "!"}, "Unable to base64 decode"),
        (dtypes.STRING, {"b64": "/w="}, "Unable to base64 decode"),
        (dtypes.STRING, {"b64": "/w==="}, "Unable to base64 decode"),
        (dtypes.STRING, {"b64": "/w==", "more": 1}, "not formatted correctly for base64 data"),
        (dtypes.HALF, {"b64": "/w=="}, "Type: Object is not of expected type: half"),
        (dtypes.INT64, 1e20, "JSON Value: 1e+20 Type: Number is not of expected type: int64"),
        (dtypes.STRING, {"b64": 1}, "not formatted correctly for base64 data"),
    ],
)
def test_each_type_refuses_other_values(dtype, value, complaint):
    message = refused({"inputs": {"x": [value]}}, typed(dtype))
    assert message.startswith("INVALID_ARGUMENT: ")
    assert complaint in message


@pytest.mark.parametrize("dtype", [dtypes.HALF, dtypes.UINT16, dtypes.BFLOAT16, dtypes.COMPLEX64])
def test_types_without_json_are_unimplemented_in_columns_and_invalid_in_rows(dtype):
    name = dtypes.name_of(dtype)
    text = f"UNIMPLEMENTED: Conversion of JSON Value: 1 to type: {name}"
    assert refused({"inputs": [1]}, typed(dtype)) == text
    assert (
        refused({"instances": [1]}, typed(dtype))
        == f"INVALID_ARGUMENT: Failed to process element: 0 of 'instances' list. Error: {text}"
    )


@pytest.mark.parametrize(
    ("body", "inputs", "message"),
    [
        ({}, FLOAT_X, "Missing 'inputs' or 'instances' key"),
        ([1], FLOAT_X, "JSON Value: [1] Is not object"),
        (
            {"inputs": 1, "instances": [1]},
            FLOAT_X,
            (
                'JSON Value: {\n    "inputs": 1,\n    "instances": [1]\n} Not formatted correctly expecting only '
                "one of 'inputs' or 'instances' keys to exist "
            ),
        ),
        (
            {"instances": 1},
            FLOAT_X,
            "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array",
        ),
        (
            {"instances": []},
            FLOAT_X,
            "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array",
        ),
        (
            {"instances": [1]},
            TWO,
            (
                "instances is a plain list, but expecting list of objects as multiple input tensors "
                "required as per tensorinfo_map"
            ),
        ),
        (
            {"inputs": [1]},
            TWO,
            (
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            ),
        ),
        (
            {"instances": [{"a": 1}]},
            TWO,
            (
                "Failed to process element: 0 of 'instances' list. "
                'JSON object: {\n    "a": 1\n} keys must be equal to: a,b'
            ),
        ),
        (
            {"instances": [{"a": 1, "b": 1}, {"k": 1}]},
            TWO,
            (
                "Failed to process element: 1 key: k of 'instances' list. Error: INVALID_ARGUMENT: "
                "JSON object: does not have named input: k"
            ),
        ),
        ({"instances": [{"x": 1}, 2]}, FLOAT_X, "Expecting object but got list at item 1 of input list"),
        (
            {"instances": [1, {"x": 1}]},
            FLOAT_X,
            "Expecting value/list but got object at item 1 of input list",
        ),
        (
            {"instances": [[1, 2], [1, 2, 3]]},
            FLOAT_X,
            (
                "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
                "Expecting tensor size: 2 but got: 3"
            ),
        ),
        (
            {"instances": [[1, 2], [[1, 2]]]},
            FLOAT_X,
            (
                "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
                "Expecting shape [2] but got: [1,2]"
            ),
        ),
        (
            {"instances": [{"a": 1, "b": 1}, {"a": 1, "b": "c"}]},
            TWO,
            (
                "Failed to process element: 1 key: b of 'instances' list. Error: INVALID_ARGUMENT: "
                'JSON Value: "c" Type: String is not of expected type: int32'
            ),
        ),
        ({"inputs": {"a": 1}}, TWO, "Missing named input: b in 'inputs' object."),
        (
            {"inputs": [[1, 2], [3]]},
            FLOAT_X,
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        ({"inputs": [1, [2]]}, FLOAT_X, "Encountered list at unexpected level: 1 expected < 1"),
        (
            {"inputs": [[1], 3]},
            FLOAT_X,
            "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
    ],
)
def test_badly_formed_requests_are_refused_in_tf_servings_words(body, inputs, message):
    assert refused(json.dumps(body), inputs) == f"INVALID_ARGUMENT: {message}"


def test_boolean_among_numbers_is_refused_though_numpy_would_take_it():
    assert "true Type: True is not of expected type: float" in refused({"instances": [[1.5, True]]})


def written(form=Form.COLUMNS, **outputs) -> str:
    arrays = {alias: np.asarray(value) for alias, value in outputs.items()}
    types = {alias: dtypes.number_of(array.dtype) for alias, array in arrays.items()}
    return json_answer.answer(form, arrays, types).decode()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (np.float32(9000000), "9e+06"),
        (np.float32(999999), "999999.0"),
        (np.float32(0.00003), "3e-05"),
        (np.float32(555557.5), "555557.5"),
        (np.float32(1 / 3), "0.333333343"),
        (np.float32(2.5), "2.5"),
        (np.float32(-0.0), "-0.0"),
        (np.float32(3.4028235e38), "3.40282347e+38"),
        (np.float64(1 / 3), "0.33333333333333331"),
        (np.float64(0.1), "0.1"),
        (np.float64(1e300), "1e+300"),
        (np.float32("nan"), "NaN"),
        (np.float32("inf"), "Infinity"),
        (np.float64("-inf"), "-Infinity"),
        (np.int64(-(2**63)), "-9223372036854775808"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (np.bool_(True), "true"),
    ],
)
def test_numbers_are_written_by_tf_servings_rule(number, text):
    assert written(y=number) == f'{{"outputs": {text}}}'


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_written_floats_read_back_as_they_were(dtype):
    draw = np.random.default_rng(7)
    floats = (draw.standard_normal(2000) * 10.0 ** draw.integers(-30, 30, 2000)).astype(dtype)
    again = np.array(json.loads(written(y=floats))["outputs"], np.float64).astype(dtype)
    np.testing.assert_array_equal(again, floats)


def test_rows_answer_bare_values_for_one_output_and_objects_for_several():
    assert written(Form.ROWS, y=[[1, 2], [3, 4]]) == '{"predictions": [[1, 2], [3, 4]]}'
    assert (
        written(Form.ROWS, b=[1, 2], a=[[1.5], [2.0]])
        == '{"predictions": [{"b": 1, "a": [1.5]}, {"b": 2, "a": [2.0]}]}'
    )
    assert written(Form.ROWS, y=np.zeros((0, 3), np.float32)) == '{"predictions": []}'
    assert written(Form.ROWS, y=np.zeros((2, 0), np.float32)) == '{"predictions": [[], []]}'


def test_columns_answer_bare_values_for_one_output_and_an_object_for_several():
    assert written(y=[[1, 2]]) == '{"outputs": [[1, 2]]}'
    assert written(b=1, a=[2]) == '{"outputs": {"b": 1, "a": [2]}}'


def test_strings_are_written_as_they_are_and_as_base64_where_the_name_ends_in_bytes():
    strings = np.array([b'a"\\\n\x01', "é".encode(), b"\xff"], object)
    body = json_answer.answer(Form.COLUMNS, {"s": strings}, {"s": dtypes.STRING})
    assert body == b'{"outputs": ["a\\"\\\\\\n\\u0001", "\xc3\xa9", "\xff"]}'
    body = json_answer.answer(Form.ROWS, {"s_bytes": strings}, {"s_bytes": dtypes.STRING})
    assert [base64.b64decode(row["b64"]) for row in json.loads(body)["predictions"]] == list(strings)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"y": np.float32(1)}, "Tensor name: y has no shape information "),
        ({"a": [1, 2], "b": [1]}, "Tensor name: b has inconsistent batch size: 1 expecting: 2"),
        ({"y": np.array([1j], np.complex64)}, "Failed to write JSON value for tensor type: complex64"),
    ],
)
def test_outputs_that_are_no_rows_are_refused(outputs, message):
    with pytest.raises(ServingError) as caught:
        written(Form.ROWS, **outputs)
    assert str(caught.value) == f"INVALID_ARGUMENT: {message}"
