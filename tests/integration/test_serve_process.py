"""The model server as a process: starting, waiting, stopping, trouble; and its command-line client."""

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests import support_serve
from tests.support_serve import (
    GRPC,
    OTHER_GRPC,
    OTHER_REST,
    REST,
    ROOT,
    call,
    end,
    one,
    open_port,
    predict,
    read_until,
    refusal,
    running,
    start,
    wait_ready,
)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folders of models."""
    return support_serve.models(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def address(models):
    """The gRPC address of a server of three models."""
    path = support_serve.config(models, ("half", ""), ("kinds", ""), ("digits", ""))
    with running(f"--model_config_file={path}", grpc=GRPC, rest=REST):
        yield f"127.0.0.1:{GRPC}"


def client(*arguments) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "serve.client", *map(str, arguments)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_client_writes_every_output_of_its_rows(address, tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((3, 8, 8), np.int64))
    done = client("--address", address, "--model", "digits", tmp_path / "rows.npy", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as outputs:
        assert outputs["class"].tolist() == [9, 9, 9]
        assert (outputs["probabilities"].shape, outputs["probabilities"].dtype) == ((3, 10), np.float32)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".npz"] == ["out.npz"]


def test_client_says_in_one_line_why_it_got_no_answer(address, tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((1, 2), np.float32))
    there, rows, out = address, tmp_path / "rows.npy", tmp_path / "out.npz"
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


def test_ports_open_only_when_a_version_is_there(models, tmp_path):
    process = start("--model_name=late", f"--model_base_path={tmp_path / 'late'}")
    try:
        read_until(process, "base path cannot be read model=late")
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
        read_until(process, "base path has no versions model=late")
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


@pytest.mark.parametrize(
    ("prepare", "part"),
    [
        (
            lambda path, models: path.mkdir(),
            "NOT_FOUND: Specified file path does not appear to contain a SavedModel",
        ),
        (
            lambda path, models: path.symlink_to(models / "cold" / "1"),
            "Signature input alias: x(feed name: x:0) not found",
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
    assert "Invalid protobuf file: 'ssl.config'" in refusal(
        "--ssl_config_file=ssl.config", "--model_base_path=/m"
    )
    process = start(f"--model_config_file={tmp_path / 'bad.config'}", "--skip_initialize_tpu", "--nope=1")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 255
    assert out.startswith("unknown argument: --nope=1\nusage: ")
    assert out.endswith(f"Error: INVALID_ARGUMENT: Invalid protobuf file: '{tmp_path / 'bad.config'}'\n")
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig: " in err
    assert "flag without effect here flag=--skip_initialize_tpu" in err
