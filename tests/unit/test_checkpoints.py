"""Checkpoints in the store: whole or not used, signed or not used, the newest only, and in nobody's way."""

import dataclasses
import errno
import json
import os
import threading

import pytest

from pipeline import gc, offers, record
from pipeline.checkpoints import Checkpoint, Shelf
from pipeline.digest import Digests
from pipeline.errors import IntegrityError, ProgramFailed
from pipeline.execution import Paths, now
from pipeline.keeper import Keeper
from pipeline.keys import Signer
from pipeline.offers import Progress
from pipeline.runner import Runner
from pipeline.settings import Retention
from pipeline.store import open_store
from pipeline.trust import Trust
from tests.support import FACTS, settings
from tests.support_evidence import add_key, ago, make
from tests.support_recheck import _CI as CI_VARIABLES

KEY, OTHER = "a" * 64, "b" * 64
DAY_S = 86_400


@pytest.fixture
def signers(tmp_path):
    return {name: add_key(tmp_path, name, role) for name, role in (("ci", "ci"), ("alice", "approver"))}


@pytest.fixture
def shelf(tmp_path, signers):
    """A store's checkpoints as CI sees them."""
    store = open_store("file:store", tmp_path)
    return Shelf(store.bucket, signers["ci"], Trust.load(tmp_path), lambda stage: ("ci",), now)


@pytest.fixture
def files(tmp_path):
    """A function: a folder with a checkpoint of so many steps in it."""

    def write(step: int):
        folder = tmp_path / f"made-{step}"
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "weights").write_text(f"weights after {step}")
        (folder / "checkpoints" / "same").write_text("in each checkpoint")
        return folder

    return write


def keep(shelf, files, *steps, key=KEY) -> list[str]:
    return [shelf.keep("train", key, files(step), Progress(step, step // 10, step / 2)) for step in steps]


def found(work) -> str:
    weights = work / "checkpoints" / "weights"
    return weights.read_text() if weights.exists() else ""


# What the stage offers ---------------------------------------------------------------------------------------


def offered(work, step, progress=None):
    (work / "checkpoints").mkdir(parents=True, exist_ok=True)
    path = work / "checkpoints" / f"ckpt-{step}"
    path.write_text(str(step))
    offers.offer(work, [path], progress or Progress(step, 0, 1.5))
    return path


def test_of_any_number_of_offers_the_newest_waits_and_outlives_its_file(tmp_path):
    for step in (1, 2, 3):
        offered(tmp_path, step).unlink()
    folder, progress = offers.take(tmp_path)
    assert progress == Progress(3, 0, 1.5)
    assert [(p.name, p.read_text()) for p in folder.rglob("*") if p.is_file()] == [("ckpt-3", "3")]
    assert offers.take(tmp_path) is None
    assert offers.progress(tmp_path) == Progress(3, 0, 1.5)


def test_an_offer_made_while_the_one_before_is_uploaded_waits_for_its_turn(tmp_path):
    offered(tmp_path, 1)
    folder, _ = offers.take(tmp_path)
    offered(tmp_path, 2)
    assert (folder / "checkpoints" / "ckpt-1").read_text() == "1"
    assert offers.take(tmp_path)[1].step == 2


def test_where_files_cannot_be_linked_they_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    offered(tmp_path, 1)
    assert (offers.take(tmp_path)[0] / "checkpoints" / "ckpt-1").read_text() == "1"


def test_an_offer_that_the_disk_will_not_have_leaves_the_one_before(tmp_path, monkeypatch):
    offered(tmp_path, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        offered(tmp_path, 2)
    assert offers.take(tmp_path)[1].step == 1


@pytest.mark.parametrize(
    "said", [{}, {"step": -1}, {"step": "7"}, {"step": 7, "seconds": "1"}, {"steps": 7}, [1], None]
)
def test_a_progress_that_says_something_else_is_none(tmp_path, said):
    (tmp_path / "progress.json").write_text(json.dumps(said))
    assert offers.progress(tmp_path) == Progress()


# In the store and back ---------------------------------------------------------------------------------------


def test_a_new_machine_goes_on_from_the_newest(shelf, files, tmp_path, capsys):
    keep(shelf, files, 10, 30, 20)
    assert shelf.bring("train", KEY, tmp_path / "work") == ()
    assert found(tmp_path / "work") == "weights after 30"
    assert offers.progress(tmp_path / "work") == Progress(30, 3, 15.0)
    assert "step 30" in capsys.readouterr().err


@pytest.mark.parametrize(("here", "then"), [(29, 30), (30, 0), (31, 0)])
def test_what_lies_here_already_is_replaced_by_what_is_further_alone(shelf, files, tmp_path, here, then):
    keep(shelf, files, 30)
    work = tmp_path / "work"
    offered(work, here)
    assert shelf.bring("train", KEY, work) == ()
    assert found(work) == (f"weights after {then}" if then else "")
    assert (work / "checkpoints" / f"ckpt-{here}").exists() == (not then)


def test_nothing_is_brought_for_another_key_and_nothing_is_said_of_it(shelf, files, tmp_path):
    keep(shelf, files, 10, key=OTHER)
    assert shelf.bring("train", KEY, tmp_path / "work") == ()
    assert not (tmp_path / "work").exists()


def test_the_document_names_stage_key_progress_and_each_file(shelf, files, tmp_path):
    (path,) = keep(shelf, files, 10)
    made = Checkpoint.parse(shelf.bucket.read(path, 1 << 20))
    assert (made.stage, made.key, made.progress) == ("train", KEY, Progress(10, 1, 5.0))
    assert [leaf.path for leaf in made.tree.leaves] == ["checkpoints/same", "checkpoints/weights"]
    assert path.startswith(f"checkpoints/train/{KEY}/000000000010-")


def test_old_ones_go_with_their_files_and_what_newer_ones_share_stays(shelf, files, tmp_path):
    paths = keep(shelf, files, 10, 20, 30)
    before = {item.path for item in shelf.bucket.items("checkpoints/")}
    shelf.drop(paths[:1], paths[1:])
    gone = before - {item.path for item in shelf.bucket.items("checkpoints/")}
    assert paths[0] in gone
    assert len(gone) == 2, "the document, and the file that it alone names"
    shelf.bring("train", KEY, tmp_path / "work")
    assert found(tmp_path / "work") == "weights after 30"
    assert (tmp_path / "work" / "checkpoints" / "same").exists()


def test_once_finished_all_of_a_key_go_and_others_stay(shelf, files):
    keep(shelf, files, 10, 20)
    (other,) = keep(shelf, files, 10, key=OTHER)
    shelf.clear("train", KEY)
    left = [item.path for item in shelf.bucket.items("checkpoints/")]
    assert {path.split("/")[2] for path in left} == {OTHER}
    assert other in left


# What does not count -----------------------------------------------------------------------------------------


def damage(shelf, tmp_path, what):
    """Changes the newest checkpoint, as somebody might who can write the bucket."""
    made = tmp_path / "made-20" / "checkpoints" / "weights"
    paths = [item.path for item in shelf.bucket.items(f"checkpoints/train/{KEY}/files/")]
    (path,) = [p for p in paths if shelf.bucket.read(p, 1000) == made.read_bytes()]
    if what == "gone":
        shelf.bucket.delete(path)
    else:
        shelf.bucket.write(path, {"changed": b"weights after 66", "longer": b"x" * 1000}[what])


@pytest.mark.parametrize(
    ("what", "said"), [("gone", "is missing"), ("changed", "has sha256"), ("longer", "1,000 bytes")]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(shelf, files, tmp_path, what, said):
    _, newest = keep(shelf, files, 10, 20)
    damage(shelf, tmp_path, what)
    (refused,) = shelf.bring("train", KEY, tmp_path / "work")
    assert newest in refused
    assert said in refused
    assert found(tmp_path / "work") == "weights after 10"


def test_where_none_counts_training_starts_from_the_beginning_loudly(shelf, files, tmp_path):
    keep(shelf, files, 20)
    damage(shelf, tmp_path, "changed")
    refused = shelf.bring("train", KEY, tmp_path / "work")
    assert refused[-1] == "train starts from the beginning: no checkpoint of it counts"
    assert not (tmp_path / "work").exists()


def planted(shelf, files, signer, **changes) -> str:
    """Puts a checkpoint of step 99 there that another signed, or that says something else."""
    stranger = dataclasses.replace(shelf, signer=signer)
    path = stranger.keep("train", KEY, files(99), Progress(99, 9, 1.0))
    if not changes:
        return path
    made = dataclasses.replace(Checkpoint.parse(shelf.bucket.read(path, 1 << 20)), **changes)
    shelf.bucket.write(path, record.sign(made.statement(), signer.crypto))
    return path


def unsigned(shelf, files, signers, tmp_path):
    path = planted(shelf, files, signers["ci"])
    envelope = json.loads(shelf.bucket.read(path, 1 << 20))
    shelf.bucket.write(path, json.dumps({**envelope, "signatures": []}).encode())


def changed(shelf, files, signers, tmp_path):
    path = planted(shelf, files, signers["ci"])
    own = planted(shelf, files, Signer(tmp_path / "stranger", environ={}))
    envelope = json.loads(shelf.bucket.read(path, 1 << 20))
    envelope["payload"] = json.loads(shelf.bucket.read(own, 1 << 20))["payload"]
    shelf.bucket.delete(own)
    shelf.bucket.write(path, json.dumps(envelope).encode())


def by_a_stranger(shelf, files, signers, tmp_path):
    planted(shelf, files, Signer(tmp_path / "stranger", environ={}))


def by_an_approver(shelf, files, signers, tmp_path):
    planted(shelf, files, signers["alice"])


def by_a_revoked_key(shelf, files, signers, tmp_path):
    planted(shelf, files, add_key(tmp_path, "old", "ci", ", revoked: true"))


def by_an_expired_key(shelf, files, signers, tmp_path):
    signer = add_key(tmp_path, "old", "ci", ", until: 2026-01-01")
    planted(shelf, files, signer, at="2025-12-31T00:00:00.000Z")


def of_another_key(shelf, files, signers, tmp_path):
    planted(shelf, files, signers["ci"], key=OTHER)


def of_another_stage(shelf, files, signers, tmp_path):
    planted(shelf, files, signers["ci"], stage="evaluate")


def of_another_step(shelf, files, signers, tmp_path):
    planted(shelf, files, signers["ci"], progress=Progress(5, 0, 1.0))


def from_the_future(shelf, files, signers, tmp_path):
    planted(shelf, files, signers["ci"], at=ago(-1))


def a_record(shelf, files, signers, tmp_path):
    path = planted(shelf, files, signers["ci"])
    statement = record.statement(make("train", key=KEY), record.SLSA)
    shelf.bucket.write(path, record.sign(statement, signers["ci"].crypto))


def nonsense(shelf, files, signers, tmp_path):
    shelf.bucket.write(planted(shelf, files, signers["ci"]), b"[]")


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (unsigned, "not signed by a key that is trusted here"),
        (changed, "not signed by a key that is trusted here"),
        (by_a_stranger, "not signed by a key that is trusted here"),
        (by_an_approver, "signed by alice, and needs ci"),
        (by_a_revoked_key, "whose key is revoked"),
        (by_an_expired_key, "whose key expired with 2026-01-01"),
        (of_another_key, "lies where step 99 of train aaaaaaaaaaaa belongs"),
        (of_another_stage, "lies where step 99"),
        (of_another_step, "step 5, and lies where step 99"),
        (from_the_future, "in the future"),
        (a_record, "not readable as a checkpoint"),
        (nonsense, "not readable as a checkpoint"),
    ],
)
def test_who_can_write_the_bucket_cannot_plant_a_checkpoint(shelf, files, signers, tmp_path, attack, said):
    keep(shelf, files, 10)
    attack(shelf, files, signers, tmp_path)
    trust = Trust.load(tmp_path)  # as the repository says now: an attack may stand on a key that was added
    (refused,) = dataclasses.replace(shelf, trust=trust).bring("train", KEY, tmp_path / "work")
    assert said in refused
    assert found(tmp_path / "work") == "weights after 10"


def test_a_signed_checkpoint_is_no_record(shelf, files):
    (path,) = keep(shelf, files, 10)
    with pytest.raises(IntegrityError, match="not readable"):
        record.read(shelf.bucket.read(path, 1 << 20))


@pytest.mark.parametrize("name", ["/etc/passwd", "../../keys/laptop.pem"])
def test_a_checkpoint_that_names_a_file_elsewhere_is_refused(shelf, files, signers, tmp_path, name):
    path = planted(shelf, files, signers["ci"])
    made = Checkpoint.parse(shelf.bucket.read(path, 1 << 20))
    leaf = dataclasses.replace(made.tree.leaves[0], path=name)
    tree = dataclasses.replace(made.tree, leaves=(leaf,))
    statement = dataclasses.replace(made, tree=tree).statement()
    shelf.bucket.write(path, record.sign(statement, signers["ci"].crypto))
    refused = shelf.bring("train", KEY, tmp_path / "work")
    assert "outside of its folder" in refused[0]


def test_a_store_that_cannot_be_read_stops_before_hours_of_work_are_done_again(shelf, files, tmp_path):
    keep(shelf, files, 10)

    class Gone(type(shelf.bucket)):
        def download(self, *_):
            raise ProgramFailed("the store cannot be reached")

    with pytest.raises(ProgramFailed, match="cannot be reached"):
        dataclasses.replace(shelf, bucket=Gone(shelf.bucket.root)).bring("train", KEY, tmp_path / "work")
    assert not (tmp_path / "work").exists()
    assert not list(tmp_path.glob(".work*"))


def test_a_disk_without_room_for_what_is_fetched_is_told_and_what_lies_here_stays(
    shelf, files, tmp_path, monkeypatch
):
    keep(shelf, files, 10)
    work = tmp_path / "work"
    offered(work, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.offers.note", full)
    with pytest.raises(ProgramFailed, match="No space left on device"):
        shelf.bring("train", KEY, work)
    assert (work / "checkpoints" / "ckpt-1").exists()
    assert not list(tmp_path.glob(".work*"))


@pytest.mark.parametrize(
    ("environ", "may"),
    [
        ({}, True),
        ({"GITLAB_CI": "true", "CI_COMMIT_REF_PROTECTED": "true"}, True),
        ({"GITLAB_CI": "true"}, False),
        (
            {
                "GITLAB_CI": "true",
                "CI_COMMIT_REF_PROTECTED": "true",
                "CI_PIPELINE_SOURCE": "merge_request_event",
            },
            False,
        ),
        ({"GITHUB_ACTIONS": "true", "GITHUB_REF_PROTECTED": "true"}, True),
        ({"GITHUB_ACTIONS": "true", "GITHUB_EVENT_NAME": "pull_request"}, False),
    ],
)
def test_only_what_may_train_for_production_keeps_or_takes_checkpoints(tmp_path, monkeypatch, environ, may):
    for name in (
        *CI_VARIABLES,
        "CI_PIPELINE_SOURCE",
        "GITHUB_EVENT_NAME",
        "CI_COMMIT_REF_PROTECTED",
        "GITHUB_REF_PROTECTED",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipeline.ci.facts", lambda root: FACTS)
    paths = Paths(tmp_path, tmp_path / "pipeline.yaml", tmp_path / "build", tmp_path / "state")
    store = open_store("file:store", tmp_path)
    runner = Runner(settings(), paths, store, Digests(tmp_path / "digests.json"))
    assert (runner.executor.shelf is not None) == may


# In the background -------------------------------------------------------------------------------------------


class Slow:
    """A shelf that keeps nothing before it may, and notes what it was given."""

    def __init__(self, error=None):
        self.may, self.began = threading.Event(), threading.Event()
        self.steps, self.dropped, self.error = [], [], error

    def keep(self, stage, key, folder, progress):
        self.began.set()
        assert self.may.wait(20)
        if self.error:
            raise self.error
        self.steps.append(progress.step)
        return str(progress.step)

    def drop(self, paths, kept):
        self.dropped += paths
        assert len(kept) <= 2


@pytest.fixture
def background(tmp_path, monkeypatch):
    """A function: a keeper at work in a folder, for a shelf."""
    monkeypatch.setattr("pipeline.keeper._LOOK_S", 0.001)
    made = []

    def begin(shelf):
        keeper = Keeper(shelf, "train", KEY, tmp_path)
        keeper.start()
        made.append((shelf, keeper))
        return keeper

    yield begin
    for shelf, keeper in made:
        shelf.may.set()
        keeper.close(last=False)


def test_a_slow_store_holds_nobody_up_and_takes_the_newest_next(tmp_path, background):
    shelf = Slow()
    keeper = background(shelf)
    offered(tmp_path, 1)
    assert shelf.began.wait(20)
    for step in (2, 3, 4):
        offered(tmp_path, step)
    shelf.may.set()
    keeper.close(last=True)
    assert shelf.steps == [1, 4]
    assert keeper.warnings == []


def test_a_finished_stage_waits_for_no_more_uploads(tmp_path, background):
    shelf = Slow()
    keeper = background(shelf)
    offered(tmp_path, 1)
    assert shelf.began.wait(20)
    offered(tmp_path, 2)
    keeper._over.set()
    shelf.may.set()
    keeper.close(last=False)
    assert shelf.steps == [1]


def test_the_last_two_stay_and_older_ones_go(tmp_path, background):
    shelf = Slow()
    shelf.may.set()
    keeper = background(shelf)
    keeper._over.set()
    for step in (1, 2, 3, 4):
        offered(tmp_path, step)
        keeper._take()
    assert shelf.dropped == ["1", "2"]


def test_trouble_with_the_store_is_told_once_and_stops_nothing(tmp_path, background, capsys):
    shelf = Slow(ProgramFailed("s3://bucket cannot be reached."))
    shelf.may.set()
    keeper = background(shelf)
    keeper._over.set()
    for step in (1, 2, 3):
        offered(tmp_path, step)
        keeper._take()
    assert len(keeper.warnings) == 1
    assert "s3://bucket cannot be reached." in keeper.warnings[0]
    keeper.close(last=True)
    said = capsys.readouterr().err
    assert said.count("cannot be reached") == 1
    assert "step 3" in said
    assert "is NOT in the store" in said


# Garbage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "outcome", "goes"),
    [(13, "", False), (15, "", True), (13, "passed", True), (13, "no data", False), (0.01, "passed", False)],
)
def test_checkpoints_stay_while_a_training_may_go_on_from_them(
    shelf, files, tmp_path, signers, days, outcome, goes
):
    keep(shelf, files, 10, 20)
    store = open_store("file:store", tmp_path)
    if outcome:
        made = record.statement(make("train", key=KEY, outcome=outcome), record.SLSA)
        store.add_record("train", KEY, "20260101T000000Z", record.sign(made, signers["ci"].crypto))
    now_s = max(item.modified for item in store.bucket.items("checkpoints/")) + days * DAY_S
    sweep = gc.Sweep(store, Retention(versions=1, days=90, checkpoint_days=14), now_s)
    before = {item.path for item in store.bucket.items("checkpoints/")}
    assert {item.path for item in sweep.find().checkpoints} == (before if goes else set())
    sweep.remove(sweep.find())
    assert {item.path for item in store.bucket.items("checkpoints/")} == (set() if goes else before)
