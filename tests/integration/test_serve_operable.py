"""The model server as those see it who run it: metrics, log lines, traces, request logs, TLS, health, the end."""

import contextlib
import json
import shutil
import signal
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from serve import profiler, trace
from serve.health import Health, Request, Response
from serve.record_files import DONE, OPEN, frames, main
from tests import support_serve
from tests.support_serve import (
    call,
    end,
    half_plus,
    predict,
    request,
    running,
    start,
    wait_ready,
    write_version,
)

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "a client's own words"


def free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        return dict(zip(("grpc", "rest"), (each.getsockname()[1] for each in found), strict=True))


def on_examples(v1, tf):
    """Scores and a number of examples' feature x."""
    serialized = v1.placeholder(tf.string, [None])
    x = v1.io.parse_example(serialized, {"x": v1.io.FixedLenFeature([], tf.float32)})["x"]
    scores = tf.stack([x, 1 - x], axis=1)
    labels = tf.tile(tf.constant([["yes", "no"]]), [tf.size(x), 1])
    return {
        "serving_default": ({"inputs": serialized}, {"classes": labels, "scores": scores}),
        "number": ({"inputs": serialized}, {"outputs": x * 2}),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of three models."""
    base = tmp_path_factory.mktemp("operable")
    write_version(base / "half" / "1", half_plus(1))
    write_version(base / "kinds" / "1", support_serve.kinds)
    write_version(base / "examples" / "1", on_examples)
    return base


def stubs(port, credentials=None, **options):
    import grpc
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    options = list(options.items())
    address = f"localhost:{port}"
    channel = (
        grpc.secure_channel(address, credentials, options)
        if credentials
        else grpc.insecure_channel(address, options)
    )
    return SimpleNamespace(
        channel=channel,
        prediction=prediction_service_pb2_grpc.PredictionServiceStub(channel),
        model=model_service_pb2_grpc.ModelServiceStub(channel),
        check=channel.unary_unary(
            "/grpc.health.v1.Health/Check", Request.SerializeToString, Response.FromString
        ),
        watch=channel.unary_stream(
            "/grpc.health.v1.Health/Watch", Request.SerializeToString, Response.FromString
        ),
    )


@pytest.fixture(scope="module")
def server(folder):
    """A server with everything on; what it logs of requests goes to `logs`."""
    (folder / "logs").mkdir()
    logged = (
        f'logging_config {{ log_collector_config {{ type: "tfrecord" filename_prefix: "{folder}/logs/all" }} '
        "sampling_config { sampling_rate: 1 } }"
    )
    models = support_serve.config(folder, ("half", logged), ("examples", logged), ("kinds", ""))
    (folder / "monitoring.txt").write_text('prometheus_config { enable: true path: "/metrics" }')
    ports = free_ports()
    flags = [f"--model_config_file={models}", f"--monitoring_config_file={folder}/monitoring.txt"]
    flags += ["--log_format=json", "--log_requests", "--enable_model_listing"]
    flags += ["--enable_grpc_healthcheck_service", "--request_log_max_age_seconds=1"]
    with running(*flags, **ports) as process:
        lines = []
        threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
        found = stubs(ports["grpc"])
        found.check(Request(), wait_for_ready=True, timeout=30)
        yield SimpleNamespace(lines=lines, stubs=found, **ports)


def metrics(server) -> dict[str, float]:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.rest, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Type")) == (200, "text/plain")
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def increase(server, act, name) -> float:
    before = metrics(server).get(name, 0)
    act()
    return metrics(server).get(name, 0) - before


def failing(method, *arguments) -> str:
    import grpc

    with pytest.raises(grpc.RpcError) as caught:
        method(*arguments)
    return caught.value.code().name


# --- metrics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "model", "status"),
    [
        (lambda s: predict("half", {"instances": [1.0]}, s.rest), "half", "OK"),
        (lambda s: predict("half", {"instances": ["x"]}, s.rest), "half", "INVALID_ARGUMENT"),
        (lambda s: predict("nobody", {"instances": [1.0]}, s.rest), "nobody", "NOT_FOUND"),
        (lambda s: call("GET", "/v1/models/kinds", port=s.rest), "kinds", "OK"),
        (lambda s: call("GET", "/v1/nothing", port=s.rest), "", "INVALID_ARGUMENT"),
        (lambda s: s.stubs.prediction.Predict(request("half", x=np.float32([1]))), "half", "OK"),
        (lambda s: failing(s.stubs.prediction.Predict, request("none")), "none", "NOT_FOUND"),
    ],
)
def test_request_of_any_kind_is_counted_once(server, act, model, status):
    name = f':tensorflow:serving:request_count{{model_name="{model}",status="{status}"}}'
    assert increase(server, lambda: act(server), name) == 1


def test_latencies_are_those_of_successes_by_entrypoint(server):
    def act():
        predict("half", {"instances": [1.0]}, server.rest)
        predict("half", {"instances": ["x"]}, server.rest)
        server.stubs.prediction.Predict(request("half", x=np.float32([1])))

    seen = []
    labels = 'model_name="half",API="{}",entrypoint="{}"'
    for api, entrypoint in (("predict", "REST"), ("Predict", "GRPC")):
        name = f":tensorflow:serving:request_latency_count{{{labels.format(api, entrypoint)}}}"
        seen.append(increase(server, act, name))
    name = ':tensorflow:serving:runtime_latency_count{model_name="half",API="Predict",runtime="TF1"}'
    assert [*seen, increase(server, act, name)] == [1, 1, 2]


def test_examples_of_requests_are_counted(server):
    body = json.dumps({"examples": [{"x": 0.5}, {"x": 0.25}, {"x": 0.0}]})

    def act():
        assert call("POST", "/v1/models/examples:classify", body, server.rest).status == 200
        server.stubs.prediction.Classify(examples_request("ClassificationRequest", 0.5))

    name = ':tensorflow:serving:request_example_counts_sum{model="examples"}'
    assert increase(server, act, name) == 4


def test_metrics_want_no_query(server):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.rest, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics?x=1")
        answer = connection.getresponse()
        assert answer.status == 400
        assert answer.read().startswith(b"Unexpected path: /metrics?x=1")


def test_reload_tells_how_much_counters_rose_meanwhile():
    from serve import framework

    framework.lean()
    from tensorflow_serving.apis import model_management_pb2

    from serve.grpc_models import ModelService
    from serve.observe import REST, Observer
    from serve.status import Code

    observer = Observer()
    observer.metrics.request(REST, "predict", "m", Code.OK, 1.0)

    def reload(*_):
        observer.metrics.request(REST, "predict", "m", Code.INTERNAL, 1.0)

    asked = model_management_pb2.ReloadConfigRequest(
        metric_names=["/tensorflow/serving/request_count", "/no/such"]
    )
    asked.config.model_config_list.SetInParent()
    service = ModelService(SimpleNamespace(configs={}, reload=reload), observer)
    told = service.reload(asked, lambda: True)
    assert [(each.name, each.int64_value_increase) for each in told.metric] == [
        ("/tensorflow/serving/request_count", 1),
        ("/no/such", 0),
    ]


def test_models_are_listed(server):
    listed = call("GET", "/v1/models", port=server.rest).json["models"]
    assert [each["name"] for each in listed] == ["examples", "half", "kinds"]
    assert listed[1]["model_version_status"][0]["state"] == "AVAILABLE"


# --- traces and log lines -------------------------------------------------------------------------------


def line_of(server, trace_id: str) -> dict:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for text in server.lines:
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if line.get("trace_id") == trace_id:
                    return line
        time.sleep(0.01)
    raise AssertionError(f"no line about {trace_id}")


def test_trace_of_a_rest_request_is_in_its_answer_and_its_log_line(server):
    import http.client

    body = json.dumps({"signature_name": "text", "instances": [SECRET]})
    connection = http.client.HTTPConnection("127.0.0.1", server.rest, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/models/kinds:predict", body, {"traceparent": PARENT})
        answer = connection.getresponse()
        assert SECRET.encode() in answer.read()
    told = trace.read(answer.getheader("traceresponse"))
    assert told.trace_id == PARENT[3:35]
    line = line_of(server, told.trace_id)
    assert (line["event"], line["model"], line["code"]) == ("request", "kinds", "OK")
    assert (line["span_id"], line["parent_id"]) == (told.parent_id, PARENT[36:52])
    assert SECRET not in json.dumps(line)


def test_trace_of_a_grpc_request_is_in_its_answer_and_its_log_line(server):
    parent = PARENT.replace("0af7", "1af7")
    _, answer = server.stubs.prediction.Predict.with_call(
        request("half", x=np.float32([1])), metadata=[("traceparent", parent)]
    )
    told = trace.read(dict(answer.trailing_metadata())["traceresponse"])
    assert told.trace_id == parent[3:35]
    line = line_of(server, told.trace_id)
    assert (line["entrypoint"], line["api"], line["span_id"]) == ("GRPC", "Predict", told.parent_id)


# --- health ---------------------------------------------------------------------------------------------


def test_health_is_told_under_tf_servings_names(server):
    for name in ("", "ModelService", "PredictionService"):
        assert server.stubs.check(Request(service=name), timeout=5).status == Health.SERVING
    assert failing(server.stubs.check, Request(service="other")) == "NOT_FOUND"


def test_many_who_watch_the_health_take_no_threads_from_requests(server):
    watches = [server.stubs.watch(Request(service="ModelService")) for _ in range(40)]
    try:
        assert [next(iter(each)).status for each in watches] == [Health.SERVING] * 40
        assert server.stubs.prediction.Predict(request("half", x=np.float32([1])), timeout=5)
    finally:
        for each in watches:
            each.cancel()


# --- the profiler ---------------------------------------------------------------------------------------


def test_profile_of_the_server_is_captured_and_written_where_tensorboard_looks(server, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    profile = server.stubs.channel.unary_unary(
        "/tensorflow.ProfilerService/Profile",
        profiler.ProfileRequest.SerializeToString,
        profiler.ProfileResponse.FromString,
    )
    asked = profiler.ProfileRequest(
        duration_ms=1500, repository_root=str(tmp_path), session_id="run", host_name="localhost:1"
    )
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(profile, asked, timeout=60)
        busy = []
        while not told.done():
            predict("half", {"instances": [1.0]}, server.rest)
            busy.append(1)
            if len(busy) == 5:
                assert failing(profile, profiler.ProfileRequest(duration_ms=1)) == "ALREADY_EXISTS"
    assert not told.result().empty_trace
    assert (tmp_path / "run" / "localhost_1.xplane.pb").stat().st_size > 1000
    astray = profiler.ProfileRequest(repository_root=str(tmp_path), session_id="../elsewhere")
    assert failing(profile, astray) == "INVALID_ARGUMENT"


# --- request logs ---------------------------------------------------------------------------------------


def example(x: float):
    from tensorflow.core.example import example_pb2

    made = example_pb2.Example()
    made.features.feature["x"].float_list.value.append(x)
    return made


def examples_request(kind: str, *values: float, signature=""):
    from tensorflow_serving.apis import classification_pb2, regression_pb2

    made = getattr(classification_pb2 if hasattr(classification_pb2, kind) else regression_pb2, kind)()
    made.model_spec.name, made.model_spec.signature_name = "examples", signature
    made.input.example_list.examples.extend(map(example, values))
    return made


def records(folder, model, at_least, seconds=15.0) -> list:
    """The records in a model's complete files, when there are that many."""
    from tensorflow_serving.apis import prediction_log_pb2

    deadline = time.monotonic() + seconds
    while True:
        found = []
        for path in sorted(folder.glob(f"all.{model}.*{DONE}")):
            with path.open("rb") as file:
                found += [prediction_log_pb2.PredictionLog.FromString(each[12:-4]) for each in frames(file)]
        if len(found) >= at_least:
            return found
        assert time.monotonic() < deadline, f"{len(found)} of {at_least} records of {model}"
        time.sleep(0.05)


def test_rest_and_grpc_requests_leave_the_same_predict_records(server, folder):
    predict("half", {"instances": [[1.5], [2.5]]}, server.rest)
    server.stubs.prediction.Predict(request("half", x=np.float32([[1.5], [2.5]])))
    wanted = []
    while len(wanted) < 2:
        wanted = [
            each
            for each in records(folder / "logs", "half", 2)
            if len(each.predict_log.request.inputs["x"].tensor_shape.dim) == 2
        ]
    for each in wanted:
        spec = each.log_metadata.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("half", 1, "serving_default")
        assert each.log_metadata.sampling_config.sampling_rate == 1
        assert abs(each.log_metadata.timestamp_secs - time.time()) < 600
        assert list(each.predict_log.response.outputs["y"].float_val) == [1.75, 2.25]
    (over_rest,) = (each for each in wanted if each.predict_log.request.inputs["x"].float_val)
    assert list(over_rest.predict_log.request.inputs["x"].float_val) == [1.5, 2.5]


def test_requests_on_examples_are_logged_with_what_was_answered(server, folder):
    from tensorflow_serving.apis import inference_pb2

    body = {"signature_name": "number", "examples": [{"x": 0.75}]}
    assert call("POST", "/v1/models/examples:regress", json.dumps(body), server.rest).status == 200
    body = {"examples": [{"x": 0.125}]}
    assert call("POST", "/v1/models/examples:classify", json.dumps(body), server.rest).status == 200
    server.stubs.prediction.Regress(examples_request("RegressionRequest", 0.5, signature="number"))
    multi = inference_pb2.MultiInferenceRequest()
    multi.input.example_list.examples.append(example(0.5))
    for signature, method in (("number", "regress"), ("", "classify")):
        task = multi.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "examples", signature
    server.stubs.prediction.MultiInference(multi)
    logged = {each.SerializeToString(): each for each in records(folder / "logs", "examples", 4)}.values()
    regressed = [each.regress_log for each in logged if each.HasField("regress_log")]
    answers = {each.response.result.regressions[0].value for each in regressed}
    assert answers >= {1.0, 1.5}
    classified = [each.classify_log for each in logged if each.HasField("classify_log")]
    (over_rest,) = (
        each for each in classified if list(each.request.input.example_list.examples) == [example(0.125)]
    )
    classes = over_rest.response.result.classifications[0].classes
    assert [(each.label, round(each.score, 3)) for each in classes] == [("yes", 0.125), ("no", 0.875)]
    (together,) = (each.multi_inference_log for each in logged if each.HasField("multi_inference_log"))
    assert together.response.results[0].regression_result.regressions[0].value == 1.0


def test_requests_that_failed_and_models_without_a_log_leave_no_records(server, folder):
    predict("half", {"instances": ["x"]}, server.rest)
    predict("kinds", {"signature_name": "text", "instances": [SECRET]}, server.rest)
    predict("half", {"instances": [[[3.0]]]}, server.rest)
    shapes = []
    while 3 not in shapes:
        found = records(folder / "logs", "half", 1)
        shapes = [len(each.predict_log.request.inputs["x"].tensor_shape.dim) for each in found]
        time.sleep(0.05)
    assert all(each.predict_log.request.inputs["x"].dtype == 1 for each in found)
    assert not list((folder / "logs").glob("all.kinds.*"))


def test_log_of_a_killed_server_is_whole_and_warms_up_the_next_version(folder, tmp_path):
    shutil.copytree(folder / "half" / "1", tmp_path / "m" / "1")
    flags = ["--model_name=m", f"--model_base_path={tmp_path / 'm'}"]
    flags += [f"--request_log_prefix={tmp_path / 'log'}", "--request_log_sampling_rate=1"]
    ports = free_ports()
    process = start(*flags, **ports)
    try:
        wait_ready(process, ports["rest"])
        for number in range(20):
            assert predict("m", {"instances": [number]}, ports["rest"]).status == 200
        (left,) = tmp_path.glob(f"log.m.*{OPEN}")
        deadline = time.monotonic() + 10
        while not _count(left) >= 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        end(process)
    with left.open("ab") as file:
        file.write(b"\x40\0\0\0\0\0\0\0torn")
    # The next server with this prefix finds it, and loads a version that its records warm up.
    requests = tmp_path / "m" / "2" / "assets.extra" / "tf_serving_warmup_requests"
    shutil.copytree(folder / "half" / "1", tmp_path / "m" / "2")
    assert main([str(left), f"--out={requests}", "--at_most=15"]) == 0
    (tmp_path / "monitoring.txt").write_text("prometheus_config { enable: true }")
    with running(*flags, f"--monitoring_config_file={tmp_path}/monitoring.txt", **ports) as process:
        (whole,) = tmp_path.glob(f"log.m.*{DONE}")
        assert (_count(whole), _count(requests)) == (20, 15)
        assert whole.name == left.name.removesuffix(".part")
        told = call("GET", "/v1/models/m/versions/2", port=ports["rest"]).json["model_version_status"]
        assert told[0]["state"] == "AVAILABLE"
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert "request log recovered" in said


def _count(path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in frames(file))


# --- TLS ------------------------------------------------------------------------------------------------


class Authority:
    """Signs certificates for a test."""

    def __init__(self):
        self.key, self.certificate = self._make("authority", None)

    def _make(self, name, signer):
        import datetime
        import ipaddress

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer.certificate.subject if signer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(signer.key if signer else key, hashes.SHA256())
        )
        return key, made

    def pair(self, name) -> tuple[str, str]:
        """A key and its certificate, in PEM."""
        key, certificate = self._make(name, self)
        return _key_pem(key), _pem(certificate)

    @property
    def pem(self) -> str:
        return _pem(self.certificate)


def _pem(certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def _key_pem(key) -> str:
    from cryptography.hazmat.primitives import serialization as s

    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()).decode()


def ssl_config(path, **fields) -> str:
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()))
    return f"--ssl_config_file={path}"


def test_grpc_speaks_tls_alone_to_clients_whose_certificates_are_signed(folder, tmp_path):
    import grpc

    authority, stranger = Authority(), Authority()
    key, certificate = authority.pair("server")
    ports = free_ports()
    flag = ssl_config(
        tmp_path / "ssl.txt",
        server_key=key,
        server_cert=certificate,
        custom_ca=authority.pem,
        client_verify=True,
    )
    one = request("half", x=np.float32([1]))

    def ask(pair=(None, None), **waiting):
        parts = [part.encode() if part else None for part in pair]
        credentials = grpc.ssl_channel_credentials(authority.pem.encode(), *parts)
        client = stubs(ports["grpc"], credentials)
        with client.channel:
            return client.prediction.Predict(one, timeout=5, **waiting)

    with running(*support_serve.one("half", folder), flag, **ports):
        assert ask(authority.pair("client"), wait_for_ready=True).outputs["y"].float_val == [1.5]
        for refused in ((None, None), stranger.pair("client")):
            assert failing(ask, refused) in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        plain = stubs(ports["grpc"])
        assert failing(lambda: plain.prediction.Predict(one, timeout=2)) in (
            "UNAVAILABLE",
            "DEADLINE_EXCEEDED",
        )
        # REST has no TLS in TF Serving either.
        assert predict("half", {"instances": [1.0]}, ports["rest"]).status == 200


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (lambda own, other: {"server_cert": own[1]}, "has no server_key"),
        (lambda own, other: {"server_key": own[0], "server_cert": other[1]}, "fit each other"),
        (lambda own, other: {"server_key": "/etc/key.pem", "server_cert": own[1]}, "fit each other"),
        (
            lambda own, other: {"server_key": own[0], "server_cert": own[1], "client_verify": True},
            "custom_ca",
        ),
        (
            lambda own, other: {"server_key": own[0], "server_cert": own[1], "custom_ca": "none"},
            "fit each other",
        ),
    ],
)
def test_certificates_that_cannot_serve_are_refused_without_telling_the_key(tmp_path, fields, reason):
    from serve import tls
    from serve.status import ServingError

    own, other = Authority().pair("a"), Authority().pair("b")
    flag = ssl_config(tmp_path / "ssl.txt", **fields(own, other))
    with pytest.raises(ServingError, match=reason) as caught:
        tls.credentials(flag.partition("=")[2])
    assert "PRIVATE" not in str(caught.value)


# --- the end --------------------------------------------------------------------------------------------


def test_server_that_will_end_says_so_first_and_serves_on_for_the_time_of_notice(folder):
    ports = free_ports()
    flags = ["--enable_grpc_healthcheck_service", "--drain_notice_seconds=1.5"]
    with running(*support_serve.one("half", folder), *flags, **ports) as process:
        client = stubs(ports["grpc"])
        watch = iter(client.watch(Request(service="PredictionService"), wait_for_ready=True, timeout=30))
        assert next(watch).status == Health.SERVING
        process.terminate()
        assert next(watch).status == Health.NOT_SERVING
        assert client.check(Request(), timeout=5).status == Health.NOT_SERVING
        assert predict("half", {"instances": [1.0]}, ports["rest"]).status == 200
        assert client.prediction.Predict(request("half", x=np.float32([1])), timeout=5)
        assert next(watch, None) is None
        _, said = process.communicate(timeout=10)
    assert process.returncode == 0
    events = ["stopping soon; still serving", "draining", "stopped"]
    assert [event for event in events if event in said] == events
