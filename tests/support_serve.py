"""What tests of the model server share: small SavedModels, servers as processes, requests."""

import contextlib
import functools
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

ROOT = Path(__file__).resolve().parent.parent


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


# Of this process, so that tests may run side by side.
GRPC, REST, OTHER_GRPC, OTHER_REST = _free_ports(4)


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


@functools.cache
def models(session: Path) -> Path:
    """Folders of models, written once a session: half (3 versions), kinds, digits, cold (its warm-up fails)."""
    base = session / "models_to_serve"
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


def one(name, models) -> list[str]:
    return [f"--model_name={name}", f"--model_base_path={models / name}"]
