"""A Trivy that is not what it should be: what it sees, what it can reach, and that it never passes an image."""

import dataclasses
import json
import os
import socket
import threading
import time

import pytest

from deploy.scan import scan
from deploy.trivy import Trivy
from pipeline.errors import ProgramFailed
from tests.support_images import model_image
from tests.support_trivy import given, spy

ANSWER = 'while [ $# -gt 0 ]; do [ "$1" = --output ] && echo "$said" > "$2"; shift; done'


def told(tmp_path) -> dict:
    """How the last Trivy was confined."""
    return json.loads((tmp_path / "state/work/examine/confined.json").read_text())


@pytest.fixture
def confined(tmp_path):
    """Whether this kernel confines; on a laptop that does not, a test of it is skipped, and in CI it fails."""

    def check() -> None:
        said = told(tmp_path)
        if all(said.values()):
            return
        if os.environ.get("CI"):
            pytest.fail(f"this kernel does not confine a program: {said}")
        pytest.skip(f"this kernel does not confine a program: {said}")

    return check


def ran(tmp_path, monkeypatch, script: str) -> str:
    """What a script in Trivy's place wrote into the one folder that it may write."""
    spy(tmp_path, monkeypatch, f"exec > seen 2>&1\n{script}\nexit 1")
    with pytest.raises(ProgramFailed):
        scan(given(tmp_path, model_image(tmp_path)[0]))
    return (tmp_path / "state/work/examine/files/seen").read_text()


def test_trivy_gets_no_secret_login_or_proxy_of_our_environment(tmp_path, monkeypatch):
    for name in (
        "TIDEGATE_SIGNING_KEY",
        "CI_JOB_TOKEN",
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "HTTPS_PROXY",
    ):
        monkeypatch.setenv(name, "http://hunter2")
    monkeypatch.setenv("DOCKER_CONFIG", "/hunter2")
    seen = ran(tmp_path, monkeypatch, "env")
    assert "hunter2" not in seen
    assert {line.partition("=")[0] for line in seen.splitlines()} <= {
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "PWD",
        "_",
    }
    assert f"HOME={tmp_path}/state/work/examine/files" in seen


def test_trivy_reads_neither_keys_nor_the_repository_nor_other_processes(tmp_path, monkeypatch, confined):
    secret = tmp_path / "state/keys/laptop.pem"
    secret.parent.mkdir(parents=True)
    secret.write_text("hunter2")
    places = (secret, tmp_path / "repository/model.py", f"/proc/{os.getpid()}/environ", "/etc/passwd")
    monkeypatch.setenv("PASSWORD", "hunter2")
    seen = ran(tmp_path, monkeypatch, "\n".join(f"cat {place}" for place in places))
    confined()
    assert seen.count("Permission denied") == len(places)
    assert "hunter2" not in seen
    assert "root:" not in seen


def test_trivy_writes_nothing_beyond_its_own_folder(tmp_path, monkeypatch, confined):
    layout, _ = model_image(tmp_path)
    places = (
        tmp_path / "repository/model.py",
        tmp_path / "state/trivy/evil",
        layout / "index.json",
        tmp_path / "state/work/examine/plan.json",
        "/tmp/evil-of-a-test",
    )
    seen = ran(
        tmp_path, monkeypatch, "\n".join(f"echo evil > {place}" for place in places) + "\necho mine > mine"
    )
    confined()
    assert seen.count("Permission denied") == len(places)
    assert (tmp_path / "state/work/examine/files/mine").read_text() == "mine\n"
    assert (tmp_path / "repository/model.py").read_text() == "units = 64\n"


def test_trivy_reaches_no_server_and_stops_no_process(tmp_path, monkeypatch, confined):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        python = "/usr/bin/python3"
        connects = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        seen = ran(
            tmp_path,
            monkeypatch,
            f'[ -x {python} ] && {python} -c "{connects}"\nkill -9 {os.getpid()} && echo killed',
        )
        confined()
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
        assert "killed" not in seen
        assert "Error" in seen or not os.access(python, os.X_OK)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 1", "Trivy failed with exit status 1"),
        ("kill -SEGV $$", "Trivy failed with exit status"),
        ("exit 0", "is not JSON"),
        (f"said='<html>'; {ANSWER}", "is not JSON"),
        (f"said='{{}}'; {ANSWER}", "names no SchemaVersion|without a version|ImageID|neither CycloneDX"),
        ("ln -s /etc/hostname _report.json", "is not JSON"),
        ("mkfifo _report.json", "is not JSON"),
        ("printf 'x\tFATAL\tFatal error\tdisk on fire\\n' >&2; exit 1", "disk on fire"),
    ],
)
def test_trivy_that_fails_never_passes_an_image(tmp_path, monkeypatch, script, says):
    spy(tmp_path, monkeypatch, script)
    made = given(tmp_path, model_image(tmp_path)[0], database=False)
    with pytest.raises(ProgramFailed, match=says):
        scan(made)
    assert list(made.out.iterdir()) == []
    assert not (made.root / "build").exists()


def test_trivy_that_hangs_is_stopped_and_never_passes_an_image(tmp_path, monkeypatch):
    spy(tmp_path, monkeypatch, "sleep 60")
    monkeypatch.setattr("deploy.examine._CANARY_TIMEOUT_S", 1.0)
    began = time.monotonic()
    with pytest.raises(ProgramFailed, match="did not end within 1 s"):
        scan(given(tmp_path, model_image(tmp_path)[0]))
    assert time.monotonic() - began < 45


@pytest.mark.parametrize("ending", ["exit 1", "sleep 60"])
def test_what_trivy_started_in_a_session_of_its_own_ends_with_it(tmp_path, monkeypatch, ending):
    # It holds a pipe to us open, whose end we see as soon as it is gone.
    starts = "(setsid sh -c 'touch begun; exec sleep 300' > held 2>&1 < /dev/null &)"
    waits = "while [ ! -e begun ]; do sleep 0.02; done"
    spy(tmp_path, monkeypatch, f"mkfifo held\n{starts}\n{waits}\n{ending}")
    monkeypatch.setattr("deploy.examine._CANARY_TIMEOUT_S", 2.0)
    opened = threading.Event()
    held = tmp_path / "state/work/examine/files/held"

    def listen():
        while not held.exists():
            time.sleep(0.02)
        with held.open("rb") as pipe:
            opened.set()
            pipe.read()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    with pytest.raises(ProgramFailed):
        scan(given(tmp_path, model_image(tmp_path)[0]))
    listener.join(20)
    assert opened.is_set()
    assert not listener.is_alive(), "what Trivy started still runs"


def test_trivy_that_floods_its_terminal_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.trivy._SAID_BYTES_AT_MOST", 1 << 20)
    spy(tmp_path, monkeypatch, "yes >&2")
    with pytest.raises(ProgramFailed, match="Trivy said more than 1 MiB and was stopped; nothing is known"):
        scan(given(tmp_path, model_image(tmp_path)[0]))


def test_all_calls_of_trivy_together_have_the_time_of_the_stage(tmp_path):
    given_s = Trivy.prepared(tmp_path / "cache", tmp_path / "work", 5.0)
    late = dataclasses.replace(given_s, ends=given_s.ends - 4.0)
    assert late.left_s <= 1.0 < given_s.left_s
    assert dataclasses.replace(given_s, ends=0.0).left_s > 0


def test_absent_trivy_is_named_with_the_remedy(tmp_path, monkeypatch):
    def absent(name):
        raise ProgramFailed(f"{name} is not on PATH. make setup installs what the pipeline needs.")

    monkeypatch.setattr("deploy.trivy.find", absent)
    with pytest.raises(ProgramFailed, match=r"trivy is not on PATH\. make setup"):
        scan(given(tmp_path, model_image(tmp_path)[0]))
