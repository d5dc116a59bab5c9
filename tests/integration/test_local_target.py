"""The local target and the environments it runs in: start, readiness, staging, stale state, the end of it all."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from deploy import ports, smoke, standing, targets
from deploy.environment import open_environment, read, write
from deploy.targets.base import Release
from deploy.targets.local import Local
from pipeline.errors import ProgramFailed
from pipeline.run import Process
from pipeline.stages import Outcome
from tests import support
from tests import support_server as fake
from tests.support_ports import port

STAGING = f"127.0.0.1:{port(20301)}"


@pytest.fixture
def make(tmp_path):
    """Contexts of one state folder: `make(published, **settings)`."""
    fake.use_fakes()
    rows, predictions, settings = (
        fake.rows(tmp_path),
        fake.predictions(tmp_path),
        support.settings(fake.QUICK),
    )

    def context(published, **changes):
        inputs = {"publish/published": published, "data/rows": rows, "evaluate/predictions": predictions}
        dotted = {name.replace("__", "."): value for name, value in changes.items()}
        return support.context(tmp_path, inputs, {**fake.QUICK, **dotted})

    yield context
    targets.down(settings, tmp_path / "state")


def _rows(context) -> list[dict]:
    return targets.look(context.settings, context.state)


def _evidence(context) -> dict:
    return json.loads((context.out / "evidence" / "staging.json").read_text())


def test_staging_starts_the_published_digest_and_compares_its_answers(make, tmp_path):
    context = make(fake.publish(tmp_path, 1))
    result = smoke.staging(context)
    assert result.outcome is Outcome.PASSED, result.sentence
    said = _evidence(context)
    assert (said["skew_rest"], said["skew_grpc"], said["golden_requests"]) == (0, 0, 8)
    assert len(said["latencies_ms"]) == 8
    assert said["p50_ms"] <= said["p99_ms"] < 250
    assert result.decided.name == "p99 latency in ms"
    assert standing.not_in_staging(context) is None
    assert standing.not_in_production(context) == "production is not running"


def test_staging_replaces_the_version_before_and_runs_again_in_the_same_process(make, tmp_path):
    smoke.staging(make(fake.publish(tmp_path, 1)))
    second = make(fake.publish(tmp_path, 2))
    assert smoke.staging(second).outcome is Outcome.PASSED
    (row,) = _rows(second)
    assert (row["version"], row["role"], row["weight"]) == (2, "stable", 100)
    assert smoke.staging(second).outcome is Outcome.PASSED
    assert _rows(second)[0]["pid"] == row["pid"]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"wrong_by": 0.001}, "skew over REST 0.001"),
        ({"latency_s": 0.3}, "p99 latency in ms"),
        ({"error_rate": 1.0}, "500"),
    ],
)
def test_staging_refuses_a_version_and_the_one_before_goes_on_serving(make, tmp_path, knobs, said):
    first = make(fake.publish(tmp_path, 1))
    smoke.staging(first)
    before = _rows(first)
    result = smoke.staging(make(fake.publish(tmp_path, 2, **knobs)))
    assert result.outcome is Outcome.FAILED
    assert said in result.sentence
    after = _rows(first)
    assert [(row["version"], row["pid"], row["weight"]) for row in after] == [(1, before[0]["pid"], 100)]
    assert standing.not_in_staging(first) is None
    assert len(_servers(tmp_path)) == 1


def test_version_that_ends_as_it_starts_is_told_at_once_with_its_last_words(make, tmp_path):
    context = make(fake.publish(tmp_path, 1, exit=3), target__ready_timeout_s=60)
    began = time.monotonic()
    with pytest.raises(
        ProgramFailed, match=r"ended before it was ready(.|\n)*cannot load the model: as told"
    ):
        smoke.staging(context)
    assert time.monotonic() - began < 10
    assert _rows(context) == []


def test_version_that_does_not_become_ready_is_stopped_with_its_last_words(make, tmp_path):
    smoke.staging(make(fake.publish(tmp_path, 1)))
    context = make(fake.publish(tmp_path, 2, never_ready=True), target__ready_timeout_s=1)
    with pytest.raises(
        ProgramFailed, match=r"not ready within target.ready_timeout_s \(1 s\)(.|\n)*fake server"
    ):
        smoke.staging(context)
    assert [row["version"] for row in _rows(context)] == [1]
    assert len(_servers(tmp_path)) == 1


def test_port_that_is_lost_between_choice_and_start_is_chosen_again(make, tmp_path, monkeypatch):
    context = make(fake.publish(tmp_path, 1))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        lost, free = other.getsockname()[1], ports.free
        offers = iter([(lost, free(1)[0]), free(2)])
        monkeypatch.setattr(ports, "free", lambda count: next(offers))
        target = Local(context.settings, context.state, "staging", (os.sys.executable, fake.__file__))
        noted = []
        version = target.start(Release.read(context.inputs["publish/published"]), noted.append)
    target.stop(version, 5)
    assert [one.rest == lost for one in noted] == [True, False]
    assert not any(target.alive(one) for one in noted)


def test_taken_public_port_is_told_before_anything_is_started(make, tmp_path):
    context = make(fake.publish(tmp_path, 1))
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port(20300)))
        other.listen()
        with pytest.raises(ProgramFailed, match=f"{port(20300)}.*process {os.getpid()}.*staging.grpc_port"):
            smoke.staging(context)
    assert _servers(tmp_path) == []


def test_stale_state_is_cleaned_and_a_reused_process_id_is_left_alone(make, tmp_path):
    context = make(fake.publish(tmp_path, 1))
    smoke.staging(context)
    now = read(context.state, "staging")
    fake.kill(now.router.process.pid)
    fake.kill(now.placed[0].version.process.pid)
    import dataclasses

    me = Process(os.getpid(), 1)  # our id, another birth: what a reused id looks like
    stale = dataclasses.replace(now.placed[0], version=dataclasses.replace(now.placed[0].version, process=me))
    write(context.state, "staging", dataclasses.replace(now, placed=(stale,)))
    assert "has ended" in standing.not_in_staging(context)
    assert smoke.staging(context).outcome is Outcome.PASSED
    assert len(_rows(context)) == 1


def test_router_moves_when_settings_name_other_ports(make, tmp_path):
    published = fake.publish(tmp_path, 1)
    smoke.staging(make(published))
    pid = _rows(make(published))[0]["pid"]
    context = make(published, staging__rest_port=port(20341))
    assert smoke.staging(context).outcome is Outcome.PASSED
    assert (_rows(context)[0]["pid"], _rows(context)[0]["rest"]) == (pid, f"127.0.0.1:{port(20341)}")
    assert not ports.taken("127.0.0.1", port(20301))


def test_look_says_what_runs_and_down_leaves_no_process(make, tmp_path):
    context = make(fake.publish(tmp_path, 1))
    smoke.staging(context)
    (row,) = _rows(context)
    assert (row["environment"], row["rest"], row["alive"], row["router_alive"]) == (
        "staging",
        STAGING,
        True,
        True,
    )
    assert row["requests"] == 9  # one per golden row over REST, one over gRPC
    said = targets.down(context.settings, context.state)
    assert said == [f"staging: version 1 (process {row['pid']})", said[1]]
    assert said[1].startswith("staging: router (process ")
    assert _servers(tmp_path) == []
    assert _routers(tmp_path) == []
    assert targets.down(context.settings, context.state) == []
    assert standing.not_in_staging(context) == "staging is not running"


def test_down_works_though_the_router_is_dead_and_the_state_is_lost(make, tmp_path):
    context = make(fake.publish(tmp_path, 1))
    smoke.staging(context)
    fake.kill(read(context.state, "staging").router.process.pid)
    standing.state_file(context.state, "staging").write_text("{")
    (said,) = targets.down(context.settings, context.state)
    assert said.startswith("a model server that nobody noted")
    assert _servers(tmp_path) == []


def test_environment_is_reused_not_restarted(make, tmp_path):
    context = make(fake.publish(tmp_path, 1))
    first = open_environment(context, "staging").router
    assert open_environment(context, "staging").router == first


def _servers(tmp_path) -> list[str]:
    return _processes(f"--model_base_path={tmp_path}")


def _routers(tmp_path) -> list[str]:
    return _processes(f"{tmp_path}/state/run/staging/envoy.json")


def _processes(part: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found += [folder.name] if part.encode() in (folder / "cmdline").read_bytes() else []
        except OSError:
            continue
    return found
