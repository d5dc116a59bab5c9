"""Classify and regress without TensorFlow: examples from JSON, what a signature must be, answers, in that order."""

import json
import math

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from serve import dtypes, examples, inference, json_examples, json_parse, json_results, predict
from serve.config import ModelConfig
from serve.inference import Classes
from serve.model import Signature, TensorSpec
from serve.models import LoadPolicy, Models
from serve.rest import Request, handle
from serve.status import Code, ServingError

ONE = {"inputs": TensorSpec("tf_example:0", dtypes.STRING)}


def _example_class():
    """tensorflow.Example as its .proto file has it, read by protobuf itself."""
    file = descriptor_pb2.FileDescriptorProto(
        name="example_of_tests.proto", package="of_tests", syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name, *fields):
        made = file.message_type.add(name=name)
        for number, (field, kind, repeated, of) in enumerate(fields, 1):
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            made.field.add(
                name=field, number=number, type=kind, label=label, type_name=of and f".of_tests.{of}"
            )
        return made

    message("Bytes", ("value", kinds.TYPE_BYTES, True, None))
    message("Floats", ("value", kinds.TYPE_FLOAT, True, None))
    message("Integers", ("value", kinds.TYPE_INT64, True, None))
    feature = message(
        "Feature", *((of.lower(), kinds.TYPE_MESSAGE, False, of) for of in ("Bytes", "Floats", "Integers"))
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message("Features", ("feature", kinds.TYPE_MESSAGE, True, "Features.Entry"))
    entry = features.nested_type.add(name="Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(
        name="value",
        number=2,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_OPTIONAL,
        type_name=".of_tests.Feature",
    )
    message("Example", ("features", kinds.TYPE_MESSAGE, False, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("of_tests.Example"))  # fmt: skip


EXAMPLE = _example_class()


def decoded(serialized: bytes) -> dict:
    """The features of an example: the kind, and the values."""
    found = {}
    for name, feature in EXAMPLE.FromString(serialized).features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, list(getattr(feature, kind).value)) if kind else None
    return found


def read(body: str | dict) -> list[dict]:
    text = body if isinstance(body, str) else json.dumps(body)
    return [decoded(each) for each in json_examples.read(json_parse.parse(text.encode()).value)]


def refusal(step, *arguments) -> str:
    with pytest.raises(ServingError) as caught:
        step(*arguments)
    return str(caught.value)


def test_examples_without_context_take_the_kind_of_their_values():
    body = {
        "examples": [
            {"names": ["foo", "bar"], "ratings": [8.0, 9.0], "age": 20},
            {"names": ["baz"], "ratings": 6.0},
        ]
    }
    assert read(body) == [
        {"names": ("bytes", [b"foo", b"bar"]), "ratings": ("floats", [8, 9]), "age": ("integers", [20])},
        {"names": ("bytes", [b"baz"]), "ratings": ("floats", [6])},
    ]


def test_context_is_part_of_every_example_and_kinds_may_mix_where_they_agree():
    first, second, third = read("""{
        "signature_name": "custom",
        "context": {"query": "pizza", "location": ["sfo"]},
        "examples": [
          {"names": ["foo", "bar"], "ratings": [8.0, 9.0, NaN, Infinity], "age": 20},
          {"names": ["baz", {"b64": "aGVsbG8="}], "ratings": 6.0, "intboolmix": [1, true, false]},
          {"names": {"b64": "/w=="}, "ratings": -Infinity, "none": [], "query": "own"}
        ]}""")
    context = {"query": ("bytes", [b"pizza"]), "location": ("bytes", [b"sfo"])}
    assert first.items() >= context.items()
    assert second.items() >= context.items()
    kind, ratings = first["ratings"]
    assert (kind, ratings[:2], math.isnan(ratings[2]), ratings[3]) == ("floats", [8, 9], True, math.inf)
    assert second["names"] == ("bytes", [b"baz", b"hello"])
    assert second["intboolmix"] == ("integers", [1, 1, 0])
    assert third["names"] == ("bytes", [b"\xff"])
    assert third["ratings"] == ("floats", [-math.inf])
    assert third["none"] is None
    assert third["query"] == ("bytes", [b"own"])


@pytest.mark.parametrize("numbers", [[0], [127, 128, 300], [2**63 - 1, -(2**63), -1], list(range(-200, 200))])
def test_integers_are_written_as_protobuf_reads_them(numbers):
    assert read({"examples": [{"n": numbers}]}) == [{"n": ("integers", numbers)}]


def test_floats_beyond_32_bits_become_infinite_and_long_names_and_values_survive():
    assert read('{"examples": [{"x": [1e300, -1e300, 0.5, 1e-60]}]}') == [
        {"x": ("floats", [math.inf, -math.inf, 0.5, 0.0])}
    ]
    name, value = "é" * 200, "\0" * 20_000
    assert read({"examples": [{name: value}]}) == [{name: ("bytes", [value.encode()])}]
    assert decoded(examples.example({}, examples.Names())) == {}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"context": [{"names": ["foo"]}]}, "Example must be JSON object but got JSON Array"),
        (
            {"signature_name": "s"},
            (
                'JSON Value: {\n    "signature_name": "s"\n} When method is classify, key \'examples\' is expected '
                "and was not found"
            ),
        ),
        (
            {"examples": {"names": ["foo"]}},
            (
                'JSON Value: {\n    "examples": {\n        "names": ["foo"]\n    }\n} '
                "Expecting 'examples' value to be an list/array"
            ),
        ),
        ({"examples": []}, "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array"),
        ({"examples": [[{"names": ["foo"]}]]}, "Example must be JSON object but got JSON Array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"names": [10, None]}]}, "Feature: names has element with unexpected JSON type: Null"),
        ({"examples": [{"names": None}]}, "Feature: names has element with unexpected JSON type: Null"),
        (
            {"examples": [{"names": [10, {"t": 1}]}]},
            "Feature: names has element with unexpected JSON type: Object",
        ),
        (
            {"examples": [{"names": [[10], 20]}]},
            "Feature: names has element with unexpected JSON type: Array",
        ),
        (
            {"examples": [{"names": [10, 10.0]}]},
            "Unexpected element type in feature: names expecting type: int64",
        ),
        (
            {"examples": [{"names": [1.5, True]}]},
            "Unexpected element type in feature: names expecting type: float",
        ),
        (
            {"examples": [{"names": ["a", 1]}]},
            "Unexpected element type in feature: names expecting type: bytes",
        ),
        (
            {"examples": [{"names": [1, {"b64": "AA=="}]}]},
            "Unexpected element type in feature: names expecting type: int64",
        ),
        (
            {"examples": [{"names": [20, 2**64 - 13]}]},
            "Feature: names has uint64_t element. Only int64_t is supported.",
        ),
        ({"examples": [{"names": {"b64": "!"}}]}, "Unable to base64 decode"),
    ],
)
def test_bad_examples_are_refused_in_tf_servings_words(body, message):
    assert refusal(read, body) == f"INVALID_ARGUMENT: {message}"


SCORES = {"scores": TensorSpec("scores:0", dtypes.FLOAT)}
BOTH = {"classes": TensorSpec("classes:0", dtypes.STRING), **SCORES}
NUMBER = {"outputs": TensorSpec("y:0", dtypes.FLOAT)}


@pytest.mark.parametrize(
    ("task", "signature", "message"),
    [
        (inference.classify, Signature({}, SCORES), "Expected one input Tensor."),
        (inference.classify, Signature({**ONE, "b": ONE["inputs"]}, SCORES), "Expected one input Tensor."),
        (inference.classify, Signature(ONE, {}), "Expected one or two output Tensors, found 0"),
        (
            inference.classify,
            Signature(ONE, {**BOTH, **NUMBER}),
            "Expected one or two output Tensors, found 3",
        ),
        (
            inference.classify,
            Signature({"x": ONE["inputs"]}, SCORES, proto="DEF"),
            "No classification inputs found in SignatureDef: DEF",
        ),
        (
            inference.classify,
            Signature(ONE, NUMBER, proto="DEF"),
            (
                'Expected classification signature outputs to contain at least one of "classes" or "scores". '
                "Signature was: DEF"
            ),
        ),
        (
            inference.classify,
            Signature(ONE, SCORES, method_name="tensorflow/serving/regress"),
            (
                "Expected classification signature method_name to be tensorflow/serving/classify. "
                "Was: tensorflow/serving/regress"
            ),
        ),
        (inference.regress, Signature({}, NUMBER), "Expected one input Tensor."),
        (inference.regress, Signature(ONE, BOTH), "Expected one output Tensor."),
        (
            inference.regress,
            Signature({"x": ONE["inputs"]}, NUMBER, proto="DEF"),
            "No regression inputs found in SignatureDef: DEF",
        ),
        (
            inference.regress,
            Signature(ONE, SCORES, proto="DEF"),
            "No regression outputs found in SignatureDef: DEF",
        ),
        (
            inference.regress,
            Signature(ONE, NUMBER, method_name=""),
            "Expected regression signature method_name to be tensorflow/serving/regress. Was: ",
        ),
    ],
)
def test_signatures_that_are_none_for_the_call_are_refused(task, signature, message):
    assert refusal(task, signature) == f"INVALID_ARGUMENT: {message}"


def test_method_name_does_not_matter_unless_it_is_checked():
    assert inference.classify(Signature(ONE, SCORES)).outputs == {"scores": "scores:0"}
    regress = "tensorflow/serving/regress"
    assert inference.regress(Signature(ONE, NUMBER, method_name=regress)).input == "tf_example:0"
    predict.check_method(Signature(ONE, NUMBER, method_name=regress))
    predict.check_method(Signature(ONE, NUMBER))
    assert refusal(predict.check_method, Signature(ONE, NUMBER, method_name="other")) == (
        "INTERNAL: Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: other"
    )


LABELS = np.array([[b"a", b"b"]], object)
FLOATS = np.float32([[0.5, 1.5]])


@pytest.mark.parametrize(
    ("outputs", "found", "message"),
    [
        (SCORES, [FLOATS[0]], "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        (SCORES, [np.float32(1)], "Expected Tensor shape: [batch_size num_classes] but got []"),
        (SCORES, [FLOATS.astype(np.float64)], "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        (SCORES, [np.float32([[1], [2]])], "Expected scores output batch size of 1. Got: 2"),
        (BOTH, [FLOATS, FLOATS], "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        (BOTH, [LABELS[:0], FLOATS], "Expected classes output batch size of 1. Got: 0"),
        (
            BOTH,
            [LABELS, FLOATS[:, :1]],
            "Tensors class and score should match in dim_size(1). Got 2 vs. 1",
        ),
    ],
)
def test_classes_that_a_model_must_not_answer_are_refused(outputs, found, message):
    work = inference.work([inference.classify(Signature(ONE, outputs))], [b""], list)
    by_name = dict(zip((spec.name for spec in outputs.values()), found, strict=True))
    assert refusal(work.finish, [by_name[name] for name in work.fetches]) == f"INVALID_ARGUMENT: {message}"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            np.float32([[1, 2]]),
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]",
        ),
        (
            np.float32(1),
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []",
        ),
        (np.float32([1, 2]), "Input batch size did not match output batch size: 1 vs. 2"),
        (np.float64([[1]]), "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
    ],
)
def test_regressions_that_a_model_must_not_answer_are_refused(found, message):
    work = inference.work([inference.regress(Signature(ONE, NUMBER))], [b""], list)
    assert refusal(work.finish, [found]) == f"INVALID_ARGUMENT: {message}"


def test_several_tasks_are_one_run_and_each_input_gets_the_examples():
    second = {"inputs": TensorSpec("other:0", dtypes.STRING)}
    tasks = [
        inference.regress(Signature(ONE, NUMBER)),
        inference.classify(Signature(ONE, BOTH)),
        inference.regress(Signature(second, NUMBER)),
    ]
    work = inference.work(tasks, [b"1", b"2\0"], list)
    assert {name: tensor.tolist() for name, tensor in work.feeds.items()} == {
        "tf_example:0": [b"1", b"2\0"],
        "other:0": [b"1", b"2\0"],
    }
    assert work.fetches == ["classes:0", "scores:0", "y:0"]
    labels, scores = np.array([[b"a"], [b"b"]], object), np.float32([[1], [2]])
    first, classes, again = work.finish([labels, scores, np.float32([[3], [4]])])
    assert (first.tolist(), again.tolist()) == ([3, 4], [3, 4])
    assert (classes.labels.tolist(), classes.scores.tolist()) == (labels.tolist(), scores.tolist())


def test_no_example_is_refused():
    task = inference.regress(Signature(ONE, NUMBER))
    assert refusal(inference.work, [task], [], list) == "INVALID_ARGUMENT: Input is empty."


def test_classes_are_written_as_pairs_of_label_and_score():
    labels = np.array([[b"car", b'b"\xff'], [b"bus", b""]], object)
    scores = np.float32([[0.2, 0.7], [1, np.nan]])
    assert json_results.classes(Classes(labels, scores)) == (
        b'{"results": [[["car", 0.2], ["b\\"\xff", 0.7]], [["bus", 1.0], ["", NaN]]]}'
    )
    assert json_results.classes(Classes(None, scores[:1])) == b'{"results": [[["", 0.2], ["", 0.7]]]}'
    assert json_results.classes(Classes(labels[:1, :1], None)) == b'{"results": [[["car", 0.0]]]}'
    assert json_results.classes(Classes(labels[:, :0], None)) == b'{"results": [[], []]}'


def test_regressions_are_written_as_numbers():
    values = np.float32([0.2, np.inf, 1, -np.inf, np.nan, 1 / 3])
    assert (
        json_results.regressions(values) == b'{"results": [0.2, Infinity, 1.0, -Infinity, NaN, 0.333333343]}'
    )


class Sums:
    """A model whose outputs are the lengths of its serialized examples."""

    signature_defs = None

    def __init__(self):
        self.signatures = {
            "serving_default": Signature(ONE, NUMBER),
            "scored": Signature(ONE, SCORES),
            "plain": Signature({"x": TensorSpec("x:0", dtypes.FLOAT)}, NUMBER, proto="DEF"),
        }

    def run(self, feeds, fetches):
        (tensor,) = feeds.values()
        return [np.float32([[len(example)] for example in tensor]) for _ in fetches]

    def close(self):
        pass


@pytest.fixture
def served(tmp_path):
    (tmp_path / "1").mkdir()
    models = Models([ModelConfig("m", tmp_path)], lambda path: Sums(), LoadPolicy())
    models.start(poll_s=1)
    yield models
    models.stop()


def ask(models, verb, body, name="m"):
    answer = handle(Request("POST", f"/v1/models/{name}:{verb}", {}, json.dumps(body).encode()), models)
    return answer.status, json.loads(answer.body)


def test_rest_answers_classify_and_regress(served):
    assert ask(served, "regress", {"examples": [{}, {"x": 1.0}]}) == (200, {"results": [2.0, 17.0]})
    assert ask(served, "classify", {"signature_name": "scored", "examples": [{}]}) == (
        200,
        {"results": [[["", 2.0]]]},
    )


@pytest.mark.parametrize(
    ("verb", "name", "body", "status", "part"),
    [
        ("classify", "none", {"examples": []}, 400, "'examples' value is an empty array"),
        ("regress", "none", {"signature_name": 1}, 400, "'signature_name' key must be a string value."),
        ("regress", "none", {"examples": [{}]}, 404, "Servable not found for request: Latest(none)"),
        ("regress", "m", {"signature_name": "s", "examples": [{}]}, 400, "No signature was found with the name: s"),
        ("classify", "m", {"signature_name": "s", "examples": [{}]}, 400, "No signature was found with the name: s"),
        ("classify", "m", {"examples": [{}]}, 400, "Expected classification signature outputs to contain"),
        ("regress", "m", {"signature_name": "plain", "examples": [{}]}, 400, "No regression inputs found"),
        ("regress", "m", [1], 400, "JSON Value: [1] Is not object"),
    ],
)  # fmt: skip
def test_rest_looks_at_the_body_then_at_the_model_then_at_the_signature(
    served, verb, name, body, status, part
):
    got, answer = ask(served, verb, body, name)
    assert got == status
    assert part in answer["error"]


X, Y = TensorSpec("x:0", dtypes.FLOAT), TensorSpec("y:0", dtypes.FLOAT)
TWO = Signature({"x": X, "y": Y}, {"z": Y})
DEFAULTED = Signature({"x": X, "y": Y}, {"z": Y}, {"y": np.float32(2)})


@pytest.mark.parametrize(
    ("signature", "sent", "message"),
    [
        (
            Signature({"x": X}, {}),
            ["b", "a"],
            (
                "input size does not match signature: 2!=1 len({a,b}) != len({x}). Sent extra: {a,b}. "
                "Missing but required: {x}."
            ),
        ),
        (
            TWO,
            ["x"],
            (
                "input size does not match signature: 1!=2 len({x}) != len({x,y}). Sent extra: {}. "
                "Missing but required: {y}."
            ),
        ),
        (
            TWO,
            ["x", "z"],
            (
                "Signature input alias: y(feed name: y:0) not found in request and no default value provided. "
                "Inputs expected to be in the request {x,z}, or default input alias set: "
            ),
        ),
        (
            DEFAULTED,
            ["x", "z"],
            "Inputs contains invalid name. Used request inputs: x, request input: x,z",
        ),
    ],
)
def test_inputs_that_are_not_the_signatures_are_refused(signature, sent, message):
    assert refusal(predict.check_inputs, signature, sent) == f"INVALID_ARGUMENT: {message}"


def test_input_with_a_default_may_lack():
    predict.check_inputs(DEFAULTED, ["x"])
    work = predict.work(DEFAULTED, {"x": np.float32(1)}, dict)
    assert {name: float(tensor) for name, tensor in work.feeds.items()} == {"x:0": 1, "y:0": 2}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["a"], "output tensor alias not found in signature: a Outputs expected to be in the set {z}."),
        (["z", "z"], "duplicate output tensor alias: z"),
    ],
)
def test_outputs_that_are_not_the_signatures_are_refused(wanted, message):
    given = {"x": np.float32(1), "y": np.float32(1)}
    assert refusal(predict.work, TWO, given, dict, wanted) == f"INVALID_ARGUMENT: {message}"


def test_string_scalar_keeps_its_zero_bytes():
    tensor = dtypes.as_tensor(b"a\0")
    assert (tensor.shape, tensor.tolist(), dtypes.of(tensor)) == ((), b"a\0", dtypes.STRING)
    assert dtypes.as_tensor(np.float32(2)).shape == ()


def test_codes_of_errors_are_what_clients_are_told():
    assert inference.signature(Sums(), "scored").outputs == SCORES
    with pytest.raises(ServingError) as caught:
        inference.signature(Sums(), "none")
    assert caught.value.code is Code.INVALID_ARGUMENT
