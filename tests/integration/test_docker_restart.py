"""A restart of the engine: production comes back whole, with the same weights. On an engine of the test's own."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests import support_engine

pytestmark = support_engine.SLOW


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the story saw; skips (fails where CI is set) without root, dockerd and unshare."""
    lacks = [name for name in ("dockerd", "unshare", "ip", "iptables") if not shutil.which(name)]
    lacks += [] if os.geteuid() == 0 else ["root"]
    if lacks:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {', '.join(lacks)}")
    folder = tmp_path_factory.mktemp("second")
    argv = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.support_second_engine", str(folder)]
    done = subprocess.run(
        argv, cwd=support_engine.ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_restart_of_the_engine_brings_back_every_version_and_the_weights(told):
    assert [(role, weight) for role, _, weight, _ in told["before"]] == [
        ("previous", 0),
        ("stable", 50),
        ("candidate", 50),
    ]
    assert told["after"] == told["before"]
    assert all(alive for *_, alive in told["after"])
    print(f"production answered {told['back_s']:.1f} s after the engine")


def test_clients_are_served_as_before_after_the_restart(told):
    assert told["clients"]["sent"] > 20
    assert told["clients"]["failed"] == 0


def test_engine_that_is_away_is_told_and_no_version_is_taken_for_living(told):
    assert [row["alive"] for row in told["away"]["rows"]] == [None, None, None]
    assert all("engine does not answer" in row["trouble"] for row in told["away"]["rows"])
    assert "cannot be looked at: the Docker engine does not answer" in told["away"]["why"]


def test_down_leaves_no_container_in_it(told):
    assert told["left"] == ""
