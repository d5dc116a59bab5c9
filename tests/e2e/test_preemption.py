"""A training that is killed on one machine ends on others, on the store that they share, with the same weights."""

import shutil
import signal
from pathlib import Path

import pytest

from pipeline import digest
from tests.e2e.conftest import Walk, make_walk
from tests.integration.support_s3 import BUCKET, Fault, environment, plain_client
from tests.support import tree

pytest_plugins = ["tests.integration.support_s3"]

FIRST_PORT = 20640
PREFIX = "preempt"
EPOCHS, STEPS = 60, 23
HALF = EPOCHS * STEPS // 2
# A second costs 1.
PRICE = {"TIDEGATE_TRAIN_PER_HOUR": "3600"}


class Team:
    """Machines with a clone each, one store, and CI's key."""

    def __init__(self, folder: Path, endpoint: str):
        self.folder = folder
        first = make_walk(folder / "first", FIRST_PORT)
        first.edit("pipeline.yaml", "epochs: 30", f"epochs: {EPOCHS}")
        first.edit("pipeline.yaml", "${TIDEGATE_ACCELERATOR:-auto}", "cpu")
        first("keygen", "ci", "--role", "ci")
        key = folder / "ci.pem"
        shutil.move(first.folder / ".tidegate" / "keys" / "ci.pem", key)
        first.commit("A key")
        self._clean = first.folder
        self.environ = {
            "TIDEGATE_STORE": f"s3://{BUCKET}/{PREFIX}",
            "TIDEGATE_SIGNING_KEY": str(key),
            **environment(endpoint),
        }
        self.endpoint = endpoint

    def machine(self, name: str) -> Walk:
        """A new machine: the clone, and nothing of what others did."""
        folder = self.folder / name
        shutil.copytree(self._clean, folder, ignore=shutil.ignore_patterns("build", ".tidegate"))
        return Walk(folder, {})

    def documents(self) -> list[str]:
        """The checkpoints in the store, the furthest last."""
        listed = plain_client(self.endpoint).list_objects_v2(Bucket=BUCKET, Prefix=f"{PREFIX}/checkpoints/")
        names = (item["Key"].rpartition("/") for item in listed.get("Contents", ()))
        return sorted(name for place, _, name in names if not place.endswith("/files"))

    def furthest(self) -> int:
        """How many steps the furthest checkpoint in the store has done."""
        return max((int(name.partition("-")[0]) for name in self.documents()), default=0)

    def stop_when(self, walk: Walk, sign: signal.Signals, steps: int) -> tuple[int, str]:
        """Trains on a machine, until a checkpoint of so many steps is in the store; then the signal comes."""
        return walk.kill_when(sign, lambda: self.furthest() >= steps, "run", "train", **self.environ)


@pytest.fixture(scope="module")
def team(weed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    (folder / "first").mkdir()
    return Team(folder, weed.endpoint)


@pytest.fixture(scope="module")
def undisturbed(team):
    """The model of a training that nothing happened to, on a store of its own."""
    walk = team.machine("undisturbed")
    walk("run", "train", **{**team.environ, "TIDEGATE_STORE": "file:.tidegate/store"})
    assert list((walk.folder / ".tidegate/store").glob("checkpoints/**/*.json")) == []
    return tree(walk.folder / "build" / "train" / "model")


def plant(team) -> None:
    """What one may do who can write the bucket: a checkpoint further than all others, of his own making."""
    client = plain_client(team.endpoint)
    newest = team.documents()[-1]
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{PREFIX}/checkpoints/")["Contents"]
    (path,) = [item["Key"] for item in listed if item["Key"].endswith(newest)]
    document = client.get_object(Bucket=BUCKET, Key=path)["Body"].read()
    forged = document.replace(b'"sig": "', b'"sig": "AAAA')
    assert forged != document
    name = f"{EPOCHS * STEPS:012d}-{digest.of_bytes(forged)}.json"
    client.put_object(Bucket=BUCKET, Key=f"{path.rpartition('/')[0]}/{name}", Body=forged)


# One training, on four machines, one after the other -----------------------------------------------------------------


def test_a_machine_that_is_killed_leaves_its_checkpoints_in_the_store(team):
    status, said = team.stop_when(team.machine("a"), signal.SIGKILL, HALF // 2)
    assert status == -signal.SIGKILL, said
    assert HALF // 2 <= team.furthest() < EPOCHS * STEPS


def test_what_it_spent_counts_for_the_cap_of_the_next_machine(team):
    walk, before = team.machine("b"), team.documents()
    said = walk("run", "train", expect=4, **team.environ, **PRICE, TIDEGATE_TRAIN_AT_MOST="0.5")
    assert "and train.cost.at_most is 0.5" in said
    assert "training stopped after epoch 0" not in said
    assert walk.rows()["train"]["outcome"] == "no data"
    assert {name[:12] for name in team.documents()} <= {name[:12] for name in before}


def test_sigterm_saves_what_the_third_has_done(team):
    status, said = team.stop_when(team.machine("c"), signal.SIGTERM, HALF)
    assert status == 143, said
    assert "going on after epoch" in said
    assert "training was told to stop (SIGTERM) after epoch" in said
    assert "the checkpoint is in the store" in said
    assert HALF <= team.furthest() < EPOCHS * STEPS


def test_the_fourth_ends_it_with_the_weights_of_an_undisturbed_run_and_takes_no_planted_checkpoint(
    team, undisturbed
):
    walk = team.machine("d")
    plant(team)
    said = walk("run", "train", **team.environ, **PRICE, TIDEGATE_TRAIN_AT_MOST="999999")
    assert "not signed by a key that is trusted here" in said
    assert "going on after epoch" in said
    assert tree(walk.folder / "build" / "train" / "model") == undisturbed
    assert [text for text in walk.rows()["train"]["warnings"] if "is not used" in text]
    assert team.documents() == []
    assert list((walk.folder / ".tidegate" / "work").iterdir()) == []


def test_a_store_that_takes_no_checkpoints_is_told_once_and_stops_no_training(team, undisturbed, proxy):
    walk = team.machine("poor")
    proxy.faults.append(
        Fault(
            "answer",
            "PUT",
            times=10**6,
            matching=lambda request: "/checkpoints/" in request.path,
            status=403,
            code="AccessDenied",
        )
    )
    environ = {**team.environ, **environment(proxy.endpoint)}
    said = walk("run", "--force", "train", "train", **environ)
    assert said.count("train goes on, but a checkpoint could not be put into the store") == 1
    assert "The credentials do not allow it" in said
    assert any("could not be put into the store" in text for text in walk.rows()["train"]["warnings"])
    assert tree(walk.folder / "build" / "train" / "model") == undisturbed
