"""The model manager of a real server: versions come and go, configs change, and no request is lost."""

import contextlib
import shutil
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests import support_serve
from tests.support_serve import call, predict, refusal, request, running


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folders of models."""
    return support_serve.models(tmp_path_factory.getbasetemp())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def served(*flags):
    """A server on free ports, and its gRPC stubs."""
    import grpc
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    ports = {"grpc": free_port(), "rest": free_port()}
    with running(*flags, **ports) as process, grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        support_serve.wait_ready(process, ports["grpc"])
        yield SimpleNamespace(
            process=process,
            rest=ports["rest"],
            prediction=prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model=model_service_pb2_grpc.ModelServiceStub(channel),
        )


def place(path, source):
    """Puts a version where it is polled for, whole at once."""
    shutil.copytree(source, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def states(server, name):
    told = call("GET", f"/v1/models/{name}", port=server.rest).json.get("model_version_status", [])
    return {int(each["version"]): each["state"] for each in told}


def wait_until(condition, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def wait_for_states(server, name, expected):
    wait_until(lambda: states(server, name) == expected)


class Clients:
    """Threads that ask one model without pause, and note what they were answered."""

    def __init__(self, server, name, threads=4):
        self._server, self._name = server, name
        self._stop = threading.Event()
        self.answers: list[tuple] = []
        self._threads = [threading.Thread(target=self._ask, args=(number % 2,)) for number in range(threads)]

    def _ask(self, over_grpc):
        while not self._stop.is_set():
            try:
                if over_grpc:
                    message = request(self._name, x=np.float32([2.0]))
                    answer = self._server.prediction.Predict(message, timeout=10)
                    self.answers.append((200, answer.outputs["y"].float_val[0]))
                else:
                    got = predict(self._name, {"instances": [2.0]}, self._server.rest)
                    self.answers.append((got.status, got.json.get("predictions", [None])[0]))
            except Exception as error:
                self.answers.append((0, repr(error)))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_no_request_is_lost_while_versions_come_and_go(models, tmp_path):
    place(tmp_path / "1", models / "half" / "1")
    flags = ("--model_name=m", f"--model_base_path={tmp_path}", "--max_num_load_retries=0")
    with served(*flags) as server:
        with Clients(server, "m") as clients:
            place(tmp_path / "2", models / "half" / "2")
            wait_for_states(server, "m", {1: "END", 2: "AVAILABLE"})
            # A broken version leaves the old one where it is; the next one takes over.
            (tmp_path / "3").mkdir()
            wait_for_states(server, "m", {1: "END", 2: "AVAILABLE", 3: "END"})
            place(tmp_path / "4", models / "half" / "3")
            wait_for_states(server, "m", {1: "END", 2: "END", 3: "END", 4: "AVAILABLE"})
            shutil.rmtree(tmp_path)
            time.sleep(1.2)  # one look at the base path that is gone
        assert states(server, "m")[4] == "AVAILABLE"
        told = call("GET", "/v1/models/m/versions/3", port=server.rest).json["model_version_status"][0][
            "status"
        ]
    assert set(clients.answers) == {(200, 2.0), (200, 3.0), (200, 4.0)}
    assert told["error_code"] == "NOT_FOUND"
    assert told["error_message"].startswith(
        "Specified file path does not appear to contain a SavedModel bundle"
    )


def test_half_copied_version_is_tried_again_until_it_is_whole(models, tmp_path):
    place(tmp_path / "1", models / "half" / "1")
    flags = ("--model_name=m", f"--model_base_path={tmp_path}", "--load_retry_interval_micros=200000")
    with served(*flags, "--max_num_load_retries=100") as server:
        (tmp_path / "2").mkdir()
        shutil.copy(models / "half" / "2" / "saved_model.pb", tmp_path / "2")
        support_serve.read_until(server.process, "load failed model=m version=2 attempt=2/101")
        assert states(server, "m") == {1: "AVAILABLE", 2: "LOADING"}
        shutil.copytree(models / "half" / "2" / "variables", tmp_path / "2" / "variables")
        wait_for_states(server, "m", {1: "END", 2: "AVAILABLE"})


# --- reload ---


def config_text(models, *entries) -> str:
    listed = (
        f'config {{ name: "{name}" base_path: "{models / base}" model_platform: "tensorflow" {rest} }}'
        for name, base, rest in entries
    )
    return f"model_config_list {{ {' '.join(listed)} }}"


def reload_request(text, metrics=()):
    from google.protobuf import text_format
    from tensorflow_serving.apis import model_management_pb2

    message = model_management_pb2.ReloadConfigRequest(metric_names=metrics)
    text_format.Parse(text, message.config)
    return message


def reloaded(server, text, metrics=()):
    return server.model.HandleReloadConfigRequest(reload_request(text, metrics), timeout=20)


def reload_refused(server, text) -> tuple[str, str]:
    import grpc

    with pytest.raises(grpc.RpcError) as caught:
        reloaded(server, text)
    return caught.value.code().name, caught.value.details()


def label(version) -> str:
    return f'model_version_policy {{ all {{}} }} version_labels {{ key: "stable" value: {version} }}'


@pytest.fixture(scope="module")
def server(models):
    """A server of one model in all its versions, without labels yet."""
    path = models / "manager.config"
    path.write_text(config_text(models, ("half", "half", "model_version_policy { all {} }")))
    with served(f"--model_config_file={path}", "--max_num_load_retries=0") as server:
        wait_for_states(server, "half", {1: "AVAILABLE", 2: "AVAILABLE", 3: "AVAILABLE"})
        yield server


def test_label_moves_by_reload_and_both_interfaces_follow(server, models):
    for version, answer in ((1, 1.0), (2, 2.0)):
        response = reloaded(server, config_text(models, ("half", "half", label(version))), ["a:counter"])
        assert response.status.error_code == 0
        assert [(each.name, each.int64_value_increase) for each in response.metric] == [("a:counter", 0)]
        assert predict("half/labels/stable", {"instances": [0]}, server.rest).json == {
            "predictions": [answer]
        }
        message = request("half", x=np.float32([0]))
        message.model_spec.version_label = "stable"
        got = server.prediction.Predict(message)
        assert (got.model_spec.version.value, got.outputs["y"].float_val[0]) == (version, answer)
    message.model_spec.version_label = "other"
    with pytest.raises(Exception, match="Unrecognized servable version label: other"):
        server.prediction.Predict(message)


def test_refused_reload_changes_nothing(server, models):
    unavailable = config_text(models, ("kinds", "kinds", ""), ("half", "half", label(9)))
    assert reload_refused(server, unavailable) == (
        "FAILED_PRECONDITION",
        "Request to assign label to version 9 of model half, which is not currently available for inference",
    )
    for text, part in (
        ("", "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList"),
        ("custom_model_config {}", "ServerModelConfig type not supported by HandleReloadConfigRequest."),
        (config_text(models, ("half", "half", ""), ("half", "half", "")), "Illegal to list model half multiple times"),
        (config_text(models, ("half", "half", "")).replace('"tensorflow"', '"torch"'), "Illegal to change a model's"),
        ('model_config_list { config { name: "n" base_path: "n" model_platform: "tensorflow" } }',
         "Expected model n to have an absolute path or URI; got base_path()=n"),
    ):  # fmt: skip
        code, details = reload_refused(server, text)
        assert code == "INVALID_ARGUMENT"
        assert details.startswith(part)
    assert predict("half", {"instances": [0]}, server.rest).json == {"predictions": [3.0]}
    assert call("GET", "/v1/models/kinds", port=server.rest).status == 404


def test_reload_swaps_models_and_ended_ones_stay_listed(server, models):
    with Clients(server, "half", threads=2) as clients:
        reloaded(server, config_text(models, ("half", "half", ""), ("new", "half", "")))
        assert predict("new", {"instances": [0]}, server.rest).status == 200
        wait_for_states(server, "half", {1: "END", 2: "END", 3: "AVAILABLE"})
    assert {status for status, _ in clients.answers} == {200}
    code, details = reload_refused(server, config_text(models, ("half", "half", ""), ("cold", "cold", "")))
    assert code == "UNKNOWN"
    assert details.startswith(
        "1 model(s) did not become available: {{{name: cold version: 1} due to error: INVALID_"
    )
    wait_for_states(server, "new", {3: "END"})
    reloaded(server, "model_config_list {}")
    wait_for_states(server, "half", {1: "END", 2: "END", 3: "END"})
    assert predict("half", {"instances": [0]}, server.rest).status == 404
    reloaded(server, config_text(models, ("half", "half", "model_version_policy { all {} }")))
    wait_for_states(server, "half", {1: "AVAILABLE", 2: "AVAILABLE", 3: "AVAILABLE"})


def test_config_file_is_polled_and_a_broken_one_changes_nothing(models, tmp_path):
    path = tmp_path / "models.config"
    path.write_text(config_text(models, ("half", "half", "")))
    with served(f"--model_config_file={path}", "--model_config_file_poll_wait_seconds=1") as server:
        path.write_text("nonsense")
        support_serve.read_until(server.process, "model config file is not taken")
        assert predict("half", {"instances": [0]}, server.rest).status == 200
        path.write_text(config_text(models, ("digits", "digits", "")))
        wait_until(lambda: call("GET", "/v1/models/digits", port=server.rest).status == 200)
        wait_for_states(server, "half", {3: "END"})
        wait_for_states(server, "digits", {7: "AVAILABLE"})


# --- start ---


def test_labels_in_the_first_config_fail_the_start_unless_allowed(models, tmp_path):
    path = tmp_path / "models.config"
    path.write_text(config_text(models, ("half", "half", label(3))))
    ports = {"grpc": free_port(), "rest": free_port()}
    assert refusal(f"--model_config_file={path}", **ports) == (
        "Failed to start server. Error: FAILED_PRECONDITION: Request to assign label to version 3 of model half, "
        "which is not currently available for inference\n"
    )
    with served(f"--model_config_file={path}", "--allow_version_labels_for_unavailable_models") as server:
        wait_for_states(server, "half", {1: "AVAILABLE", 2: "AVAILABLE", 3: "AVAILABLE"})
        got = call("GET", "/v1/models/half/labels/stable/metadata", port=server.rest)
        assert got.json["model_spec"]["version"] == "3"


def test_version_that_does_not_fit_the_budget_is_refused_and_the_old_one_serves(models, tmp_path):
    place(tmp_path / "1", models / "half" / "1")
    flags = ("--model_name=m", f"--model_base_path={tmp_path}", f"--memory_budget_bytes={2**31}")
    with served(*flags) as server:
        shutil.copytree(models / "half" / "2", tmp_path / "2.tmp")
        with (tmp_path / "2.tmp" / "variables" / "more").open("wb") as sparse:
            sparse.truncate(2**32)
        (tmp_path / "2.tmp").rename(tmp_path / "2")
        wait_for_states(server, "m", {1: "AVAILABLE", 2: "END"})
        told = call("GET", "/v1/models/m/versions/2", port=server.rest).json["model_version_status"][0][
            "status"
        ]
        assert told["error_code"] == "RESOURCE_EXHAUSTED"
        assert told["error_message"].startswith(
            "Insufficient resources to load servable {name: m version: 2}"
        )
        assert predict("m", {"instances": [0]}, server.rest).json == {"predictions": [1.0]}
