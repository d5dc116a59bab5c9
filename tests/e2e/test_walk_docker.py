"""The whole walk with `TARGET=docker`: the published digest serves from containers, and comes back by itself."""

import json
import subprocess
import time

import numpy as np
import pytest

from pipeline.stages import BY_NAME
from tests import support_docker, support_engine
from tests.support_docker import docker

FIRST_PORT = 20540
ALL = list(BY_NAME)
pytestmark = support_engine.SLOW
support_engine.need_engine()


@pytest.fixture(scope="module", autouse=True)
def _containers(walk):
    """What a person exports before `make ci-local`; and bounds that say nothing of how busy this machine is."""
    walk.edit("pipeline.yaml", "slow_ms: 250", "slow_ms: 5000")
    walk.edit("pipeline.yaml", "latency_ms: {at_most: 250}", "latency_ms: {at_most: 5000}")
    walk.environ = {
        "TIDEGATE_TARGET": "docker",
        "TIDEGATE_SERVER": support_docker.image_of("serve.Dockerfile"),
        "TIDEGATE_ROUTER": support_docker.image_of("router.Dockerfile"),
    }


@pytest.fixture(scope="module")
def held_out(walk):
    """Some held-out rows, and the probabilities that evaluation predicted for them."""
    rows = np.load(walk.folder / "build/data/rows/test_features.npy")[:5]
    return rows, np.load(walk.folder / "build/evaluate/predictions/probabilities.npy")[:5]


def _containers_of(walk) -> list[str]:
    """The containers whose model lies below this clone."""
    ids = docker("ps", "--all", "--quiet").split()
    found = json.loads(docker("inspect", *ids)) if ids else []
    return [one["Name"] for one in found for m in one["Mounts"] if m["Source"].startswith(f"{walk.folder}/")]


def _answers_as_predicted(walk, held_out) -> None:
    answer = walk.predict(held_out[0].tolist())["predictions"]
    np.testing.assert_allclose([row["probabilities"] for row in answer], held_out[1], atol=1e-5)


def test_one_command_puts_a_first_model_into_production_as_a_container(walk):
    said = walk("run", "--all")
    assert [row["outcome"] for row in walk.rows().values()] == ["passed"] * len(ALL), said
    status = json.loads(walk("status", "--json"))
    production = next(row for row in status["running"] if row["environment"] == "production")
    assert production["digest"] == walk.rows()["image"]["digest"] == status["channels"]["production"]["image"]
    assert production["name"].startswith("tidegate-digits-production-v1-")
    assert len(_containers_of(walk)) == 4, "a version and a router, in staging and in production"


def test_container_answers_as_evaluation_predicted(walk, held_out):
    _answers_as_predicted(walk, held_out)


def test_a_second_run_finds_nothing_to_do(walk):
    assert "Nothing to do" in walk("run", "--all")


def test_status_and_logs_say_what_docker_ps_and_docker_logs_do(walk):
    said = walk("status")
    (name,) = [name for name in _containers_of(walk) if "production-v1" in name]
    assert f"container {name.removeprefix('/')}" in said
    assert "restarts 0" in said
    assert "I ready address=0.0.0.0" in walk("logs", "production")
    assert "v1 | " in walk("logs", "staging", "--tail", "3")


def test_restart_of_every_container_brings_production_back_without_a_run(walk, held_out):
    docker("restart", "--time", "0", *(name.removeprefix("/") for name in _containers_of(walk)))
    deadline = time.monotonic() + 120
    waiting = ["production_rest", "staging_rest"]
    while waiting:
        try:
            walk.predict(held_out[0].tolist(), waiting[0])
            waiting.pop(0)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    _answers_as_predicted(walk, held_out)
    assert "Nothing to do" in walk("run", "--all")


def test_a_changed_model_goes_through_a_canary_and_back_again(walk, held_out):
    first = walk.live()
    walk.edit("pipeline.yaml", "  seed: 7", "  seed: 8")
    walk.commit("Another model")
    walk("run", "--all")
    assert (walk.live()["version"], walk.live()["left"]) == (2, first["image"])
    walk("rollback")
    assert walk.live()["version"] == 1
    _answers_as_predicted(walk, held_out)


def test_down_leaves_no_container(walk):
    assert "production: version 1 (container " in walk("down")
    assert _containers_of(walk) == []
    assert "nothing was running" in walk("down")
    assert subprocess.run(["pgrep", "-f", str(walk.folder)], capture_output=True, check=False).stdout == b""
