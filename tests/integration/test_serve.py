"""The model server's REST and gRPC, on real SavedModels, in several versions. Needs no accelerator."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from serve import dtypes, tensors
from tests import support_serve
from tests.support_serve import GRPC, REST, call, config, predict, request, running


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folders of models."""
    return support_serve.models(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def server(models):
    """A server of three models, one of them in all versions, one in two specific ones."""
    every = "model_version_policy { all {} }"
    path = config(
        models,
        ("half", every),
        ("kinds", "model_version_policy { specific { versions: 1 versions: 5 } }"),
        ("digits", "model_version_policy { latest {} }"),
    )
    with running(
        f"--model_config_file={path}", "--rest_api_timeout_in_ms=3000", grpc=GRPC, rest=REST
    ) as process:
        while [each["state"] for each in call("GET", "/v1/models/half").json["model_version_status"]] != [
            "AVAILABLE"
        ] * 3:
            time.sleep(0.02)
        yield process


@pytest.fixture(scope="module")
def stubs():
    import grpc
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    with grpc.insecure_channel(
        f"127.0.0.1:{GRPC}", options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        yield SimpleNamespace(
            prediction=prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model=model_service_pb2_grpc.ModelServiceStub(channel),
        )


def refused(method, message) -> tuple[str, str]:
    import grpc

    with pytest.raises(grpc.RpcError) as caught:
        method(message, timeout=20)
    return caught.value.code().name, caught.value.details()


# --- REST ---


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("half", {"instances": [[1.0], [2.0]]}, {"predictions": [[3.5], [4.0]]}),
        ("half/versions/1", {"instances": [[1.0]]}, {"predictions": [[1.5]]}),
        ("half", {"instances": [1.0, 2.0]}, {"predictions": [3.5, 4.0]}),
        ("half", {"inputs": 1}, {"outputs": 3.5}),
        ("kinds", {"instances": [{"a": 1, "b": 2}, {"a": 0.5, "b": 3}]},
         {"predictions": [{"sum": 3.0, "twice": 4}, {"sum": 3.5, "twice": 6}]}),
        ("kinds", {"inputs": {"a": [1], "b": [2]}}, {"outputs": {"sum": [3.0], "twice": [4]}}),
        ("kinds", {"signature_name": "scalar", "inputs": 2**62}, {"outputs": 2**62 + 1}),
        ("kinds", {"signature_name": "small", "instances": [255]}, {"predictions": [255]}),
        ("kinds", {"signature_name": "bools", "instances": [True, False]}, {"predictions": [False, True]}),
    ],
)  # fmt: skip
def test_rest_predict_answers(server, path, body, answer):
    got = call("POST", f"/v1/models/{path}:predict", json.dumps(body))
    assert (got.status, got.json) == (200, answer)


def test_rest_answers_a_tf2_export_by_its_output_names(server):
    image = [[0] * 8] * 7 + [[16] * 8]
    row = predict("digits", {"instances": [image]}).json["predictions"][0]
    assert row["class"] == 9
    assert sum(row["probabilities"]) == pytest.approx(1)
    columns = predict("digits", {"inputs": {"pixels": [image, image]}}).json["outputs"]
    assert columns["class"] == [9, 9]


def test_rest_writes_bytes_in_base64_by_the_outputs_name_and_other_strings_as_they_are(server):
    body = {"signature_name": "text", "instances": ["é", {"b64": "/w=="}]}
    rows = predict("kinds", body).json["predictions"]
    assert [base64.b64decode(row["echo_bytes"]["b64"]) for row in rows] == ["é".encode(), b"\xff"]
    assert [row["echo"] for row in rows] == ["é", "\udcff"]


@pytest.mark.parametrize(
    ("model", "body", "status", "part"),
    [
        ("half", {"instances": ["a"]}, 400, "Type: String is not of expected type: float"),
        ("half", {"instances": [[1], [1, 2]]}, 400, "Expecting tensor size: 1 but got: 2"),
        ("half", {"signature_name": "s", "instances": [1]}, 400,
         'Serving signature name: "s" not found in signature def'),
        ("none", {"instances": [1]}, 404, "Servable not found for request: Latest(none)"),
        ("half/versions/9", {"instances": [1]}, 404, "Servable not found for request: Specific(half, 9)"),
        ("kinds", {"instances": [{"a": 1}]}, 400, "keys must be equal to: a,b"),
        ("kinds", {"inputs": {"a": [1]}}, 400, "Missing named input: b in 'inputs' object."),
        ("kinds", {"inputs": {"a": [1, 2, 3], "b": [1, 2]}}, 400, "Incompatible shapes: "),
        ("kinds", {"signature_name": "reshape", "instances": [1, 2]}, 400, "2 values, but the requested shape has 9"),
        ("kinds", {"signature_name": "uneven", "instances": [1, 2]}, 400,
         "Tensor name: first has inconsistent batch size: 1 expecting: 2"),
        ("kinds", {"signature_name": "halves", "inputs": [1]}, 501, "Conversion of JSON Value: 1 to type: half"),
        ("kinds", {"signature_name": "no_inputs", "inputs": []}, 400,
         "Failed to get input map for signature: no_inputs"),
        ("kinds", {"signature_name": "slow", "inputs": 20}, 504, "Timed out waiting for notification"),
    ],
)  # fmt: skip
def test_rest_refuses_what_a_model_cannot_answer(server, model, body, status, part):
    got = predict(model, body)
    assert got.status == status
    assert part in got.json["error"]


def test_rest_tells_status_and_metadata(server):
    got = call("GET", "/v1/models/half/versions/2").json
    fine = {"error_code": "OK", "error_message": ""}
    assert got == {"model_version_status": [{"version": "2", "state": "AVAILABLE", "status": fine}]}
    told = call("GET", "/v1/models/half/metadata").json
    assert told["model_spec"] == {"name": "half", "signature_name": "", "version": "3"}
    signature = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
    shape = {"dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}], "unknown_rank": False}
    assert signature == {
        "inputs": {"x": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "x:0"}},
        "outputs": {"y": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "y:0"}},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }


def test_rest_is_closed_to_what_is_no_request(server):
    assert call("GET", "/").status == 404
    assert call("PUT", "/v1/models/half").status == 400
    assert call("POST", "/v1/models/half:predict?x=1", "{}").status == 400
    assert call("POST", "/v1/models/half:explain", "{}").status == 400


# --- gRPC ---


def test_grpc_predict_answers_in_typed_fields_and_names_who_answered(server, stubs):
    answer = stubs.prediction.Predict(request("half", x=np.float32([[1.0], [2.0]])))
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half", 3, "serving_default")
    assert list(answer.outputs["y"].float_val) == [3.5, 4.0]
    assert answer.outputs["y"].tensor_content == b""
    older = stubs.prediction.Predict(request("half", version=1, x=np.float32([1.0])))
    assert (older.model_spec.version.value, list(older.outputs["y"].float_val)) == (1, [1.5])


def test_grpc_takes_every_kind_of_tensor_and_answers_it(server, stubs):
    from tensorflow import make_ndarray

    for signature, alias, output, value, expected in (
        ("text", "s", "echo", np.array([b"a", b"\xff"], object), [b"a", b"\xff"]),
        ("scalar", "n", "next", np.int64(4), 5),
        ("small", "n", "n", np.uint8([1, 255]), [1, 255]),
        ("bools", "f", "not", np.array([True, False]), [False, True]),
        ("halves", "h", "h", np.float16([0.5, -2]), [0.5, -2]),
    ):
        answer = stubs.prediction.Predict(request("kinds", signature=signature, **{alias: value}))
        assert make_ndarray(answer.outputs[output]).tolist() == expected
    only = stubs.prediction.Predict(request("kinds", outputs=["twice"], a=np.float32([1]), b=np.int32([4])))
    assert list(only.outputs) == ["twice"]


def test_grpc_short_typed_list_repeats_its_last_value(server, stubs):
    message = request("half")
    message.inputs["x"].dtype = 1
    message.inputs["x"].tensor_shape.dim.add(size=3)
    message.inputs["x"].float_val.extend([2, 4])
    assert list(stubs.prediction.Predict(message).outputs["y"].float_val) == [4, 5, 5]


@pytest.mark.parametrize("number", sorted(dtypes.DTYPES))
@pytest.mark.parametrize("as_content", [False, True])
def test_tensors_of_every_type_survive_the_way_there_and_back(number, as_content):
    from tensorflow import make_ndarray
    from tensorflow.core.framework import tensor_pb2

    values = [[0, 1, 1], [1, 0, 1]] if number != dtypes.STRING else [[b"a", b"", b"\xff"], [b"b", b"c", b"d"]]
    array = np.array(values, dtypes.DTYPES[number].numpy)
    proto = tensor_pb2.TensorProto()
    tensors.encode(array, number, proto, as_content)
    assert bool(proto.tensor_content) == (as_content and number != dtypes.STRING)
    for back in (tensors.decode(proto), make_ndarray(proto)):
        assert (back.dtype, back.tolist()) == (array.dtype, values)


def broken_content():
    message = request("half", x=np.float32([1, 2]))
    message.inputs["x"].tensor_content = b"abc"
    return message


@pytest.mark.parametrize(
    ("make", "code", "part"),
    [
        (lambda: request("none", x=1.0), "NOT_FOUND", "Servable not found for request: Latest(none)"),
        (lambda: request("half", version=9, x=1.0), "NOT_FOUND", "Servable not found for request: Specific(half, 9)"),
        (lambda: request("", x=1.0), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (lambda: request("half", signature="s"), "FAILED_PRECONDITION", 'Serving signature key "s" not found.'),
        (lambda: request("half", y=1.0), "INVALID_ARGUMENT", "Signature input alias: x(feed name: x:0) not found"),
        (lambda: request("half", x="a"), "INVALID_ARGUMENT", "to be float but string is provided"),
        (lambda: request("half", x=np.float32([1]), outputs=["z"]), "INVALID_ARGUMENT",
         "Outputs expected to be in the set {y}"),
        (broken_content, "INVALID_ARGUMENT", "3 bytes of tensor_content"),
        (lambda: request("kinds", signature="reshape", a=np.float32([1])), "INVALID_ARGUMENT", "requested shape has 9"),
    ],
)  # fmt: skip
def test_grpc_refuses_what_a_model_cannot_answer(server, stubs, make, code, part):
    got, details = refused(stubs.prediction.Predict, make())
    assert got == code
    assert part in details


def test_grpc_missing_model_spec_is_refused_and_long_details_are_cut(server, stubs):
    from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

    missing = ("INVALID_ARGUMENT", "Missing ModelSpec")
    assert refused(stubs.prediction.Predict, predict_pb2.PredictRequest()) == missing
    assert refused(stubs.model.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()) == missing
    _, details = refused(stubs.prediction.Predict, request("n" * 5000, x=1.0))
    assert len(details) == 1024 + len("...TRUNCATED")
    assert details.endswith("n...TRUNCATED")


def test_grpc_tells_status_and_metadata(server, stubs):
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "half"
    told = stubs.model.GetModelStatus(asked).model_version_status
    assert [(each.version, each.state, each.status.error_code) for each in told] == [
        (3, 30, 0),
        (2, 30, 0),
        (1, 30, 0),
    ]
    asked.model_spec.version.value = 9
    assert refused(stubs.model.GetModelStatus, asked) == (
        "NOT_FOUND",
        "Could not find version 9 of model half",
    )

    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "digits"
    answer = stubs.prediction.GetModelMetadata(asked)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(found)
    assert answer.model_spec.version.value == 7
    assert set(found.signature_def["serving_default"].outputs) == {"probabilities", "class"}
    asked.metadata_field[:] = ["other"]
    assert refused(stubs.prediction.GetModelMetadata, asked) == (
        "INVALID_ARGUMENT",
        "Metadata field other is not supported",
    )
    del asked.metadata_field[:]
    assert "must specify at least one metadata_field" in refused(stubs.prediction.GetModelMetadata, asked)[1]


def test_many_clients_at_once_get_their_own_answers(server, stubs):
    def over_rest(number):
        return predict("half", {"instances": [number]}).json["predictions"]

    def over_grpc(number):
        return list(stubs.prediction.Predict(request("half", x=np.float32([number]))).outputs["y"].float_val)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(over_rest, range(100))) == [[number / 2 + 3] for number in range(100)]
        assert list(pool.map(over_grpc, range(100))) == [[number / 2 + 3] for number in range(100)]
