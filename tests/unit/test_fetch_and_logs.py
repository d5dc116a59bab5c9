"""Outputs come back out of the store verified; reports and TensorBoard logs lie there under plain names."""

import dataclasses
import os
import sys
import time
import types
from pathlib import Path

import pytest

from pipeline import fetch, gc, logs, trees
from pipeline.digest import Digests
from pipeline.errors import GateRefused, IntegrityError, ProgramFailed, SettingsError
from pipeline.execution import Paths
from pipeline.row import Row
from pipeline.runner import Runner
from pipeline.settings import Retention
from pipeline.stages import Facts
from pipeline.store import blob, open_store
from tests.support import settings
from tests.support_evidence import Evidence, add_key, ago, make

LOSSES = {1: [0.875, 0.5, 0.25], 2: [0.75, 0.375, 0.125], 3: [0.625, 0.5, 0.375]}
IMAGES = {version: "sha256:" + str(version) * 64 for version in LOSSES}
CI = ("GITLAB_CI", "GITHUB_ACTIONS", "CI_COMMIT_REF_PROTECTED", "GITHUB_REF_PROTECTED")
EVENTS = "events.out.tfevents.0.train.v2"


@pytest.fixture(autouse=True)
def _laptop(monkeypatch):
    for name in CI:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def tensorboard(monkeypatch):
    """TensorBoard's own reader and writer of events, without TensorFlow, which they load where it is installed."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))


def write_log(folder, losses) -> None:
    """A TensorBoard log as train/logs.py writes it."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / EVENTS).open("wb") as stream:
        writer = RecordWriter(stream)
        writer.write(Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
        for epoch, loss in enumerate(losses, 1):
            event = Event(wall_time=1.0 + epoch, step=epoch)
            event.summary.value.add(tag="epoch/loss", simple_value=loss)
            writer.write(event.SerializeToString())
        writer.flush()


def curve(folder) -> list[float]:
    """The loss by epoch as TensorBoard reads it from a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(folder))
    seen.Reload()
    return [point.value for point in seen.Scalars("epoch/loss")]


class Trained(Evidence):
    """Evidence of walks that left TensorBoard logs."""

    def _tree(self, output, said, image):
        if output != "train/log":
            return super()._tree(output, said, image)
        folder = self.root / "logs" / image[-1]
        write_log(folder, LOSSES[int(image[-1])])
        return trees.keep(folder, self.store, Digests(self.root / "memory.json"))

    def live(self, version: int) -> None:
        self.walk(IMAGES[version])
        self.promote(version, IMAGES[version])


@pytest.fixture
def trained(tmp_path, tensorboard):
    signers = {"ci": add_key(tmp_path, "ci", "ci"), "approve": add_key(tmp_path, "alice", "approver")}
    return Trained(tmp_path, settings(), open_store("file:store", tmp_path), signers)


@pytest.fixture
def runner(trained):
    """A runner as it is once git was asked for the commit."""
    paths = Paths(
        trained.root, trained.root / "pipeline.yaml", trained.root / "build", trained.root / "state"
    )
    made = Runner(trained.settings, paths, trained.store, Digests(trained.root / "digests.json"))
    made.__dict__["facts"] = Facts(commit="abcdef0123456789", actor="ann")
    return made


# fetch -----------------------------------------------------------------------------------------------------


def test_tensorboard_reads_the_curves_of_each_version_that_was_fetched(trained, runner, tmp_path):
    trained.live(1)
    trained.live(2)
    said = fetch.fetch(runner, "train/log", tmp_path / "to" / "v1", "v1")
    fetch.fetch(runner, "train/log", tmp_path / "to" / "live")
    fetch.fetch(runner, "train/log", tmp_path / "to" / "by-image", f"digits@{IMAGES[1]}")
    assert said.startswith(f"train/log of production v1 {IMAGES[1]}")
    assert curve(tmp_path / "to" / "v1") == LOSSES[1]
    assert curve(tmp_path / "to" / "by-image") == LOSSES[1]
    assert curve(tmp_path / "to" / "live") == LOSSES[2]


def test_before_anything_is_served_the_newest_that_passed_is_fetched(trained, runner, tmp_path):
    trained.walk(IMAGES[2], until="evaluate")
    newest = trained.records["train"]
    trained.add(
        dataclasses.replace(newest, outcome="failed", finished="2099-01-01T00:00:00.000Z", outputs={})
    )
    stranger = add_key(tmp_path / "elsewhere", "eve", "ci")
    trained.add(dataclasses.replace(newest, finished=trained.records["data"].finished), stranger)
    said = fetch.fetch(runner, "train/log", tmp_path / "log")
    assert newest.sha256[:12] in said
    assert curve(tmp_path / "log") == LOSSES[2]
    with pytest.raises(SettingsError, match="never was in a channel"):
        fetch.fetch(runner, "train/log", tmp_path / "other", "v1")


def test_where_nothing_ever_passed_the_next_move_is_told(trained, runner, tmp_path):
    with pytest.raises(GateRefused, match="python -m pipeline run train"):
        fetch.fetch(runner, "train/log", tmp_path / "log")
    outputs = {"train/log": trained.document("curves.csv", {})}
    trained.add(make("train", outputs, outcome="failed"))
    trained.add(make("train", outputs, finished=ago(0)), add_key(tmp_path / "elsewhere", "eve", "ci"))
    with pytest.raises(GateRefused, match=r"never passed here.*\n?.*not signed by a key that is trusted"):
        fetch.fetch(runner, "train/log", tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("output", "said"),
    [("train/logs", "Did you mean train/log?"), ("../etc", "Outputs: "), ("train", "is no output")],
)
def test_an_output_that_does_not_exist_is_refused_with_those_that_do(runner, tmp_path, output, said):
    with pytest.raises(SettingsError) as caught:
        fetch.fetch(runner, output, tmp_path / "to")
    assert said in str(caught.value)


def test_a_folder_that_holds_anything_else_is_never_written_to(trained, runner, tmp_path, monkeypatch):
    trained.live(1)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "file").write_text("x")
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for folder in (mine, tmp_path / "link", tmp_path / "file", empty):
        with pytest.raises(SettingsError, match="name a folder that is new or empty"):
            fetch.fetch(runner, "train/log", folder)
    assert (mine / "thesis.txt").read_text() == "years"


def test_what_was_fetched_before_is_fetched_again_without_a_word_of_complaint(trained, runner, tmp_path):
    trained.live(1)
    (tmp_path / "log").mkdir()
    for _ in range(2):
        fetch.fetch(runner, "train/log", tmp_path / "log")
    assert curve(tmp_path / "log") == LOSSES[1]
    (tmp_path / "log" / EVENTS).write_bytes(b"changed")
    with pytest.raises(SettingsError, match="holds something else"):
        fetch.fetch(runner, "train/log", tmp_path / "log")


@pytest.mark.parametrize("place", ["/proc/nothing-of-ours", "{tmp_path}/file/below"])
def test_a_place_where_nothing_can_be_made_is_told(trained, runner, tmp_path, place):
    trained.live(1)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"^--to .*: cannot be made or written there"):
        fetch.fetch(runner, "train/log", Path(place.format(tmp_path=tmp_path)))


def test_nothing_is_fetched_of_a_record_that_is_not_signed_by_who_may(trained, runner, tmp_path):
    trained.walk(IMAGES[1])
    trained.change("train", signer=add_key(tmp_path / "elsewhere", "eve", "ci"))
    trained.promote(1, IMAGES[1])
    with pytest.raises(IntegrityError, match="not signed by a key that is trusted"):
        fetch.fetch(runner, "train/log", tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_what_does_not_hold_elsewhere_behind_the_version_is_a_warning(trained, runner, tmp_path, capsys):
    trained.walk(IMAGES[1])
    trained.change("scan", outcome="failed")
    trained.promote(1, IMAGES[1])
    fetch.fetch(runner, "train/log", tmp_path / "log")
    assert "not all evidence of production v1" in capsys.readouterr().err
    assert curve(tmp_path / "log") == LOSSES[1]


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"other"), os.unlink])
def test_a_blob_that_is_damaged_or_gone_is_named_and_leaves_no_folder(trained, runner, tmp_path, spoil):
    trained.live(1)
    path = tmp_path / "store" / blob(Digests(tmp_path / "m").file(tmp_path / "logs" / "1" / EVENTS))
    path.chmod(0o644)
    spoil(path)
    with pytest.raises(IntegrityError, match=path.name):
        fetch.fetch(runner, "train/log", tmp_path / "to" / "log")
    assert not (tmp_path / "to" / "log").exists()


def test_what_garbage_collection_took_is_explained(trained, runner, tmp_path):
    for version in LOSSES:
        trained.live(version)
    sweep = gc.Sweep(
        trained.store, Retention(versions=1, days=1, checkpoint_days=14), now=time.time() + 10 * 86_400
    )
    sweep.remove(sweep.find())
    fetch.fetch(runner, "train/log", tmp_path / "v2", "v2")
    with pytest.raises(
        IntegrityError, match=r"v1 .* cannot be fetched.*retention\.versions and retention\.days"
    ):
        fetch.fetch(runner, "train/log", tmp_path / "v1", "v1")


# logs ------------------------------------------------------------------------------------------------------

CACHED = Row("data", "passed", True, 0.0)
TRAINED = Row("train", "passed", False, 9.0)


@pytest.fixture
def left(runner):
    """What a run left in build/; a function: the objects below logs/, by what follows COMMIT/TIME."""
    (runner.paths.build / "report").mkdir(parents=True)
    (runner.paths.build / "report" / "index.html").write_text("<html>")
    (runner.paths.build / "report" / "report.json").write_text("{}")
    (runner.paths.build / "report" / ".report.json").write_text("half")
    write_log(runner.paths.build / "train" / "log", LOSSES[1])

    def collected() -> list[str]:
        return [item.path.split("/", 3)[3] for item in runner.store.bucket.items("logs/")]

    return collected


REPORT = ["report/index.html", "report/report.json"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([CACHED, TRAINED], [*REPORT, f"train/log/{EVENTS}"]),
        ([dataclasses.replace(TRAINED, outcome="failed")], [*REPORT, f"train/log/{EVENTS}"]),
        # What lies in build/train is of another run.
        ([dataclasses.replace(TRAINED, cached=True), Row("evaluate", "failed", False, 1.0)], REPORT),
        ([dataclasses.replace(TRAINED, outcome="error")], REPORT),
        ([CACHED], []),
        ([], []),
        ([CACHED, dataclasses.replace(TRAINED, outcome="stopped")], []),
    ],
)
def test_what_a_run_made_is_collected_and_nothing_of_one_that_made_nothing(runner, left, rows, expected):
    runner.rows = rows
    logs.after(runner)
    assert left() == expected


def test_the_collected_folder_is_one_that_tensorboard_reads(runner, left):
    runner.rows = [TRAINED]
    logs.after(runner)
    (place,) = (runner.paths.root / "store" / "logs" / "abcdef012345").iterdir()
    assert curve(place / "train" / "log") == LOSSES[1]
    assert (place / "report" / "index.html").read_text() == "<html>"


def test_the_log_of_files_that_no_commit_has_says_so(runner, left):
    runner.rows = [TRAINED]
    for facts in (Facts(commit="abcdef0123456789", dirty=True), Facts()):
        runner.__dict__["facts"] = facts
        logs.after(runner)
    assert {item.path.split("/")[1] for item in runner.store.bucket.items("logs/")} == {
        "abcdef012345-changed",
        "no-commit",
    }


@pytest.mark.parametrize("protected", ["true", "false"])
def test_in_ci_only_a_protected_ref_collects(runner, left, monkeypatch, protected):
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("CI_COMMIT_REF_PROTECTED", protected)
    runner.rows = [TRAINED]
    logs.after(runner)
    assert bool(left()) is (protected == "true")


@pytest.mark.parametrize("error", [ProgramFailed("the bucket is away"), OSError(5, "the disk is away")])
def test_a_store_that_takes_no_logs_is_a_warning_and_the_run_what_it_was(
    runner, left, monkeypatch, capsys, error
):
    def fail(*_):
        raise error

    monkeypatch.setattr(type(runner.store.bucket), "upload", fail)
    runner.rows = [TRAINED]
    logs.after(runner)
    said = capsys.readouterr().err
    assert "is away" in said
    assert str(runner.paths.build / "report") in said
