"""An environment's state on disk, and what is concluded from it."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from deploy import standing
from deploy.environment import Placed, State, read, write
from deploy.router import Router
from deploy.targets.base import Version
from pipeline.run import Process

DIGEST = "sha256:" + "a" * 64


def _me() -> Process:
    return Process(os.getpid(), int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]))


def _state(**changes) -> State:
    router = Router(Path("/run/production"), _me(), "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    version = Version(3, DIGEST, _me(), 10, 11, "/models/a.3")
    return dataclasses.replace(State(router, (Placed(version, "stable", 100),)), **changes)


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "published.json").write_text(json.dumps({"digest": DIGEST, "version": 3}))
    return folder


def test_state_that_is_written_is_read_again(tmp_path):
    now = _state(changing=True)
    write(tmp_path, "production", now)
    assert read(tmp_path, "production") == now
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["production.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"router": null, "versions": [{}], "changing": false}']
)
def test_state_that_cannot_be_read_is_no_state(tmp_path, published, text):
    (tmp_path / "run").mkdir()
    standing.state_file(tmp_path, "production").write_text(text)
    assert read(tmp_path, "production") == State()
    assert standing.why_not(tmp_path, "production", published) == "production is not running"


DEAD = Process(2**22 + 1, 5)
REUSED = Process(os.getpid(), 5)


def _with(now: State, **changes) -> State:
    placed = now.placed[0]
    version = dataclasses.replace(
        placed.version, **{k: v for k, v in changes.items() if k != "weight" and k != "role"}
    )
    fields = {k: v for k, v in changes.items() if k in ("weight", "role")}
    return dataclasses.replace(now, placed=(dataclasses.replace(placed, version=version, **fields),))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda now: now, None),
        (lambda now: dataclasses.replace(now, placed=()), "production is not running"),
        (lambda now: dataclasses.replace(now, router=None), "production is not running"),
        (
            lambda now: dataclasses.replace(now, changing=True),
            "production was left in the middle of a change",
        ),
        (lambda now: _with(now, role="candidate"), "production is not running"),
        (lambda now: _with(now, weight=90), "production's version 3 has 90 % of the traffic"),
        (
            lambda now: _with(now, digest="sha256:" + "b" * 64),
            "production serves version 3 (sha256:bbbbbbbbbbbb…)",
        ),
        (lambda now: _with(now, number=4), "production serves version 4 (sha256:aaaaaaaaaaaa…)"),
        (lambda now: _with(now, process=DEAD), "production's version 3 (process PID) has ended"),
        (lambda now: _with(now, process=REUSED), "production's version 3 (process PID) has ended"),
        (
            lambda now: dataclasses.replace(now, router=dataclasses.replace(now.router, process=REUSED)),
            "production's router (process PID) has ended",
        ),
    ],
)
def test_why_production_does_not_serve_a_digest(tmp_path, published, change, reason):
    write(tmp_path, "production", change(_state()))
    said = standing.why_not(tmp_path, "production", published)
    assert re.sub("process [0-9]+", "process PID", said or "") == (reason or "")


def test_nothing_stands_where_nothing_is_published(tmp_path):
    write(tmp_path, "production", _state())
    assert standing.why_not(tmp_path, "production", None) == "nothing is published"
    assert standing.why_not(tmp_path, "production", tmp_path) == "nothing is published"
