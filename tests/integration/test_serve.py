"""The model server as a process: real SavedModels, REST and gRPC, several versions, starting, stopping, trouble.

Needs no accelerator. The models are written once; most tests share one server.
"""

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from serve import dtypes, tensors

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

ROOT = Path(__file__).resolve().parents[2]
GRPC, REST = 20100, 20101
OTHER_GRPC, OTHER_REST = 20110, 20111


# --- models ------------------------------------------------------------------------------------------------


def write_version(path, build):
    """Writes a TF1 SavedModel; `build` makes the graph and returns {signature: (inputs, outputs)}."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        signatures = {
            name: v1.saved_model.signature_def_utils.build_signature_def(
                {alias: v1.saved_model.build_tensor_info(tensor) for alias, tensor in inputs.items()},
                {alias: v1.saved_model.build_tensor_info(tensor) for alias, tensor in outputs.items()},
                "tensorflow/serving/predict",
            )
            for name, (inputs, outputs) in build(v1, tf).items()
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()


def half_plus(number):
    """y = x / 2 + number; x is [-1, 1] in the signature, which a server does not enforce."""

    def build(v1, tf):
        x = v1.placeholder(tf.float32, [None, 1], name="x")
        y = x * v1.get_variable("half", initializer=0.5) + v1.get_variable("plus", initializer=float(number))
        return {"serving_default": ({"x": x}, {"y": tf.identity(y, name="y")})}

    return build


def kinds(v1, tf):
    """A signature for each kind of input and output."""

    def placeholder(dtype, shape=(None,)):
        return v1.placeholder(dtype, shape)

    a, b, text, scalar = (
        placeholder(tf.float32),
        placeholder(tf.int32),
        placeholder(tf.string),
        placeholder(tf.int64, ()),
    )
    seconds, small, flags, halves = (
        placeholder(tf.float64, ()),
        placeholder(tf.uint8),
        placeholder(tf.bool),
        placeholder(tf.half),
    )
    start = tf.timestamp()
    with tf.control_dependencies([seconds]):
        waited = (
            tf.while_loop(lambda now: now - start < seconds, lambda now: [tf.timestamp()], [start])[0] - start
        )
    return {
        "serving_default": ({"a": a, "b": b}, {"sum": a + tf.cast(b, tf.float32), "twice": b * 2}),
        "text": ({"s": text}, {"echo": tf.identity(text), "echo_bytes": tf.identity(text)}),
        "scalar": ({"n": scalar}, {"next": scalar + 1}),
        "small": ({"n": small}, {"n": tf.identity(small)}),
        "bools": ({"f": flags}, {"not": tf.logical_not(flags)}),
        "halves": ({"h": halves}, {"h": tf.identity(halves)}),
        "uneven": ({"a": a}, {"all": tf.identity(a), "first": a[:1]}),
        "reshape": ({"a": a}, {"square": tf.reshape(a, [3, 3])}),
        "slow": ({"seconds": seconds}, {"waited": waited}),
        "no_inputs": ({}, {"five": tf.constant([5.0])}),
    }  # fmt: skip


def write_tf2(path):
    """The digits model's signature, as TF2 exports it."""
    import tensorflow as tf

    class Digits(tf.Module):
        def __init__(self):
            super().__init__()
            self.weights = tf.Variable(tf.ones([64, 10]))

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8], tf.float32, name="pixels")])
        def serve(self, pixels):
            logits = tf.reshape(pixels / 16.0, [-1, 64]) @ self.weights + tf.range(10.0)
            return {"probabilities": tf.nn.softmax(logits), "class": tf.argmax(logits, -1)}

    digits = Digits()
    tf.saved_model.save(digits, str(path), signatures={"serving_default": digits.serve})


def warmup(path, *requests):
    """Writes warm-up records of these PredictRequests."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    (path / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(path / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Folders of models: half (3 versions), kinds, digits, cold (its warm-up fails)."""
    base = tmp_path_factory.mktemp("models")
    for version in (1, 2, 3):
        write_version(base / "half" / str(version), half_plus(version))
    warmup(base / "half" / "3", request("any", x=np.float32([[1.0]])))
    write_version(base / "kinds" / "1", kinds)
    write_tf2(base / "digits" / "7")
    write_version(base / "cold" / "1", half_plus(1))
    warmup(base / "cold" / "1", request("any", wrong=np.float32([1.0])))
    return base


def config(models, *entries) -> str:
    """A model config file for (name, policy) pairs."""
    text = "".join(
        f'config {{ name: "{name}" base_path: "{models / name}" model_platform: "tensorflow" {policy} }}\n'
        for name, policy in entries
    )
    path = models / "models.config"
    path.write_text(f"model_config_list {{ {text} }}")
    return str(path)


# --- processes ---------------------------------------------------------------------------------------------


def start(*flags, grpc=OTHER_GRPC, rest=OTHER_REST) -> subprocess.Popen:
    argv = [sys.executable, "-m", "serve", f"--port={grpc}", f"--rest_api_port={rest}", *flags]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(process, text):
    """Reads what the server says until it says this."""
    assert any(text in line for line in process.stderr), f"the server never said: {text}"


def open_port(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def wait_ready(process, port=OTHER_REST, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not open_port(port):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the server did not open its ports"
        time.sleep(0.02)


@contextlib.contextmanager
def running(*flags, **ports):
    """A server that is ready; killed at the end if it still runs."""
    process = start(*flags, **ports)
    try:
        wait_ready(process, ports.get("rest") or OTHER_REST)
        yield process
    finally:
        end(process)


def end(process) -> tuple[str, str]:
    if process.poll() is None:
        process.kill()
    return process.communicate()


def refusal(*flags, **ports) -> str:
    """What a server that cannot start prints; checks that it exits with 255, and that no port is open."""
    process = start(*flags, **ports)
    try:
        out, _ = process.communicate(timeout=30)
    finally:
        end(process)
    assert process.returncode == 255
    return out


def call(method, path, body=None, port=REST, headers=None) -> SimpleNamespace:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        raw = answer.read()
    finally:
        connection.close()
    text = raw.decode("utf-8", "surrogateescape")
    return SimpleNamespace(status=answer.status, json=json.loads(text) if text else None)


def predict(model, body, port=REST) -> SimpleNamespace:
    return call("POST", f"/v1/models/{model}:predict", json.dumps(body), port)


# --- gRPC --------------------------------------------------------------------------------------------------


def request(model, *, version=None, signature="", outputs=(), **inputs):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    made = predict_pb2.PredictRequest(output_filter=outputs)
    made.model_spec.name, made.model_spec.signature_name = model, signature
    if version is not None:
        made.model_spec.version.value = version
    for alias, value in inputs.items():
        made.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return made


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


@pytest.fixture(scope="module")
def server(models):
    """A server of three models, one of them in all versions, one in two specific ones."""
    every = "model_version_policy { all {} }"
    path = config(models, ("half", every), ("kinds", ""), ("digits", "model_version_policy { latest {} }"))
    with running(
        f"--model_config_file={path}", "--rest_api_timeout_in_ms=3000", grpc=GRPC, rest=REST
    ) as process:
        while [each["state"] for each in call("GET", "/v1/models/half").json["model_version_status"]] != [
            "AVAILABLE"
        ] * 3:
            time.sleep(0.02)
        yield process


# --- REST --------------------------------------------------------------------------------------------------


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
    assert call("POST", "/v1/models/half:classify", "{}").status == 501


# --- gRPC --------------------------------------------------------------------------------------------------


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
        (lambda: request("half", y=1.0), "INVALID_ARGUMENT", "input size does not match signature: 1!=1 len({y})"),
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


def test_grpc_calls_that_are_not_there_yet_say_so(server, stubs):
    from tensorflow_serving.apis import classification_pb2, model_management_pb2

    unimplemented = refused(stubs.prediction.Classify, classification_pb2.ClassificationRequest())
    assert unimplemented == ("UNIMPLEMENTED", "Classify is not implemented by this server")
    reload_config = refused(stubs.model.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest())
    assert reload_config[0] == "UNIMPLEMENTED"


def test_many_clients_at_once_get_their_own_answers(server, stubs):
    def over_rest(number):
        return predict("half", {"instances": [number]}).json["predictions"]

    def over_grpc(number):
        return list(stubs.prediction.Predict(request("half", x=np.float32([number]))).outputs["y"].float_val)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(over_rest, range(100))) == [[number / 2 + 3] for number in range(100)]
        assert list(pool.map(over_grpc, range(100))) == [[number / 2 + 3] for number in range(100)]


# --- the command-line client -------------------------------------------------------------------------------


def client(*arguments) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "serve.client", *map(str, arguments)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_client_writes_every_output_of_its_rows(server, tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((3, 8, 8), np.int64))
    done = client(
        "--address", f"127.0.0.1:{GRPC}", "--model", "digits", tmp_path / "rows.npy", tmp_path / "out.npz"
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as outputs:
        assert outputs["class"].tolist() == [9, 9, 9]
        assert (outputs["probabilities"].shape, outputs["probabilities"].dtype) == ((3, 10), np.float32)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".npz"] == ["out.npz"]


def test_client_says_in_one_line_why_it_got_no_answer(server, tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((1, 2), np.float32))
    there, rows, out = f"127.0.0.1:{GRPC}", tmp_path / "rows.npy", tmp_path / "out.npz"
    (tmp_path / "junk.npy").write_text("junk")
    for arguments, part in (
        (["--address", "127.0.0.1:20199", "--model", "half", rows, out], "UNAVAILABLE"),
        (["--address", there, "--model", "none", rows, out], "Servable not found for request: Latest(none)"),
        (["--address", there, "--model", "half", "--version", "9", rows, out], "Specific(half, 9)"),
        (["--address", there, "--model", "half", "--input", "z", rows, out], "has no input z; it has x"),
        (["--address", there, "--model", "kinds", rows, out], "has inputs a, b; name one by --input"),
        (["--address", there, "--model", "half", "--signature", "s", rows, out], "has no signature s"),
        (["--address", there, "--model", "half", tmp_path / "absent.npy", out], "absent.npy cannot be read"),
        (["--address", there, "--model", "half", tmp_path / "junk.npy", out], "junk.npy is no .npy file"),
    ):
        done = client(*arguments)
        assert done.returncode == 5
        assert done.stderr.count("\n") == 1
        assert part in done.stderr
    assert not out.exists()


# --- starting and stopping ---------------------------------------------------------------------------------


def test_sigterm_finishes_what_runs_refuses_what_comes_and_exits_with_0(models):
    with running(*one("kinds", models), "--drain_seconds=10") as process, ThreadPoolExecutor(2) as pool:
        slow = [
            pool.submit(predict, "kinds", {"signature_name": "slow", "inputs": 1.5}, OTHER_REST)
            for _ in range(2)
        ]
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        time.sleep(0.5)
        assert not open_port(OTHER_REST)
        assert not open_port(OTHER_GRPC)
        assert [each.result().status for each in slow] == [200, 200]
        assert process.wait(10) == 0
        assert time.monotonic() - asked < 3


def test_sigterm_ends_in_the_stated_time_though_a_request_still_runs(models):
    with running(*one("kinds", models), "--drain_seconds=1") as process:
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(predict, "kinds", {"signature_name": "slow", "inputs": 60}, OTHER_REST)
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert process.wait(4) == 0
            answer = slow.result(5)
        assert (answer.status, answer.json) == (503, {"error": "The server is stopping"})


def one(name, models) -> list[str]:
    return [f"--model_name={name}", f"--model_base_path={models / name}"]


def test_ports_open_only_when_a_version_is_there(models, tmp_path):
    process = start("--model_name=late", f"--model_base_path={tmp_path / 'late'}")
    try:
        read_until(process, "no versions to load yet model=late")
        assert not open_port(OTHER_REST)
        assert not open_port(OTHER_GRPC)
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "5").symlink_to(models / "half" / "1")
        wait_ready(process)
        assert predict("late/versions/5", {"instances": [2]}, OTHER_REST).json == {"predictions": [2.0]}
    finally:
        end(process)


def test_sigterm_while_waiting_for_a_version_ends_at_once(tmp_path):
    process = start("--model_name=late", f"--model_base_path={tmp_path}")
    try:
        read_until(process, "no versions to load yet")
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        end(process)


def test_taken_port_is_named_before_a_model_is_loaded(models):
    with socket.create_server(("127.0.0.1", OTHER_GRPC)):
        out = refusal(*one("half", models))
        assert out.startswith(
            f"Failed to start server. Error: UNAVAILABLE: cannot listen on 127.0.0.1:{OTHER_GRPC}"
        )
        assert not open_port(OTHER_REST)
    with socket.create_server(("127.0.0.1", OTHER_REST)):
        out = refusal(*one("half", models))
        assert f"cannot listen on 127.0.0.1:{OTHER_REST}: Address already in use" in out
        assert not open_port(OTHER_GRPC)


def test_specific_versions_are_served_and_no_others(models):
    with running(*one("half", models), "--model_version_policy=specific:1,3"):
        told = call("GET", "/v1/models/half", port=OTHER_REST).json["model_version_status"]
        assert [each["version"] for each in told] == ["3", "1"]


def test_broken_version_stands_beside_a_good_one_with_its_error(models, tmp_path):
    (tmp_path / "1").symlink_to(models / "half" / "1")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "saved_model.pb").write_bytes(b"junk")
    with running(
        "--model_name=m",
        f"--model_base_path={tmp_path}",
        "--model_version_policy=all",
        "--max_num_load_retries=0",
    ):
        assert predict("m", {"instances": [2]}, OTHER_REST).json == {"predictions": [2.0]}
        deadline = time.monotonic() + 5
        while (
            told := call("GET", "/v1/models/m/versions/2", port=OTHER_REST).json["model_version_status"][0]
        )["state"] != "END":
            assert time.monotonic() < deadline
        assert told["status"]["error_code"] == "DATA_LOSS"
        assert "cannot be read" in told["status"]["error_message"]


@pytest.mark.parametrize(
    ("prepare", "part"),
    [
        (
            lambda path, models: path.mkdir(),
            "NOT_FOUND: Specified file path does not appear to contain a SavedModel",
        ),
        (
            lambda path, models: path.symlink_to(models / "cold" / "1"),
            "input size does not match signature: 1!=1",
        ),
    ],
)
def test_model_that_cannot_load_is_tried_again_and_then_fails_the_start(models, tmp_path, prepare, part):
    prepare(tmp_path / "1", models)
    retries = ("--max_num_load_retries=2", "--load_retry_interval_micros=1000")
    process = start("--model_name=m", f"--model_base_path={tmp_path}", *retries)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 255
    expected = "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: {{{name: m version: 1} "
    assert out.startswith(expected)
    assert part in out
    assert err.count("load failed model=m version=1 attempt=") == 3


def test_misread_command_lines_are_refused_in_tf_servings_words(tmp_path):
    (tmp_path / "bad.config").write_text("model_config_list { nonsense }")
    assert refusal() == (
        "Failed to start server. Error: INVALID_ARGUMENT: "
        "Both server_options.model_base_path and server_options.model_config_file are empty!\n"
    )
    process = start(f"--model_config_file={tmp_path / 'bad.config'}", "--enable_batching", "--nope=1")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 255
    assert out.startswith("unknown argument: --nope=1\nusage: ")
    assert out.endswith(f"Error: INVALID_ARGUMENT: Invalid protobuf file: '{tmp_path / 'bad.config'}'\n")
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig: " in err
    assert "flag without effect yet flag=--enable_batching" in err
