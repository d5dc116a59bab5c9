"""Every inference call on models shaped like those of TF Serving's own tests, and how they are loaded."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from serve.status import Code, ServingError
from tests import support_inference, support_serve
from tests.support_inference import VERSION
from tests.support_serve import call, request, running

SERVED = ("half_plus_two", "half_plus_three", "counter", "on_gpu", "classes", "strings", "tf2")
AS_TFLITE = ("tflite", "tflite_signed", "tflite_and_saved", "tflite_strings", "tflite_parse", "tflite_half")
METHODS = [f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress")]
PREDICT, CLASSIFY, REGRESS = METHODS


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """The folders of models."""
    return support_inference.models(tmp_path_factory.getbasetemp())


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.fixture(scope="module")
def ports(models):
    """The ports of a server of all models; those that are TFLite models, too, are served so."""
    path = support_serve.config(models, *((name, "") for name in (*SERVED, *AS_TFLITE)))
    found = SimpleNamespace(grpc=free_port(), rest=free_port())
    with running(f"--model_config_file={path}", "--prefer_tflite_model", grpc=found.grpc, rest=found.rest):
        yield found


@pytest.fixture(scope="module")
def stub(ports):
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def rest(ports):
    """Calls a model over REST."""

    def ask(path, body):
        answer = call("POST", f"/v1/models/{path}", json.dumps(body), ports.rest)
        return answer.status, answer.json

    return ask


def refused(method, message) -> tuple[str, str]:
    import grpc

    with pytest.raises(grpc.RpcError) as caught:
        method(message, timeout=20)
    return caught.value.code().name, caught.value.details()


def on_examples(kind, model, signature="", count=1, **features):
    """A ClassificationRequest or RegressionRequest of examples that are all the same."""
    from tensorflow_serving.apis import classification_pb2, regression_pb2

    kinds = {CLASSIFY: classification_pb2.ClassificationRequest, REGRESS: regression_pb2.RegressionRequest}
    made = kinds[kind]()
    if model is not None:
        made.model_spec.name, made.model_spec.signature_name = model, signature
    for _ in range(count):
        fill(made.input.example_list.examples.add(), **features)
    return made


def fill(example, **features):
    for name, value in features.items():
        example.features.feature[name].float_list.value.append(value)


def multi(*tasks, **features):
    """A MultiInferenceRequest of (model, signature, method) tasks on one example."""
    from tensorflow_serving.apis import inference_pb2

    made = inference_pb2.MultiInferenceRequest()
    for model, signature, method in tasks:
        task = made.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = model, signature
    if features:
        fill(made.input.example_list.examples.add(), **features)
    return made


def who(spec) -> tuple[str, str, int]:
    return spec.name, spec.signature_name, spec.version.value


# --- classify, regress ---


def test_grpc_classify_gives_scores_without_labels(stub):
    answer = stub.Classify(on_examples(CLASSIFY, "half_plus_two", "classify_x_to_y", x=2.0))
    (found,) = answer.result.classifications
    assert [(each.label, each.score) for each in found.classes] == [("", 3.0)]
    assert who(answer.model_spec) == ("half_plus_two", "classify_x_to_y", 123)


def test_grpc_classify_gives_labels_and_scores_of_each_example(stub):
    answer = stub.Classify(on_examples(CLASSIFY, "classes", count=2, x=2.0))
    for found in answer.result.classifications:
        assert [(each.label, each.score) for each in found.classes] == [
            ("car", 2),
            ('bï"ke', 4),
            ("bus", 0.5),
        ]
    assert len(answer.result.classifications) == 2
    assert who(answer.model_spec) == ("classes", "serving_default", 123)
    only = stub.Classify(on_examples(CLASSIFY, "classes", "only_classes", x=2.0))
    assert [each.score for each in only.result.classifications[0].classes] == [0, 0, 0]


def test_grpc_regress_gives_a_number_for_each_example(stub):
    answer = stub.Regress(on_examples(REGRESS, "half_plus_two", "regress_x_to_y", count=3, x=2.0))
    assert [each.value for each in answer.result.regressions] == [3, 3, 3]
    assert who(answer.model_spec) == ("half_plus_two", "regress_x_to_y", 123)
    vector = stub.Regress(on_examples(REGRESS, "classes", "values", x=7.0))
    assert [each.value for each in vector.result.regressions] == [7]


def test_grpc_context_is_in_every_example_and_gives_way_to_its_own_features(stub):
    asked = on_examples(REGRESS, "half_plus_two", "regress_x_to_y")
    listed = asked.input.example_list_with_context
    fill(listed.context, x=2.0)
    fill(listed.examples.add())
    fill(listed.examples.add(), x=4.0)
    assert [each.value for each in stub.Regress(asked).result.regressions] == [3, 4]


@pytest.mark.parametrize(
    ("kind", "model", "signature", "code", "part"),
    [
        (CLASSIFY, None, "", "INVALID_ARGUMENT", "Missing ModelSpec"),
        (CLASSIFY, "", "", "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (REGRESS, "none", "", "NOT_FOUND", "Servable not found for request: Latest(none)"),
        (CLASSIFY, "classes", "s", "INVALID_ARGUMENT", "No signature was found with the name: s"),
        (REGRESS, "classes", "s", "INVALID_ARGUMENT", "No signature was found with the name: s"),
        (CLASSIFY, "classes", "wrong_input", "INVALID_ARGUMENT", "No classification inputs found in SignatureDef: "),
        (CLASSIFY, "classes", "two_inputs", "INVALID_ARGUMENT", "Expected one input Tensor."),
        (CLASSIFY, "classes", "wrong_outputs", "INVALID_ARGUMENT", 'at least one of "classes" or "scores"'),
        (CLASSIFY, "classes", "three_outputs", "INVALID_ARGUMENT", "Expected one or two output Tensors, found 3"),
        (CLASSIFY, "classes", "flat", "INVALID_ARGUMENT", "[batch_size num_classes] but got [2]"),
        (CLASSIFY, "classes", "doubles", "INVALID_ARGUMENT", "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        (CLASSIFY, "classes", "short", "INVALID_ARGUMENT", "Expected scores output batch size of 2. Got: 1"),
        (CLASSIFY, "classes", "uneven", "INVALID_ARGUMENT", "should match in dim_size(1). Got 3 vs. 1"),
        (REGRESS, "classes", "", "INVALID_ARGUMENT", "Expected one output Tensor."),
        (REGRESS, "classes", "wide", "INVALID_ARGUMENT", "[batch_size] or [batch_size, 1] but got [2,3]"),
        (REGRESS, "classes", "wide_doubles", "INVALID_ARGUMENT", "of DT_FLOAT.  Got: DT_DOUBLE"),
        (REGRESS, "classes", "named", "INVALID_ARGUMENT", "No regression outputs found in SignatureDef: "),
    ],
)  # fmt: skip
def test_grpc_refuses_what_is_no_classify_or_regress(stub, kind, model, signature, code, part):
    method = stub.Classify if kind == CLASSIFY else stub.Regress
    got, details = refused(method, on_examples(kind, model, signature, count=2, x=1.0))
    assert got == code
    assert part in details


def test_request_without_examples_is_refused(stub):
    empty = ("INVALID_ARGUMENT", "Input is empty.")
    assert refused(stub.Classify, on_examples(CLASSIFY, "classes", count=0)) == empty
    assert refused(stub.MultiInference, multi(("half_plus_two", "regress_x_to_y", REGRESS))) == empty
    asked = on_examples(REGRESS, "half_plus_two", "regress_x_to_y", count=0)
    fill(asked.input.example_list_with_context.context, x=2.0)
    assert refused(stub.Regress, asked) == empty


def test_model_that_fails_on_its_examples_says_so(stub, rest):
    code, details = refused(stub.Regress, on_examples(REGRESS, "classes", "raises", x=0.0))
    assert (code, "x must not be 0" in details) == ("INVALID_ARGUMENT", True)
    status, answer = rest(
        "half_plus_two:regress", {"signature_name": "regress_x_to_y", "examples": [{"x": 80}]}
    )
    assert status == 400
    assert "Data type: int64 but expected type: float" in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "results"),
    [
        ("half_plus_two:classify", {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]}, [[["", 3.0]]]),
        ("half_plus_two/versions/123:regress", {"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}]}, [42]),
        ("half_plus_two:regress", {"signature_name": "no_method", "examples": [{"x": 80.0}]}, [42]),
        ("half_plus_two:regress",
         {"signature_name": "regress_both_to_y3", "context": {"x2": 1.0, "x": 1.0}, "examples": [{}, {"x2": 2.0}]},
         [4, 5]),
        ("half_plus_three:regress", {"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}, {"x": 4.0}]}, [4, 5]),
        ("classes:classify", {"examples": [{"x": [2.0]}]}, [[["car", 2], ['bï"ke', 4], ["bus", 0.5]]]),
    ],
)  # fmt: skip
def test_rest_classify_and_regress_answer(rest, path, body, results):
    assert rest(path, body) == (200, {"results": results})


# --- multi-inference ---


def test_multi_inference_answers_each_task_in_one_run(stub):
    asked = multi(
        ("half_plus_two", "regress_x_to_y", REGRESS),
        ("half_plus_two", "classify_x_to_y", CLASSIFY),
        ("half_plus_two", "regress_x_to_y2", REGRESS),
        x=2.0,
    )
    first, second, third = stub.MultiInference(asked).results
    assert [each.value for each in first.regression_result.regressions] == [3]
    assert [each.score for each in second.classification_result.classifications[0].classes] == [3]
    assert [each.value for each in third.regression_result.regressions] == [4]
    assert [who(each.model_spec)[1:] for each in (first, second)] == [
        ("regress_x_to_y", 123),
        ("classify_x_to_y", 123),
    ]
    assert first.model_spec.name == "half_plus_two"


H2 = "half_plus_two"


@pytest.mark.parametrize(
    ("tasks", "code", "part"),
    [
        ([], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ([("", "a", REGRESS)], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ([("none", "a", REGRESS)], "NOT_FOUND", "Servable not found for request: Latest(none)"),
        ([(H2, "regress_x_to_y", REGRESS), ("", "classify_x_to_y", CLASSIFY)], "INVALID_ARGUMENT",
         "Found ModelSpec with an empty model name."),
        ([(H2, "regress_x_to_y", REGRESS), ("other", "regress_x_to_y", REGRESS)], "INVALID_ARGUMENT",
         "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
        ([(H2, "regress_x_to_y", REGRESS)] * 2, "INVALID_ARGUMENT",
         "Duplicate evaluation of signature: regress_x_to_y"),
        ([(H2, "none", REGRESS)], "INVALID_ARGUMENT", "Requested signature not found in model graph: none"),
        ([(H2, "serving_default", PREDICT)], "UNIMPLEMENTED",
         "Unsupported signature method_name: tensorflow/serving/predict"),
        ([(H2, "classify_x_to_y", REGRESS)], "INVALID_ARGUMENT", "No regression outputs found in SignatureDef: "),
    ],
)  # fmt: skip
def test_multi_inference_refuses_what_is_no_task(stub, tasks, code, part):
    got, details = refused(stub.MultiInference, multi(*tasks, x=2.0))
    assert got == code
    assert part in details


# --- predict, on each kind of export ---


def test_predict_takes_the_input_of_a_classify_signature_too(stub):
    from tensorflow import make_ndarray

    example = on_examples(CLASSIFY, "m", x=2.0).input.example_list.examples[0].SerializeToString()
    asked = request("half_plus_two", signature="classify_x_to_y", inputs=np.array([example], object))
    answer = stub.Predict(asked)
    assert make_ndarray(answer.outputs["scores"]).tolist() == [[3.0]]
    assert who(answer.model_spec) == ("half_plus_two", "classify_x_to_y", 123)


@pytest.mark.parametrize(
    ("model", "value", "expected"),
    [
        ("half_plus_two", [2.0], [3.0]),
        ("half_plus_two", 2.0, 3.0),
        ("half_plus_two", [[2.0], [4.0]], [[3.0], [4.0]]),
        ("half_plus_three", [2.0], [4.0]),
        ("on_gpu", [2.0], [3.0]),
        ("tf2", [[2.0]], [[3.0]]),
        ("tflite_signed", [[2.0], [4.0]], [[3.0], [4.0]]),
        ("tflite_signed", [2.0], [3.0]),
    ],
)
def test_predict_answers_for_exports_of_every_kind_and_any_shape(stub, rest, model, value, expected):
    from tensorflow import make_ndarray

    answer = stub.Predict(request(model, x=np.float32(value)))
    assert make_ndarray(answer.outputs["y"]).tolist() == expected
    assert who(answer.model_spec) == (model, "serving_default", 123)
    assert rest(f"{model}:predict", {"inputs": value}) == (200, {"outputs": expected})


def test_counter_in_a_tf1_variable_counts(stub):
    counts = [
        stub.Predict(request("counter", signature=name, **inputs)).outputs["output"].float_val[0]
        for name, inputs in (
            ("reset_counter", {}),
            ("incr_counter", {}),
            ("incr_counter_by", {"delta": np.float32(4)}),
            ("get_counter", {}),
        )
    ]
    assert counts == [0, 1, 5, 5]


def test_strings_keep_every_byte(stub, rest):
    for value in (b"a\0", np.array([b"\0\xff\0", b""], object)):
        answer = stub.Predict(request("strings", s=value))
        assert list(answer.outputs["echo"].string_val) == np.ravel(np.array(value, object)).tolist()
    assert rest("strings:predict", {"inputs": "a\0"}) == (200, {"outputs": "a\0"})


def test_extra_typed_values_are_left_out_and_strings_may_come_as_content(stub):
    asked = request("half_plus_two", x=np.float32([2]))
    asked.inputs["x"].ClearField("tensor_content")
    asked.inputs["x"].float_val[:] = [2, 7, 9]
    assert list(stub.Predict(asked).outputs["y"].float_val) == [3]
    asked = request("strings", s=np.array([b"", b""], object))
    asked.inputs["s"].ClearField("string_val")
    asked.inputs["s"].tensor_content = b"\x02\x81\x01" + b"ab" + b"c" * 129
    assert list(stub.Predict(asked).outputs["echo"].string_val) == [b"ab", b"c" * 129]
    for content in (b"\x02\x81", b"\x01\x01a", b"\x01\x01abc", b"\xff" * 9):
        asked.inputs["s"].tensor_content = content
        code, details = refused(stub.Predict, asked)
        assert (code, details.partition(": s: ")[0]) == ("INVALID_ARGUMENT", "tensor parsing error")


@pytest.mark.parametrize("shape", [[2**62, 0], [1] * 80, [2**40], [-1], [2**62, 2**62, 4]])
def test_shapes_that_no_tensor_has_are_refused(stub, shape):
    asked = request("half_plus_two", x=np.float32([2]))
    asked.inputs["x"].ClearField("tensor_shape")
    for size in shape:
        asked.inputs["x"].tensor_shape.dim.add(size=size)
    code, details = refused(stub.Predict, asked)
    assert (code, details.partition(": x: ")[0]) == ("INVALID_ARGUMENT", "tensor parsing error")


def test_initializer_of_a_tf2_export_is_listed_and_its_call_is_refused(ports, stub):
    told = call("GET", "/v1/models/tf2/metadata", port=ports.rest).json
    assert set(told["metadata"]["signature_def"]["signature_def"]) == {
        "serving_default",
        "__saved_model_init_op",
    }
    code, _ = refused(stub.Predict, request("tf2", signature="__saved_model_init_op"))
    assert code in ("INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE")


# --- metadata, services ---


def test_metadata_lists_every_signature_with_defaults_printed(ports):
    answer = call("GET", "/v1/models/half_plus_two/metadata", port=ports.rest)
    assert answer.json["model_spec"] == {"name": "half_plus_two", "signature_name": "", "version": "123"}
    signatures = answer.json["metadata"]["signature_def"]["signature_def"]
    assert len(signatures) == 7
    anything = {"dim": [], "unknown_rank": True}
    assert signatures["regress_x_to_y"] == {
        "inputs": {"inputs": {"dtype": "DT_STRING", "tensor_shape": anything, "name": "tf_example:0"}},
        "outputs": {"outputs": {"dtype": "DT_FLOAT", "tensor_shape": anything, "name": "y:0"}},
        "method_name": REGRESS,
        "defaults": {},
    }


def test_metadata_request_is_checked_before_its_model_is_looked_for(stub):
    from tensorflow_serving.apis import get_model_metadata_pb2

    asked = get_model_metadata_pb2.GetModelMetadataRequest()
    assert refused(stub.GetModelMetadata, asked) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    asked.model_spec.name = "none"
    assert refused(stub.GetModelMetadata, asked) == (
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    asked.metadata_field.append("signature_def")
    assert refused(stub.GetModelMetadata, asked)[0] == "NOT_FOUND"


def test_session_service_is_not_there(ports):
    import grpc
    from tensorflow_serving.apis import session_service_pb2

    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        run = channel.unary_unary(
            "/tensorflow.serving.SessionService/SessionRun",
            request_serializer=session_service_pb2.SessionRunRequest.SerializeToString,
        )
        assert refused(run, session_service_pb2.SessionRunRequest())[0] == "UNIMPLEMENTED"


# --- TFLite ---


def test_tflite_model_without_signatures_is_called_by_its_tensors(ports, stub):
    signatures = call("GET", "/v1/models/tflite/metadata", port=ports.rest).json["metadata"]["signature_def"]
    (signature,) = signatures["signature_def"].values()
    ((x, tensor),) = signature["inputs"].items()
    ((y, _),) = signature["outputs"].items()
    assert (x, ":" in tensor["name"]) == (tensor["name"].partition(":")[0], True)
    answer = stub.Predict(request("tflite", **{x: np.float32([[2.0], [6.0]])}))
    assert list(answer.outputs[y].float_val) == [3, 5]


def test_tflite_model_is_preferred_to_the_saved_model_beside_it(ports, rest):
    told = call("GET", "/v1/models/tflite_and_saved/metadata", port=ports.rest).json
    (signature,) = told["metadata"]["signature_def"]["signature_def"].values()
    assert "x" not in signature["inputs"]
    (alias,) = signature["inputs"]
    status, answer = rest("tflite_and_saved:predict", {"instances": [{alias: [2.0]}]})
    assert (status, answer) == (200, {"predictions": [[3.0]]})


def test_tflite_takes_strings_with_every_byte(stub):
    for value in ([b"a\0", b"\xff", b""], [b"b"]):
        answer = stub.Predict(request("tflite_strings", serving_default_x=np.array(value, object)))
        (found,) = answer.outputs.values()
        assert list(found.string_val) == [value[0]] * 2


def test_tflite_answers_many_clients_of_different_shapes_at_once(stub):
    def ask(number):
        rows = number % 3 + 1
        answer = stub.Predict(request("tflite_signed", x=np.full((rows, 1), number, np.float32)))
        return list(answer.outputs["y"].float_val) == [number / 2 + 2] * rows

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(150)))


def test_tflite_refuses_what_its_model_cannot_take(stub, rest):
    code, details = refused(stub.Predict, request("tflite_signed", x="text"))
    assert (code, "to be float but string is provided" in details) == ("INVALID_ARGUMENT", True)
    assert rest("tflite_signed:predict", {"signature_name": "again", "instances": [2.0]}) == (
        200,
        {"predictions": [3.0]},
    )


def examples(*features) -> np.ndarray:
    from tensorflow.core.example import example_pb2

    def serialized(x, y=None):
        made = example_pb2.Example()
        made.features.feature["x"].float_list.value.append(x)
        if y:
            made.features.feature["y"].bytes_list.value.append(y)
        return made.SerializeToString()

    return np.array([serialized(*each) for each in features], object)


def test_tflite_model_parses_examples(stub):
    for given in ([(2.0, b"a"), (3.0,)], [(7.0, b"\xff\0")]):
        (texts,) = stub.Predict(request("tflite_parse", serving_default_x=examples(*given))).outputs.values()
        assert list(texts.string_val) == [each[1] if len(each) == 2 else b"none" for each in given]
        (half,) = stub.Predict(request("tflite_half", serving_default_x=examples(*given))).outputs.values()
        assert list(half.float_val) == [each[0] / 2 + 2 for each in given]


def test_tflite_model_refuses_what_is_no_example_and_shows_its_own_inputs_alone(ports, stub):
    code, details = refused(
        stub.Predict, request("tflite_half", serving_default_x=np.array([b"\xff"], object))
    )
    assert (code, "Could not parse example" in details) == ("INVALID_ARGUMENT", True)
    told = call("GET", "/v1/models/tflite_half/metadata", port=ports.rest).json["metadata"]["signature_def"]
    (signature,) = told["signature_def"].values()
    assert list(signature["inputs"]) == ["serving_default_x"]


# --- loading, in this process ---


def loaded(models, name, *, tags=("serve",), tflite=False, check=False):
    from serve import loading
    from serve.session import SessionOptions

    return loading.load(models / name / VERSION, SessionOptions(tags, check_method_names=check), tflite)


@pytest.mark.parametrize(
    ("name", "options", "code", "part"),
    [
        ("session_bundle", {}, "UNIMPLEMENTED", "Session Bundle is deprecated and removed."),
        ("empty", {}, "NOT_FOUND", "Specified file path does not appear to contain a SavedModel bundle"),
        ("half_plus_two", {"tags": ("serve", "tpu")}, "NOT_FOUND",
         "Could not find meta graph def matching supplied tags: { serve tpu }"),
        ("tagged", {}, "NOT_FOUND", "Could not find meta graph def matching supplied tags: { serve }"),
        ("tflite", {}, "NOT_FOUND", "Specified file path does not appear to contain a SavedModel bundle"),
        ("tflite_junk", {"tflite": True}, "INVALID_ARGUMENT", "Cannot build FlatBufferModel from buffer."),
        ("tflite_sparse", {"tflite": True}, "INTERNAL", "unresolved custom op: ParseExampleV2"),
        ("tflite_lost", {"tflite": True}, "INTERNAL", "Signature input x references an unknown tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_says_why(models, name, options, code, part):
    with pytest.raises(ServingError) as caught:
        loaded(models, name, **options)
    assert caught.value.code.name == code
    assert part in caught.value.message


def test_tags_are_those_of_the_meta_graph_in_any_order(models):
    model = loaded(models, "tagged", tags=("gpu", "serve"))
    assert model.run({"x:0": np.float32([2])}, ["y:0"])[0].tolist() == [3]
    model.close()


def test_memory_for_choices_of_outputs_is_bounded(models, monkeypatch):
    from serve import session

    monkeypatch.setattr(session, "_CALLABLES_AT_MOST", 1)
    model = loaded(models, "half_plus_two")
    prepared = set(model._callables)
    for fetches in (["y:0"], ["y2:0"], ["y:0", "y2:0"], ["y2:0", "y:0"], ["y2:0", "y2:0"], ["y:0"]):
        found = model.run({"x:0": np.float32([2])}, fetches)
        assert [tensor.tolist() for tensor in found] == [
            [{"y:0": 3.0, "y2:0": 4.0}[name]] for name in fetches
        ]
    assert prepared < model._callables.keys()
    assert len(model._callables) == len(prepared) + 1
    model.close()


def test_truncated_tflite_model_is_refused(models, tmp_path):
    whole = (models / "tflite" / VERSION / "model.tflite").read_bytes()
    (tmp_path / "t" / VERSION).mkdir(parents=True)
    (tmp_path / "t" / VERSION / "model.tflite").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ServingError) as caught:
        loaded(tmp_path, "t", tflite=True)
    assert caught.value.code in (Code.INTERNAL, Code.INVALID_ARGUMENT)


def test_method_names_count_where_the_flag_says_so(models):
    from serve import grpc_inference, grpc_prediction

    model = loaded(models, "half_plus_two", check=True)
    x = np.float32([1])
    assert grpc_prediction.read_predict(model, request("m", x=x)).run(model).outputs["y"].float_val[0] == 2.5
    regress = grpc_inference.read_regress(model, on_examples(REGRESS, "m", "regress_x_to_y", x=2.0))
    assert regress.run(model).result.regressions[0].value == 3
    for read, asked, message in (
        (grpc_inference.read_regress, on_examples(REGRESS, "m", "no_method", x=2.0),
         f"INVALID_ARGUMENT: Expected regression signature method_name to be {REGRESS}. Was: "),
        (grpc_inference.read_classify, on_examples(CLASSIFY, "m", "regress_x_to_y", x=2.0),
         f"INVALID_ARGUMENT: Expected classification signature method_name to be {CLASSIFY}. Was: {REGRESS}"),
        (grpc_prediction.read_predict, request("m", signature="no_method", inputs=np.array([b""], object)),
         f"INTERNAL: Expected prediction signature method_name to be one of {{{', '.join(METHODS)}}}. Was: "),
    ):  # fmt: skip
        with pytest.raises(ServingError) as caught:
            read(model, asked)
        assert str(caught.value) == message
    model.close()


def test_answers_go_into_tensor_content_where_the_flag_says_so(models):
    from serve import grpc_prediction

    model = loaded(models, "half_plus_two")
    work = grpc_prediction.read_predict(model, request("m", x=np.float32([1, 2])), as_content=True)
    answer = work.run(model).outputs["y"]
    assert (list(answer.float_val), np.frombuffer(answer.tensor_content, np.float32).tolist()) == (
        [],
        [2.5, 3],
    )
    model.close()


# --- warm-up ---


def logs(*requests):
    """PredictionLogs of requests, in order."""
    from tensorflow_serving.apis import prediction_log_pb2

    kinds = {
        "PredictRequest": "predict_log",
        "ClassificationRequest": "classify_log",
        "RegressionRequest": "regress_log",
        "MultiInferenceRequest": "multi_inference_log",
        "SessionRunRequest": "session_run_log",
    }
    for asked in requests:
        entry = prediction_log_pb2.PredictionLog()
        if asked is not None:
            getattr(entry, kinds[type(asked).__name__]).request.CopyFrom(asked)
        yield entry.SerializeToString()


def replayed(model, folder, *records, iterations=0) -> int:
    """Replays records that were written as a version's warm-up file."""
    import tensorflow as tf

    from serve import warmup

    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return warmup.replay(model, folder, iterations)


def count(model) -> float:
    return float(model.run({}, [model.signatures["get_counter"].outputs["output"].name])[0])


def test_warm_up_replays_every_kind_of_request(models, tmp_path):
    model = loaded(models, "half_plus_two")
    records = logs(
        request("any", x=np.float32([1])),
        None,
        on_examples(CLASSIFY, "another", "classify_x_to_y", x=1.0),
        on_examples(REGRESS, "m", "regress_x_to_y", x=1.0),
        multi(("m", "regress_x_to_y", REGRESS), ("m", "classify_x_to_y", CLASSIFY), x=1.0),
    )
    assert replayed(model, tmp_path, *records) == 5
    model.close()


def test_warm_up_replays_each_record_as_often_as_it_is_told(models, tmp_path):
    model = loaded(models, "counter")
    replayed(model, tmp_path, *logs(request("m", signature="incr_counter")), iterations=7)
    assert count(model) == 7
    replayed(model, tmp_path, *logs(request("m", signature="incr_counter")))
    assert count(model) == 8
    model.close()


def test_more_than_a_thousand_warm_up_records_fail_after_they_ran(models, tmp_path):
    model = loaded(models, "counter")
    (record,) = logs(request("m", signature="incr_counter"))
    assert replayed(model, tmp_path, *[record] * 1000) == 1000
    with pytest.raises(ServingError) as caught:
        replayed(model, tmp_path, *[record] * 1002)
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    assert str(caught.value) == (
        f"INVALID_ARGUMENT: Number of warmup records exceeds the maximum (1000) at {path}"
    )
    assert count(model) == 2001
    model.close()


def test_warm_up_that_fails_says_why(models, tmp_path):
    from tensorflow_serving.apis import prediction_log_pb2, session_service_pb2

    model = loaded(models, "half_plus_two")
    streamed = prediction_log_pb2.PredictionLog()
    streamed.predict_streamed_log.SetInParent()
    session_run = next(logs(session_service_pb2.SessionRunRequest()))
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    for record, message in (
        (session_run, "UNIMPLEMENTED: Unsupported log_type for warmup: 5"),
        (streamed.SerializeToString(), "UNIMPLEMENTED: Unsupported log_type for warmup: 7"),
        (b"malformed", f"INVALID_ARGUMENT: Failed to parse warmup record: malformed from {path}"),
        (
            next(logs(request("m", signature="s"))),
            'FAILED_PRECONDITION: Serving signature key "s" not found.',
        ),
        (
            next(logs(on_examples(REGRESS, "m", "s"))),
            "INVALID_ARGUMENT: No signature was found with the name: s",
        ),
        (
            next(logs(multi(("m", "s", REGRESS)))),
            "INVALID_ARGUMENT: Requested signature not found in model graph: s",
        ),
    ):
        with pytest.raises(ServingError) as caught:
            replayed(model, tmp_path, record)
        assert str(caught.value) == message
    model.close()


def test_warm_up_file_that_is_no_tfrecord_is_data_loss(models, tmp_path):
    from serve import warmup

    model = loaded(models, "half_plus_two")
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    path.write_bytes(b"This is not a TFRecord file, though it is long enough to be one.")
    with pytest.raises(ServingError) as caught:
        warmup.replay(model, tmp_path)
    assert caught.value.code is Code.DATA_LOSS
    assert caught.value.message.endswith(". Please verify your warmup data is in TFRecord format.")
    assert warmup.replay(model, tmp_path / "without") == 0
    model.close()
