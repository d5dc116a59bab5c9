"""The docker target with a real engine: how containers are confined, what becomes of them, and all kinds of trouble."""

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from deploy import engine, ports, rollout, smoke, standing, targets
from deploy.environment import open_environment, read
from deploy.image import Recipe, build
from deploy.load import Load, bodies
from deploy.publish import publish
from deploy.targets import containers
from deploy.targets.base import Release
from deploy.targets.containers import Place
from deploy.targets.docker import Docker
from pipeline.errors import ProgramFailed
from pipeline.stages import Outcome
from tests import support, support_docker, support_engine, support_registry
from tests import support_server as fake
from tests.support_docker import docker
from tests.support_images import savedmodel
from tests.support_ports import port
from tests.support_server import until, who

PORTS = {
    "staging.rest_port": port(20351),
    "staging.grpc_port": port(20350),
    "production.rest_port": port(20361),
    "production.grpc_port": port(20360),
}
REGISTRY_PORT, DEAD_PORT = port(20349), port(20348)
pytestmark = support_engine.SLOW
support_engine.need_engine()


class World:
    """One state folder, and contexts as the runner makes them."""

    def __init__(self, folder: Path, **changes):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.changes = {**fake.QUICK, **PORTS, **support_docker.settings(), **changes}
        self.inputs = {"data/rows": fake.rows(folder), "evaluate/predictions": fake.predictions(folder)}

    def context(self, published: Path, **more):
        inputs = {"publish/published": published, **self.inputs, **more}
        return support.context(self.folder, inputs, self.changes)

    def publish(self, number: int, **knobs) -> Path:
        return fake.publish(self.folder, number, **knobs)

    def staging(self, number: int, **knobs):
        return smoke.staging(self.context(self.publish(number, **knobs)))

    def release(self, number: int) -> None:
        """Canary and promotion of a version, both of which must pass."""
        published = self.publish(number)
        assert rollout.canary(self.context(published)).outcome is Outcome.PASSED
        evidence = {"canary/evidence": self.state.parent / "out" / "evidence"}
        assert rollout.promote(self.context(published, **evidence)).outcome is Outcome.PASSED

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def rows(self, name: str) -> list[dict]:
        found = targets.look(support.settings(self.changes), self.state)
        return [row for row in found if row["environment"] == name]

    def containers(self, **labels) -> list[engine.Container]:
        return engine.labelled(Place.of(self.state, "").labels(**labels))

    def client(self) -> Load:
        """A client of production that must not notice anything."""
        requests = bodies(self.inputs["data/rows"] / "test_features.npy")
        return Load(f"127.0.0.1:{PORTS['production.rest_port']}", "/v1/models/digits:predict", requests, 100)

    def down(self) -> list[str]:
        return targets.down(support.settings(self.changes), self.state)


@pytest.fixture
def world(tmp_path):
    fake.use_fakes()
    made = World(tmp_path)
    yield made
    made.down()
    assert made.containers() == []


# --- what a container may do, and what is said of it ----------------------------------------------------


def test_container_of_a_version_is_confined_and_says_what_it_is(world):
    assert world.staging(1).outcome is Outcome.PASSED
    (version,) = world.containers(role="version")
    seen = version.look()
    host = seen["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] == 2048 * 2**20
    assert 0 < host["NanoCpus"] <= 2 * 10**9
    assert host["PidsLimit"] == 4096
    assert not host["Privileged"]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert {one["HostIp"] for published in host["PortBindings"].values() for one in published} == {
        "127.0.0.1"
    }
    (mount,) = seen["Mounts"]
    assert (mount["Destination"], mount["RW"]) == ("/models/digits", False)
    said = json.loads((world.publish(1) / "published.json").read_text())
    labels = seen["Config"]["Labels"]
    assert labels[containers.DIGEST] == said["digest"]
    assert (labels[containers.MODEL], labels[containers.VERSION]) == ("digits", "1")
    status = dict(line.split(":\t", 1) for line in _proc(seen["State"]["Pid"], "status").splitlines())
    assert "0" not in status["Uid"].split()
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Eff", "Prm", "Bnd")} == {0}
    assert status["NoNewPrivs"] == "1"


def test_status_says_what_docker_ps_does(world):
    world.staging(1)
    (row,) = until(lambda: [r for r in world.rows("staging") if r["health"] == "healthy"], 40)
    (version,) = world.containers(role="version")
    assert (row["container"], row["name"], row["restarts"]) == (version.id, version.name, 0)
    assert row["name"] in docker("ps", "--format", "{{.Names}}").splitlines()
    assert [port.partition("->")[2] for port in row["ports"]] == ["8501/tcp", "8500/tcp"] or len(
        row["ports"]
    ) == 2
    assert row["status"] == "running"
    assert row["router"].startswith("container tidegate-digits-staging-router-")


def test_logs_of_a_container_are_shown_while_it_runs_and_kept_after_it(world):
    world.staging(1)
    lines = list(targets.logs(world.state, "staging", 50, follow=False))
    assert any(line.startswith("v1 | fake server, version 1") for line in lines)
    world.down()
    kept = (world.state / "logs" / "staging-v1.log").read_text()
    assert "fake server, version 1" in kept
    assert list(targets.logs(world.state, "staging", 50, follow=False)) == [
        f"v1 | {line}" for line in kept.splitlines()
    ]


def test_logs_are_followed_until_their_container_ends(world):
    world.changes["target.router"] = ""
    world.staging(1)
    seen = []
    thread = threading.Thread(
        target=lambda: seen.extend(targets.logs(world.state, "staging", 50, follow=True)), daemon=True
    )
    thread.start()
    world.down()
    thread.join(20)
    assert not thread.is_alive()
    assert any(line.startswith("v1 | fake server, version 1") for line in seen)


def _proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


# --- coming back --------------------------------------------------------------------------------------


def test_router_and_versions_come_back_by_themselves_with_the_same_weights(world):
    world.release(1)
    rollout.canary(world.context(world.publish(2)))
    before = {row["role"]: (who(row), row["weight"]) for row in world.rows("production")}
    assert {role: weight for role, (_, weight) in before.items()} == {"stable": 50, "candidate": 50}
    router = read(world.state, "production").router
    # What a restart of the engine does to containers; its own is not ours to restart.
    docker("restart", "--time", "0", *(one.name for one in world.containers()))
    until(router.serving)
    until(lambda: all(router.healthy(one.version.key) for one in read(world.state, "production").placed), 30)
    assert {row["role"]: (who(row), row["weight"]) for row in world.rows("production")} == before
    with world.client() as client:
        time.sleep(1)
    assert client.told().failed == 0
    counts = router.counts([one.version.key for one in read(world.state, "production").placed], 250)
    assert all(one.requests > 5 for one in counts.values())


@pytest.mark.parametrize("part", ["version", "router"])
def test_part_of_production_that_crashes_is_started_again_by_the_engine(world, part):
    world.release(1)
    now = read(world.state, "production")
    handle = now.router.process if part == "router" else now.by_role("stable").version.process
    before = handle.look()["State"]["Pid"]
    fake.kill(before)
    until(lambda: handle.look()["State"]["Pid"] not in (0, before))
    until(lambda: standing.not_in_production(world.context(world.publish(1))) is None)
    assert handle.look()["RestartCount"] == 1


def test_version_that_is_still_judged_stays_dead_when_it_dies(world):
    world.release(1)
    here = open_environment(world.context(world.publish(2)), "production")
    candidate = here.start(Release.read(world.publish(2)))
    fake.kill(fake.pid_of(candidate.process))
    time.sleep(1)
    assert not candidate.process.alive()


# --- from one kind, or setup, to another --------------------------------------------------------------


def test_production_moves_from_processes_to_containers_and_no_request_is_lost(world):
    own = dict(world.changes)
    world.changes["target.kind"] = "local"
    world.changes["target.router"] = ""
    world.release(1)
    assert "container" not in world.rows("production")[0]
    world.changes = own | {"target.router": ""}
    with world.client() as client:
        world.release(1)
    rows = {row["role"]: row for row in world.rows("production")}
    assert rows["stable"]["name"].startswith("tidegate-digits-production-v1-")
    assert "container" not in rows["previous"]
    assert client.told().failed == 0
    world.changes["target.kind"] = "local"
    assert len(world.down()) == 3
    assert world.containers() == []


def test_version_whose_limits_were_changed_is_replaced(world):
    world.staging(1)
    (before,) = world.rows("staging")
    world.changes["target.memory_mib"] = 1024
    assert world.staging(1).outcome is Outcome.PASSED
    (after,) = world.rows("staging")
    assert who(after) != who(before)
    (version,) = world.containers(role="version")
    assert version.look()["HostConfig"]["Memory"] == 2**30


# --- images -------------------------------------------------------------------------------------------


def test_published_server_runs_from_its_own_image_under_the_releases_number(world, tmp_path):
    release = _server_release(tmp_path, world, f"oci:{tmp_path}/layout")
    world.changes["target.server"] = ""
    version = _started(world, release)
    seen = version.process.look()
    assert version.process.alive()
    assert seen["Image"] == _configuration(tmp_path)
    assert (
        docker("image", "inspect", "--format", "{{.RepoDigests}}", seen["Image"]).count(release.digest) == 1
    )
    assert "a server of its own" in docker("logs", version.process.name)
    Docker(support.settings(world.changes), world.state, "staging").sweep((), everything=True)
    assert release.digest not in docker("images", "--digests")


def test_published_server_is_pulled_from_a_registry_with_the_login_of_dockers_configuration(
    world, tmp_path, monkeypatch
):
    support_registry.need_registry()
    folder = tmp_path / "registry"
    folder.mkdir()
    (folder / "htpasswd").write_text(support_registry.HTPASSWD + "\n")
    locked = f"auth: {{htpasswd: {{realm: r, path: {folder}/htpasswd}}}}\n"
    child = support_registry.serve(folder, REGISTRY_PORT, locked)
    address = f"127.0.0.1:{REGISTRY_PORT}"
    (tmp_path / "config.json").write_text(json.dumps({"auths": {address: {"auth": support_registry.LOGIN}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    try:
        release = _server_release(tmp_path, world, f"{address}/team/digits", publishes=True)
        version = _started(world, release)
        assert version.process.look()["Image"] == _configuration(tmp_path)
        docker("rm", "--force", version.process.name)
        docker("rmi", "--force", f"{address}/team/digits@{release.digest}")
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ProgramFailed, match="has none: docker login"):
            _started(world, release)
    finally:
        child.kill()
        child.wait()


def test_image_that_the_registry_has_not_is_told_and_nothing_is_started(world):
    published = world.publish(1)
    said = json.loads((published / "published.json").read_text())
    gone = "sha256:" + "9" * 64
    (published / "published.json").write_text(json.dumps(said | {"digest": gone}))
    with pytest.raises(ProgramFailed, match=f"{gone} cannot be read from oci:"):
        smoke.staging(world.context(published))
    assert world.containers(role="version") == []


def test_server_image_that_nobody_has_is_told_with_the_remedy(world):
    world.changes["target.server"] = "sha256:" + "8" * 64
    with pytest.raises(ProgramFailed, match=r"target.server: the engine has no image sha256:8888.*Build it"):
        world.staging(1)
    world.changes["target.server"] = f"127.0.0.1:{DEAD_PORT}/no/server@sha256:" + "8" * 64
    with pytest.raises(
        ProgramFailed, match=rf"target.server: .*could not pull 127.0.0.1:{DEAD_PORT}/no/server@sha256:8888"
    ):
        world.staging(1)


def _server_release(tmp_path, world, registry: str, publishes: bool = False) -> Release:
    """Publishes an image that is a server itself, as version 7."""
    base = support_docker.serving_base(tmp_path / "base")
    image = build(savedmodel(tmp_path / "model"), tmp_path / "layout", Recipe("digits", base))
    if publishes:
        changes = {"publish.registry": registry}
        assert publish(support.context(tmp_path / "p", {"image/layout": tmp_path / "layout"}, changes)).digest
    return Release(registry, image.digest, 7)


def _configuration(tmp_path) -> str:
    """The digest of the configuration of the image in the layout, by which the engine knows it."""
    (entry,) = json.loads((tmp_path / "layout/index.json").read_text())["manifests"]
    manifest = tmp_path / "layout/blobs/sha256" / entry["digest"].removeprefix("sha256:")
    return json.loads(manifest.read_text())["config"]["digest"]


def _started(world, release: Release):
    return Docker(support.settings(world.changes), world.state, "staging").start(release, lambda _: None)


# --- trouble ------------------------------------------------------------------------------------------


def test_container_that_ends_as_it_starts_is_told_at_once_with_its_last_words(world):
    with pytest.raises(
        ProgramFailed,
        match=r"ended before it was ready \(exit status 3\)(.|\n)*cannot load the model: as told",
    ):
        world.staging(1, exit=3)
    assert world.containers(role="version") == []
    assert world.rows("staging") == []


def test_container_that_never_becomes_ready_is_removed_with_its_last_words(world):
    world.staging(1)
    world.changes["target.ready_timeout_s"] = 2
    with pytest.raises(
        ProgramFailed, match=r"not ready within target.ready_timeout_s \(2 s\)(.|\n)*fake server"
    ):
        world.staging(2, never_ready=True)
    assert [row["version"] for row in world.rows("staging")] == [1]
    assert len(world.containers(role="version")) == 1


def test_port_that_is_lost_between_choice_and_start_is_chosen_again(world, monkeypatch):
    lasting, noted = ports.lasting, []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        lost = other.getsockname()[1]
        offers = iter([(lost, lasting(1)[0]), lasting(2)])
        monkeypatch.setattr(ports, "lasting", lambda count: next(offers))
        target = Docker(support.settings(world.changes), world.state, "staging")
        version = target.start(Release.read(world.publish(1)), noted.append)
    assert [one.rest == lost for one in noted] == [True, False]
    assert [one.id for one in world.containers(role="version")] == [version.process.id]


def test_taken_public_port_is_told_before_any_version_is_started(world):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", PORTS["staging.grpc_port"]))
        other.listen()
        with pytest.raises(
            ProgramFailed, match=f"{PORTS['staging.grpc_port']}.*process {os.getpid()}.*staging.grpc_port"
        ):
            world.staging(1)
    assert world.containers() == []


def test_paused_container_hangs_and_the_next_promotion_mends_it(world):
    world.release(1)
    stable = read(world.state, "production").by_role("stable").version
    docker("pause", stable.process.name)
    assert standing.not_in_production(world.context(world.publish(1)))
    assert rollout.promote(world.context(world.publish(1))).outcome is Outcome.PASSED
    assert stable.process.look() is None


def test_container_that_nobody_noted_is_removed_and_another_clones_is_left_alone(world, tmp_path):
    other = World(tmp_path / "other", **{name: port + 20 for name, port in PORTS.items()})
    try:
        other.staging(1)
        world.staging(1)
        standing.state_file(world.state, "staging").unlink()
        (lost,) = world.containers(role="version")
        world.staging(1)
        assert lost.look() is None
        assert len(other.containers(role="version")) == len(world.containers(role="version")) == 1
        world.down()
        assert world.containers() == []
        assert standing.not_in_staging(other.context(other.publish(1))) is None
    finally:
        other.down()


def test_two_environments_start_versions_at_the_same_time(world, tmp_path):
    outcomes = {}
    published = world.publish(1)
    contexts = {name: world.context(published) for name in ("staging", "production")}
    object.__setattr__(contexts["production"], "out", tmp_path / "out-production")
    stages = {"staging": smoke.staging, "production": rollout.canary}
    threads = [
        threading.Thread(target=lambda n=name: outcomes.update({n: stages[n](contexts[n]).outcome}))
        for name in stages
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert outcomes == {"staging": Outcome.PASSED, "production": Outcome.PASSED}
    assert len(world.containers(role="version")) == len(world.containers(role="router")) == 2


def test_no_engine_is_told_with_the_remedy(world, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(
        ProgramFailed, match=r"does not answer at unix:///nowhere/docker.sock.*target.kind to local"
    ) as told:
        world.staging(1)
    assert told.value.exit_code == 5
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:2375")
    with pytest.raises(ProgramFailed, match="this machine's own engine"):
        world.staging(1)
    monkeypatch.undo()


def test_engine_that_is_lost_in_mid_canary_is_an_error_and_traffic_goes_back(world, monkeypatch):
    world.release(1)
    world.changes |= {"canary.step_s": 30}
    second = world.publish(2)
    cut = threading.Thread(target=_lose_engine_midway, args=(world, monkeypatch))
    cut.start()
    with world.client() as client:
        with pytest.raises(ProgramFailed, match="engine does not answer"):
            rollout.canary(world.context(second))
        cut.join()
        now = read(world.state, "production")
        assert {one.role: one.weight for one in now.placed}["stable"] == 100
        assert "trouble" in world.rows("production")[0]
        assert "cannot be looked at" in standing.not_in_production(world.context(world.publish(1)))
        monkeypatch.undo()
        world.changes |= {"canary.step_s": 0.4}
        world.release(2)
    assert client.told().failed == 0
    assert len(world.containers(role="version")) == 2


def _lose_engine_midway(world, monkeypatch) -> None:
    def asked() -> bool:
        return any(row["role"] == "candidate" and row["requests"] for row in world.rows("production"))

    until(asked)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
