"""What the docker target would ask of the engine, and what it makes of the answers; no engine is asked here."""

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy import engine, handles, standing, targets
from deploy.engine import Container
from deploy.environment import Placed, State, read, write
from deploy.router import Router
from deploy.targets import containers, docker, images, output, sdk
from deploy.targets.base import Release, Version
from deploy.targets.containers import Place
from pipeline import operate
from pipeline.errors import ProgramFailed, SettingsError
from pipeline.run import Process
from tests import support
from tests.support_images import hand_image, tar

DIGEST = "sha256:" + "a" * 64
SERVER = "tensorflow/serving@sha256:" + "b" * 64
CONTAINER = Container("c" * 64, "tidegate-digits-staging-v3-abcdef", "0123456789ab")
SETTINGS = {"target.kind": "docker", "target.server": SERVER}


def _options(**changes) -> dict:
    settings = support.settings({**SETTINGS, **changes})
    return containers.version(
        settings, Place("s", "staging"), Release("oci:r", DIGEST, 3), "id", Path("/m/3")
    )


def test_server_is_asked_for_as_the_image_of_tf_serving_understands_it():
    """Its entrypoint runs `tensorflow_model_server --port=8500 --rest_api_port=8501 --model_name=${MODEL_NAME}
    --model_base_path=${MODEL_BASE_PATH}/${MODEL_NAME} "$@"`, MODEL_BASE_PATH being /models; it has bash, and no curl.
    """
    options = _options()
    assert options["environment"]["MODEL_NAME"] == "digits"
    assert options["volumes"] == {"/m/3": {"bind": "/models/digits", "mode": "ro"}}
    assert (containers.REST, containers.GRPC) == ("8501/tcp", "8500/tcp")
    assert options["command"] == ["--max_num_load_retries=0"]
    assert "entrypoint" not in options
    assert options["healthcheck"]["test"][:3] == ["CMD", "bash", "-c"]
    assert "GET /v1/models/digits HTTP/1.0" in options["healthcheck"]["test"][3]
    assert "python" not in options["healthcheck"]["test"][3]


def test_serve_image_understands_what_the_image_of_tf_serving_does(root):
    recipe = (root / "docker/serve.Dockerfile").read_text()
    assert 'ENTRYPOINT ["/usr/bin/tf_serving_entrypoint.sh"]' in recipe
    script = (root / "docker/tf_serving_entrypoint.sh").read_text()
    for part in (
        "exec tensorflow_model_server --port=8500 --rest_api_port=8501",
        '--model_name="${MODEL_NAME}"',
        '--model_base_path="${MODEL_BASE_PATH}/${MODEL_NAME}" "$@"',
    ):
        assert part in script
    assert "MODEL_BASE_PATH=/models" in recipe
    assert "\nUSER 65532:65532\n" in recipe


def test_container_may_do_nothing_that_a_server_need_not():
    options = _options()
    assert options["read_only"]
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert not options["user"].startswith("0:")
    assert (options["mem_limit"], options["memswap_limit"]) == ("2048m", "2048m")
    assert list(options["volumes"]) == ["/m/3"]
    assert options["restart_policy"] == {"Name": "no"}


@pytest.mark.parametrize(("uid", "expected"), [(0, "65532:65532"), (1000, "1000:100")])
def test_no_container_runs_as_root(uid, expected):
    assert containers.user(uid, 100) == expected


def test_container_never_gets_more_processors_than_there_are():
    assert _options(**{"target.cpus": 1024.0})["nano_cpus"] == (os.cpu_count() or 1) * 10**9
    assert _options(**{"target.cpus": 0.5})["nano_cpus"] == 5 * 10**8


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"target.ready_timeout_s": 7}, True),
        ({"target.memory_mib": 512}, False),
        ({"target.server": "sha256:" + "c" * 64}, False),
    ],
)
def test_setup_tells_what_was_started_with_other_options(changes, same):
    mine = containers.version_setup(support.settings(SETTINGS))
    assert (containers.version_setup(support.settings(SETTINGS | changes)) == mine) is same
    target = docker.Docker(support.settings(SETTINGS | changes), Path("/state"), "staging")
    assert target.runs(Version(3, DIGEST, Container("c", "n", mine), 1, 2, "/m")) is same


def test_process_is_no_container_and_the_other_way_round(tmp_path):
    version = Version(3, DIGEST, Process(1, 2), 1, 2, "/m")
    contained = Version(3, DIGEST, CONTAINER, 1, 2, "/m")
    assert not docker.Docker(support.settings(SETTINGS), tmp_path, "staging").runs(version)
    local = targets.Local(support.settings(), tmp_path, "staging")
    assert local.runs(version)
    assert not local.runs(contained)


def test_router_is_what_settings_ask_for_or_is_replaced(tmp_path):
    image = "sha256:" + "d" * 64
    process = Router(tmp_path, Process(1, 2), "a", "b", "c")
    contained = Router(tmp_path, Container("c", "n", containers.router_setup(image)), "a", "b", "c")
    for wanted, router, expected in (
        ("", process, True),
        ("", contained, False),
        (image, contained, True),
        (image, process, False),
        ("sha256:" + "e" * 64, contained, False),
    ):
        settings = support.settings(SETTINGS | {"target.router": wanted})
        assert docker.Docker(settings, tmp_path, "staging").routes(router) is expected


def test_places_of_two_clones_differ_and_labels_name_them(tmp_path):
    one, other = Place.of(tmp_path / "a", "staging"), Place.of(tmp_path / "b", "staging")
    assert one.state != other.state
    assert one.labels(role="version") == {
        containers.STATE: one.state,
        containers.ENVIRONMENT: "staging",
        containers.ROLE: "version",
    }
    assert containers.ENVIRONMENT not in Place.of(tmp_path, "").labels()


# --- handles and state --------------------------------------------------------------------------------


@pytest.mark.parametrize("handle", [Process(12, 34), CONTAINER])
def test_handle_that_is_written_is_read_again(handle):
    assert handles.read(json.loads(json.dumps(handles.document(handle)))) == handle


def test_version_of_a_container_has_a_key_without_dots():
    assert Version(3, DIGEST, CONTAINER, 1, 2, "/m").key == "v3_cccccccccccc"
    assert str(CONTAINER) == "container tidegate-digits-staging-v3-abcdef"


def test_state_with_containers_is_read_again(tmp_path):
    router = Router(Path("/run"), Container("d" * 64, "r", "s"), "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    now = State(router, (Placed(Version(3, DIGEST, CONTAINER, 10, 11, "/m"), "stable", 100),))
    write(tmp_path, "production", now)
    assert read(tmp_path, "production") == now


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"Running": True, "Restarting": False}, None),
        ({"Running": False, "Restarting": True}, None),
        ({"Running": False, "Restarting": False}, "production's router (container r) has ended"),
        (None, "production's router (container r) has ended"),
        (engine.EngineSilent("gone"), "production's router (container r) cannot be looked at: gone"),
    ],
)
def test_what_stands_is_told_by_the_engine(tmp_path, monkeypatch, state, reason):
    router = Router(Path("/run"), Container("d" * 64, "r", "s"), "a", "b", "c")
    write(
        tmp_path,
        "production",
        State(router, (Placed(Version(3, DIGEST, CONTAINER, 1, 2, "/m"), "stable", 100),)),
    )
    (tmp_path / "published.json").write_text(json.dumps({"digest": DIGEST, "version": 3}))

    def look(self):
        if isinstance(state, Exception):
            raise state
        return state and {"State": state}

    monkeypatch.setattr(Container, "look", look)
    assert standing.why_not(tmp_path, "production", tmp_path) == reason


def test_what_the_engine_says_is_told_in_the_words_of_docker_ps(monkeypatch):
    seen = {
        "State": {
            "Status": "running", "Running": True, "Restarting": False, "Pid": 7,
            "StartedAt": "2026-01-31T10:00:00.123456789Z", "Health": {"Status": "healthy"},
        },
        "Config": {"Labels": {containers.DIGEST: DIGEST}},
        "NetworkSettings": {"Ports": {"8501/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9"}], "8500/tcp": None}},
        "RestartCount": 2,
    }  # fmt: skip
    monkeypatch.setattr(Container, "look", lambda self: seen)
    told = targets._seen(CONTAINER)
    assert told["name"] == CONTAINER.name
    assert (told["health"], told["restarts"], told["since"]) == ("healthy", 2, "2026-01-31T10:00:00Z")
    assert told["ports"] == ["127.0.0.1:9->8501/tcp"]


def test_engine_of_another_machine_is_refused(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    with pytest.raises(ProgramFailed, match=r"DOCKER_HOST is tcp://10.0.0.1:2375.*this machine's own engine"):
        engine.address()


@pytest.mark.parametrize(
    ("state", "end"),
    [
        ({"OOMKilled": True, "Status": "exited", "ExitCode": 137}, "target.memory_mib (2048 MiB)"),
        ({"OOMKilled": False, "Status": "exited", "ExitCode": 3}, "(exit status 3)"),
        ({"OOMKilled": False, "Status": "running", "ExitCode": 0}, ""),
    ],
)
def test_end_of_a_container_is_told_where_it_says_more_than_the_log(monkeypatch, state, end):
    monkeypatch.setattr(Container, "look", lambda self: {"State": state})
    said = docker._end(CONTAINER, support.settings())
    assert end in said
    assert bool(said) is bool(end)


# --- images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "serves"), [({}, False), ({"Entrypoint": ["/s"]}, True), ({"Cmd": ["/s"]}, True)]
)
def test_published_image_tells_whether_it_is_a_server(tmp_path, config, serves):
    digest = hand_image(tmp_path, tar({"models/digits/1/a": b"x"}), config=config)
    assert images.Published.read(Release(f"oci:{tmp_path}", digest, 3)).serves is serves


def test_data_image_without_a_server_to_serve_it_is_a_matter_of_settings(tmp_path):
    digest = hand_image(tmp_path, tar({"models/digits/1/a": b"x"}))
    settings = support.settings({"target.kind": "docker"})
    with pytest.raises(SettingsError, match=r"v3 is a data image.*target.server names no image"):
        images.Images(settings, "home").for_version(Release(f"oci:{tmp_path}", digest, 3))


# --- logs ---------------------------------------------------------------------------------------------


def test_logs_of_what_has_ended_are_read_from_its_file(tmp_path):
    (tmp_path / "logs").mkdir()
    for number, text in ((1, "old\n"), (2, "a\nb\nc")):
        (tmp_path / "logs" / f"staging-v{number}.log").write_text(text)
        os.utime(tmp_path / "logs" / f"staging-v{number}.log", (number, number))
    assert list(targets.logs(tmp_path, "staging", 2, follow=False)) == ["v2 | b", "v2 | c"]
    assert list(targets.logs(tmp_path, "production", 2, follow=False)) == []


@pytest.mark.parametrize(("tail", "lines"), [(0, []), (1, ["v2 | c"]), (3, ["v2 | a", "v2 | b", "v2 | c"])])
def test_as_many_lines_of_a_log_are_shown_as_are_asked_for(tmp_path, tail, lines):
    file = tmp_path / "log"
    file.write_text("a\nb\nc")
    assert list(output.merged([output.Writer("v2", None, file)], tail, follow=False)) == lines


def test_negative_number_of_lines_is_refused(tmp_path):
    runner = SimpleNamespace(paths=SimpleNamespace(state=tmp_path))
    with pytest.raises(SettingsError, match="--tail -5 is no number of lines"):
        operate.print_logs(runner, "staging", -5, follow=False)


@pytest.mark.parametrize("follow", [False, True])
def test_container_that_was_removed_hides_no_other_log_and_is_told_with_the_next_move(
    tmp_path, monkeypatch, follow
):
    @contextlib.contextmanager
    def speaking(doing, timeout_s):
        raise sdk.Refused(doing, "No such container")
        yield

    monkeypatch.setattr(sdk, "speaking", speaking)
    monkeypatch.setattr(Container, "look", lambda self: None)
    for name in ("v1", "v2"):
        (tmp_path / name).write_text(f"{name} was here\n")
    writers = [output.Writer("v2", CONTAINER, tmp_path / "v2"), output.Writer("v1", None, tmp_path / "v1")]
    seen = []
    with pytest.raises(
        ProgramFailed, match=rf"^v2: {CONTAINER} is gone.*make ci-local.*/v2 has what earlier"
    ):
        seen.extend(output.merged(writers, 5, follow))
    assert seen == ["v1 | v1 was here"]


def test_lines_are_split_wherever_the_pieces_of_a_stream_end():
    assert list(output._split([b"on", b"e\ntwo\nthr", b"ee"])) == ["one", "two", "three"]
