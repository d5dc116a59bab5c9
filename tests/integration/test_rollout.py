"""Canary, promotion and rollback with a real Envoy in front of fake model servers: processes, and containers."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from deploy import engine, handles, rollout, standing, targets
from deploy.environment import read
from deploy.load import Load, bodies
from deploy.targets.containers import Place
from deploy.web import Session
from pipeline.errors import ProgramFailed
from pipeline.stages import Outcome
from tests import support, support_docker, support_engine
from tests import support_server as fake
from tests.support_server import until, who

PORT = fake.PORTS["production.rest_port"]
PRODUCTION = f"127.0.0.1:{PORT}"


class World:
    """One state folder, and the stages as the runner calls them."""

    def __init__(self, tmp_path: Path, changes: dict):
        self.tmp_path = tmp_path
        self.rows = fake.rows(tmp_path)
        self.changes = {**fake.QUICK, **changes}
        self.count = 0

    def inputs(self, published: Path, **more) -> dict:
        return {"publish/published": published, "data/rows": self.rows, **more}

    def context(self, published: Path, **more):
        """A context with an `out` of its own, and the state folder that all share."""
        self.count += 1
        made = support.context(self.tmp_path, self.inputs(published, **more), self.changes)
        object.__setattr__(made, "out", self.tmp_path / f"out-{self.count}")
        return made

    def canary(self, published: Path):
        context = self.context(published)
        return rollout.canary(context), context.out / "evidence"

    def release(self, published: Path):
        """Canary and promotion, both of which must pass; the evidence of the canary."""
        result, evidence = self.canary(published)
        assert result.outcome is Outcome.PASSED, result.sentence
        promoted = rollout.promote(self.context(published, **{"canary/evidence": evidence}))
        assert promoted.outcome is Outcome.PASSED
        return evidence

    @property
    def state(self) -> Path:
        return self.tmp_path / "state"

    def rows_of(self, name="production") -> list[dict]:
        return [
            row
            for row in targets.look(support.settings(self.changes), self.state)
            if row["environment"] == name
        ]

    def by_role(self) -> dict[str, dict]:
        return {row["role"]: row for row in self.rows_of()}

    def why_not(self, published: Path):
        return standing.not_in_production(self.context(published))

    def client(self, rps: float = 100) -> Load:
        """A client of production that must not notice anything."""
        requests = bodies(self.rows / "test_features.npy")
        return Load(PRODUCTION, "/v1/models/digits:predict", requests, rps)

    def start_canary(self, published: Path):
        return support.start_stage(
            "tests.support_server.canary",
            self.tmp_path,
            {**self.inputs(published)},
            self.changes,
        )


@pytest.fixture(params=["local", pytest.param("docker", marks=support_engine.SLOW)])
def world(request, tmp_path):
    """A world of processes, and one of containers; nothing of it is left afterwards."""
    fake.use_fakes()
    made = World(tmp_path, support_docker.settings() if request.param == "docker" else {})
    yield made
    targets.down(support.settings(made.changes), made.state)
    if request.param == "docker":
        assert engine.labelled(Place.of(made.state, "").labels()) == []


def test_first_version_is_judged_alone_and_promoted_in_its_own_process(world):
    first = fake.publish(world.tmp_path, 1)
    assert world.why_not(first) == "production is not running"
    evidence = world.release(first)
    said = json.loads((evidence / "canary.json").read_text())
    assert said["stable"] is None
    assert [step["share"] for step in said["steps"]] == [100]
    stable = world.by_role()["stable"]
    assert who(stable) == who(said["candidate"])
    assert stable["weight"] == 100
    assert world.why_not(first) is None


def test_second_version_walks_the_steps_is_promoted_and_rolled_back_while_clients_notice_nothing(world):
    first, second = fake.publish(world.tmp_path, 1), fake.publish(world.tmp_path, 2)
    world.release(first)
    old = world.by_role()["stable"]
    with world.client() as client:
        result, evidence = world.canary(second)
        assert result.outcome is Outcome.PASSED, result.sentence
        said = json.loads((evidence / "canary.json").read_text())
        assert [step["share"] for step in said["steps"]] == [10, 50]
        assert {role: row["weight"] for role, row in world.by_role().items()} == {
            "stable": 50,
            "candidate": 50,
        }
        assert world.why_not(first) == "production's version 1 has 50 % of the traffic"

        promoted = rollout.promote(world.context(second, **{"canary/evidence": evidence}))
        now = world.by_role()
        assert who(now["stable"]) == who(said["candidate"])
        assert who(now["previous"]) == who(old)
        assert (now["stable"]["weight"], now["previous"]["weight"]) == (100, 0)
        assert world.why_not(second) is None

        again = rollout.promote(world.context(second, **{"canary/evidence": evidence}))
        assert again.outcome is Outcome.PASSED
        assert who(world.by_role()["stable"]) == who(said["candidate"])

        back = rollout.rollback(world.context(first))
        assert who(world.by_role()["stable"]) == who(old)
        assert who(world.by_role()["previous"]) == who(said["candidate"])
    told = client.told()
    assert told.failed == 0
    assert told.sent > 50
    assert back.numbers["switch_s"] > 0
    print(
        f"promotion {1000 * promoted.numbers['switch_s']:.0f} ms, rollback {1000 * back.numbers['switch_s']:.0f} ms"
    )


def test_one_version_is_kept_warm_and_an_older_one_is_started_again_for_a_rollback(world):
    published = [fake.publish(world.tmp_path, number) for number in (1, 2, 3)]
    for one in published:
        world.release(one)
    assert {row["role"]: row["version"] for row in world.rows_of()} == {"stable": 3, "previous": 2}
    assert len(list((world.state / "run" / "models").iterdir())) == 2
    with world.client() as client:
        result = rollout.rollback(world.context(published[0]))
    assert result.outcome is Outcome.PASSED
    assert client.told().failed == 0
    assert {row["role"]: row["version"] for row in world.rows_of()} == {"stable": 1, "previous": 3}


@pytest.mark.parametrize(
    ("world", "knobs", "reason"),
    [
        ("local", {"error_rate": 0.3}, "error rate"),
        ("local", {"error_rate": 0.3, "status": 503}, "error rate"),
        ("local", {"error_rate": 0.3, "status": 400}, "extra error rate"),
        ("local", {"latency_s": 0.3}, "extra slow rate"),
        pytest.param("docker", {"error_rate": 0.3}, "error rate", marks=support_engine.SLOW),
    ],
    indirect=["world"],
)
def test_worse_version_is_rolled_back_by_itself(world, knobs, reason):
    first, worse = fake.publish(world.tmp_path, 1), fake.publish(world.tmp_path, 2, **knobs)
    world.release(first)
    result, evidence = world.canary(worse)
    assert result.outcome is Outcome.FAILED
    assert reason in result.sentence
    said = json.loads((evidence / "canary.json").read_text())
    assert len(said["steps"]) == 1
    assert world.why_not(first) is None
    assert [row["role"] for row in world.rows_of()] == ["stable"]
    assert not handles.read(said["candidate"]).alive()


def test_first_version_that_fails_is_stopped(world):
    result, _ = world.canary(fake.publish(world.tmp_path, 1, error_rate=0.5))
    assert result.outcome is Outcome.FAILED
    assert world.rows_of() == []


def test_canary_without_requests_holds_and_goes_back(world):
    first, second = fake.publish(world.tmp_path, 1), fake.publish(world.tmp_path, 2)
    world.release(first)
    world.changes |= {"canary.load_rps": 0, "canary.step_timeout_s": 1}
    result, _ = world.canary(second)
    assert result.outcome is Outcome.NO_DATA
    assert "0 of 10 requests" in result.sentence
    assert world.why_not(first) is None
    assert [row["role"] for row in world.rows_of()] == ["stable"]


def test_version_that_serves_already_is_measured_and_keeps_its_process(world):
    first = fake.publish(world.tmp_path, 1)
    world.release(first)
    serving = who(world.by_role()["stable"])
    result, evidence = world.canary(first)
    assert result.outcome is Outcome.PASSED
    assert result.numbers["requests"] >= 10
    assert who(world.by_role()["stable"]) == serving
    assert rollout.promote(world.context(first, **{"canary/evidence": evidence})).outcome is Outcome.PASSED
    assert who(world.by_role()["stable"]) == serving


def test_same_image_under_another_number_is_served_under_that_number(world):
    first = fake.publish(world.tmp_path, 1)
    world.release(first)
    said = json.loads((first / "published.json").read_text())
    again = world.tmp_path / "published-again"
    again.mkdir()
    (again / "published.json").write_text(json.dumps(said | {"version": 2}))
    assert world.why_not(again) == f"production serves version 1 ({said['digest'][:19]}…)"
    world.release(again)
    assert {role: row["version"] for role, row in world.by_role().items()} == {"stable": 2, "previous": 1}
    requests = bodies(world.rows / "test_features.npy", 1)
    with Session(PRODUCTION, 10) as client:
        status, answer = client.ask("POST", "/v1/models/digits:predict", requests[0])
    assert (status, json.loads(answer)["predictions"][0]["version"]) == (200, 2)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_candidate_that_dies_or_hangs_under_load_loses_no_request_and_is_rolled_back(world, sign):
    first, second = fake.publish(world.tmp_path, 1), fake.publish(world.tmp_path, 2)
    world.release(first)
    world.changes |= {"canary.step_s": 30, "canary.steps": [50], "canary.load_rps": 300}
    with world.client(rps=200) as client:
        killer = threading.Thread(target=_hit_candidate, args=(world, sign))
        killer.start()
        result, evidence = world.canary(second)
        killer.join()
    said = json.loads((evidence / "canary.json").read_text())
    told = client.told()
    print(f"own client: {told.sent} sent, {told.failed} lost; load: {said['clients']}")
    assert result.outcome is Outcome.FAILED
    assert "has ended" in result.sentence
    assert told.failed == 0
    assert said["clients"]["failed"] == 0
    assert world.why_not(first) is None


@pytest.mark.parametrize("part", ["version", "router"])
def test_production_that_hangs_is_seen_and_the_next_promotion_mends_it(world, part):
    first = fake.publish(world.tmp_path, 1)
    evidence = world.release(first)
    now = read(world.state, "production")
    hung = now.router.process if part == "router" else now.by_role("stable").version.process
    os.kill(fake.pid_of(hung), signal.SIGSTOP)
    assert world.why_not(first) == f"production does not answer on port {PORT}"
    assert [row["answers"] for row in world.rows_of()] == [False]
    promoted = rollout.promote(world.context(first, **{"canary/evidence": evidence}))
    assert promoted.outcome is Outcome.PASSED
    assert not hung.alive()
    assert world.why_not(first) is None
    assert [row["answers"] for row in world.rows_of()] == [True]


def test_down_that_is_killed_once_clients_are_refused_is_mended_by_the_next_promotion(world, monkeypatch):
    first = fake.publish(world.tmp_path, 1)
    evidence = world.release(first)
    serving = who(world.by_role()["stable"])
    with monkeypatch.context() as killed:
        killed.setattr(targets, "_stop", _stopped_here)
        with pytest.raises(KeyboardInterrupt):
            targets.down(support.settings(world.changes), world.state)
    assert world.why_not(first) == "production was left in the middle of a change"
    assert [row["answers"] for row in world.rows_of()] == [False]
    assert rollout.promote(world.context(first, **{"canary/evidence": evidence})).outcome is Outcome.PASSED
    assert world.why_not(first) is None
    assert who(world.by_role()["stable"]) == serving


@pytest.mark.parametrize("world", [pytest.param("docker", marks=support_engine.SLOW)], indirect=True)
def test_down_that_the_engine_does_not_answer_refuses_no_client(world, monkeypatch):
    world.changes["target.router"] = ""  # a process: that one could be ended without the engine
    first = fake.publish(world.tmp_path, 1)
    world.release(first)
    with monkeypatch.context() as without:
        without.setenv("DOCKER_HOST", f"unix://{world.tmp_path}/none")
        with pytest.raises(engine.EngineSilent):
            targets.down(support.settings(world.changes), world.state)
        (row,) = world.rows_of()
        assert (row["alive"], row["answers"]) == (None, True)
        assert "does not answer" in row["trouble"]
    assert world.why_not(first) is None


def test_candidate_that_dies_by_itself_is_seen_though_clients_are_rescued(world):
    world.release(fake.publish(world.tmp_path, 1))
    result, evidence = world.canary(fake.publish(world.tmp_path, 2, die_after=10))
    assert result.outcome is Outcome.FAILED
    assert json.loads((evidence / "canary.json").read_text())["clients"]["failed"] == 0


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_canary_that_is_stopped_midway_leaves_traffic_as_it_was(world, sign):
    first, second = fake.publish(world.tmp_path, 1), fake.publish(world.tmp_path, 2)
    world.release(first)
    world.changes |= {"canary.step_s": 60, "canary.step_timeout_s": 90}
    child = world.start_canary(second)
    try:
        until(lambda: world.by_role().get("candidate", {}).get("weight") == 10)
        pid = world.by_role()["candidate"]["pid"]
        began = time.monotonic()
        child.send_signal(sign)
        child.wait(10)
        took_s = time.monotonic() - began
    finally:
        child.kill()
        child.communicate()
    if sign == signal.SIGTERM:
        assert took_s < 4, "the runner waits five seconds before it kills"
        assert world.why_not(first) is None
    else:
        assert world.why_not(first) == "production's version 1 has 90 % of the traffic"
    world.changes |= {"canary.step_s": 0.5}
    assert world.release(second)
    assert world.by_role()["stable"]["version"] == 2
    assert pid not in {row["pid"] for row in world.rows_of()}
    assert not fake.lives(pid)


def test_canary_killed_while_its_version_starts_leaves_no_process_behind_the_next(world):
    first = fake.publish(world.tmp_path, 1)
    world.release(first)
    child = world.start_canary(fake.publish(world.tmp_path, 2, never_ready=True))
    try:
        pid = until(lambda: (world.by_role().get("candidate") or {}).get("pid"))
    finally:
        child.kill()
        child.communicate()
    assert fake.lives(pid)
    world.release(fake.publish(world.tmp_path, 3))
    assert not fake.lives(pid)


def test_rollback_takes_the_traffic_of_a_version_that_was_left_in_its_canary(world):
    first, second = fake.publish(world.tmp_path, 1), fake.publish(world.tmp_path, 2)
    world.release(first)
    world.canary(second)
    number, digest = targets.candidate(world.state)
    assert (number, digest) == (2, world.by_role()["candidate"]["digest"])
    assert rollout.rollback(world.context(first)).outcome is Outcome.PASSED
    assert targets.candidate(world.state) is None
    assert [(row["role"], row["weight"]) for row in world.rows_of()] == [("stable", 100)]
    assert world.why_not(first) is None


def test_promotion_starts_the_digest_again_when_the_judged_process_is_gone(world):
    first, second = fake.publish(world.tmp_path, 1), fake.publish(world.tmp_path, 2)
    world.release(first)
    _, evidence = world.canary(second)
    judged = world.by_role()["candidate"]
    fake.end(read(world.state, "production").by_role("candidate").version.process)
    result = rollout.promote(world.context(second, **{"canary/evidence": evidence}))
    assert "started again" in result.sentence
    assert who(world.by_role()["stable"]) != who(judged)
    assert world.why_not(second) is None


def test_dead_router_is_replaced_in_front_of_the_same_versions(world):
    first = fake.publish(world.tmp_path, 1)
    world.release(first)
    serving = who(world.by_role()["stable"])
    fake.end(read(world.state, "production").router.process)
    until(lambda: "router" in world.why_not(first))
    assert rollout.promote(world.context(first)).outcome is Outcome.PASSED
    assert who(world.by_role()["stable"]) == serving
    assert world.why_not(first) is None


def test_router_that_dies_mid_canary_is_an_error_and_leaves_no_candidate(world):
    first, second = fake.publish(world.tmp_path, 1), fake.publish(world.tmp_path, 2)
    world.release(first)
    world.changes |= {"canary.step_s": 30}
    threading.Thread(target=_kill_router_midway, args=(world,)).start()
    with pytest.raises(ProgramFailed, match="does not answer"):
        world.canary(second)
    assert [row["role"] for row in world.rows_of()] == ["stable"]
    world.changes |= {"canary.step_s": 0.5}
    world.release(second)


def _stopped_here(here) -> None:
    raise KeyboardInterrupt


def _hit_candidate(world, sign: int) -> None:
    until(lambda: ((world.by_role().get("candidate") or {}).get("requests") or 0) > 50)
    os.kill(world.by_role()["candidate"]["pid"], sign)


def _kill_router_midway(world) -> None:
    until(lambda: (world.by_role().get("candidate") or {}).get("requests"))
    fake.end(read(world.state, "production").router.process)
