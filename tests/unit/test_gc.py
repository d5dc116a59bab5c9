"""Garbage collection: what a channel or a retention rule needs stays, whoever else is at work; the rest goes."""

import dataclasses
import os
import time

import pytest

from pipeline import gc, trees
from pipeline.digest import Digests
from pipeline.errors import GateRefused, IntegrityError, LostRace, SettingsError
from pipeline.execution import Paths
from pipeline.locks import alone, deployment_lock
from pipeline.runner import Runner
from pipeline.settings import Retention
from pipeline.store import Entry, blob, open_store
from tests.support import settings
from tests.support_evidence import Evidence, add_key, make

DAY_S = 86_400
IMAGES = ["sha256:" + str(number) * 64 for number in range(1, 10)]
CI = ("GITLAB_CI", "GITHUB_ACTIONS", "CI_COMMIT_REF_PROTECTED", "GITHUB_REF_PROTECTED")


class Walks(Evidence):
    """Evidence with something in every output, another for each image."""

    def _tree(self, output, said, image):
        content = {"digest": image, "version": 1}
        return self.document(
            said.get(output, "file"), content if output in said else {**content, "of": output}
        )

    def live(self, version: int, **changes) -> Entry:
        """Walks a version into production."""
        self.walk(IMAGES[version])
        return self.promote(version, IMAGES[version])

    def output(self, name: str) -> str:
        """The tree digest of an output of the last walk."""
        return self.records[name.split("/")[0]].outputs[name]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """What a power cut leaves is not asked here, and waiting for the disk is most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def walks(tmp_path):
    signers = {"ci": add_key(tmp_path, "ci", "ci"), "approve": add_key(tmp_path, "alice", "approver")}
    return Walks(tmp_path, settings(), open_store("file:store", tmp_path), signers)


@pytest.fixture
def objects(walks):
    """A function: every object of the store, by path."""
    root = walks.root / "store"
    return lambda: {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def age(root, days: float) -> None:
    """Makes every object of the store so many days older."""
    then = time.time() - days * DAY_S
    for path in (root / "store").rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def sweep(walks, versions=2, days=90, later_days=0.0, lost=()) -> gc.Sweep:
    return gc.Sweep(walks.store, Retention(versions, days, 14), time.time() + later_days * DAY_S, lost)


def clean(walks, **options) -> gc.Waste:
    once = sweep(walks, **options)
    return once.remove(once.find())


def path_of(walks, sha256):
    return walks.root / "store" / blob(sha256)


def test_newest_versions_stay_whole_and_of_older_ones_the_evidence(walks):
    models, logs, entries = {}, {}, {}
    for version in (1, 2, 3, 4):
        entries[version] = walks.live(version)
        models[version], logs[version] = walks.output("export/savedmodel"), walks.output("train/log")
    removed = clean(walks, later_days=100)
    whole = {version for version in models if trees.kept(models[version], walks.store)}
    assert whole == {version for version in logs if trees.kept(logs[version], walks.store)} == {3, 4}
    assert removed.blobs
    assert not removed.records
    for version, entry in entries.items():
        tree = walks.policy.examine("promote", entry.evidence, entry.image)
        assert tree.holds, f"v{version}: {[node.faults for node in tree.walk()]}"
        assert trees.kept(entry.published, walks.store), "a rollback to it by name starts from this"
    history = [entry.version for entry in walks.store.channel("production").newest_first()]
    assert history == [4, 3, 2, 1]


def test_a_second_collection_finds_nothing_more(walks):
    for version in (1, 2, 3, 4):
        walks.live(version)
    assert clean(walks, later_days=100).blobs
    again = sweep(walks, later_days=100).find()
    assert (again.records, again.blobs, again.logs) == ((), (), ())


def test_a_dry_run_says_what_would_go_and_changes_nothing(walks, objects):
    for version in (1, 2, 3, 4):
        walks.live(version)
    before = objects()
    foreseen = sweep(walks, later_days=100).find()
    assert objects() == before
    assert clean(walks, later_days=100) == foreseen
    gone = set(before) - set(objects())
    assert gone == {item.path for item in foreseen.blobs}
    assert foreseen.size_bytes == sum(len(before[path]) for path in gone)
    assert f"{len(gone)} of {foreseen.of} blobs" in str(foreseen)


A, B, C = ("sha256:" + letter * 64 for letter in "abc")


def entry(image, version, model, why="promote") -> Entry:
    return Entry(image, version, model, "s", "p", "ann", "2026-01-01T00:00:00Z", why, f"{version}{why}")


@pytest.mark.parametrize(
    ("history", "versions", "kept"),
    [
        ([entry(A, 1, "m1"), entry(B, 2, "m2"), entry(C, 3, "m3")], 1, {"3promote", "2promote"}),
        ([entry(A, 1, "m1"), entry(B, 2, "m2"), entry(C, 3, "m3")], 3, {"3promote", "2promote", "1promote"}),
        # The same model in three images: the champion is the one before, the rollback goes one step.
        ([entry(A, 1, "m1"), entry(B, 2, "m2"), entry(C, 3, "m2")], 1, {"3promote", "2promote", "1promote"}),
        # After a rollback to v2 the next one goes to v1.
        (
            [entry(A, 1, "m1"), entry(B, 2, "m2"), entry(C, 3, "m3"), entry(B, 2, "m2", "rollback")],
            1,
            {"2rollback", "3promote", "1promote"},
        ),
        ([entry(A, 1, "m1")], 1, {"1promote"}),
    ],
)
def test_what_a_rollback_or_a_comparison_would_take_is_in_use(tmp_path, history, versions, kept):
    store = open_store("file:store", tmp_path)
    for one in history:
        store.append(store.channel("production"), one)
    channel = store.channel("production")
    used = gc.in_use(channel, list(channel.newest_first()), versions)
    assert {one.evidence for one in used} == kept


def test_what_was_recorded_lately_stays_with_all_that_it_needs_and_the_older_goes(walks):
    walks.walk(IMAGES[1], until="publish")
    old, old_tree = dict(walks.records), walks.output("export/savedmodel")
    walks.walk(IMAGES[2], until="train")
    base = dict(walks.records)
    age(walks.root, 100)
    walks.walk(IMAGES[4], until="publish")
    lately, lately_tree = dict(walks.records), walks.output("export/savedmodel")
    walks.walk(IMAGES[3], until="publish")
    walks.change("train", needs={**walks.records["train"].needs, "data": base["data"].sha256})
    clean(walks, days=90)
    assert trees.kept(base["data"].outputs["data/rows"], walks.store), "older, and needed by a young one"
    assert all(path_of(walks, made.sha256).exists() for made in walks.records.values())
    assert trees.kept(walks.output("export/savedmodel"), walks.store)
    assert all(path_of(walks, made.sha256).exists() for made in lately.values()), "though not the newest"
    assert trees.kept(lately_tree, walks.store)
    assert not trees.kept(old_tree, walks.store)
    for stage in ("train", "evaluate", "export"):
        assert not path_of(walks, old[stage].sha256).exists()
        assert old[stage].sha256 not in list(walks.store.records(stage, old[stage].key))


def test_the_newest_record_of_each_stage_stays_however_old_so_that_nothing_runs_again(walks, objects):
    walks.walk()
    before = objects()
    clean(walks, versions=1, days=1, later_days=3000)
    assert objects() == before


@pytest.mark.parametrize(("hours", "stays"), [(0, True), (0.9, True), (1.1, False), (5000, False)])
def test_what_nobody_named_yet_stays_for_an_hour(walks, hours, stays):
    walks.live(1)
    sha256 = walks.store.put_bytes(b"of a run that uploads")
    clean(walks, later_days=hours / 24)
    assert path_of(walks, sha256).exists() is stays


def test_follow_ups_stay_since_without_them_a_break_glass_would_be_open_again(walks):
    entry = walks.live(1)
    made = walks.add(make("follow-up", needs={"break-glass": entry.evidence}), walks.signers["approve"])
    walks.add(make("follow-up", needs={"break-glass": "f" * 64}), walks.signers["approve"])
    clean(walks, versions=1, later_days=5000, lost=["f" * 64])
    assert path_of(walks, made.sha256).exists()
    assert made.sha256 in list(walks.store.records("follow-up", made.key))


def test_logs_go_by_age_alone(walks, objects):
    walks.store.bucket.write("logs/abc/2026/report/index.html", b"<html>")
    age(walks.root, 91)
    walks.store.bucket.write("logs/def/2026/report/index.html", b"<html>")
    removed = clean(walks, days=90)
    assert [item.path for item in removed.logs] == ["logs/abc/2026/report/index.html"]
    assert removed.size_bytes == 6
    assert list(objects()) == ["logs/def/2026/report/index.html"]


def test_what_the_store_does_not_know_is_left_alone(walks, objects):
    walks.live(1)
    strange = ["blobs/sha256/ab/readme", "blobs/sha256/ab/" + "f" * 64, "blobs/other", "notes.txt"]
    for path in strange:
        walks.store.bucket.write(path, b"somebody's")
    clean(walks, later_days=5000)
    assert set(strange) <= set(objects())


# Trouble ---------------------------------------------------------------------------------------------------


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.fixture
def four(walks):
    """Four versions, the records of the first under `records`."""
    walks.live(1)
    first = dict(walks.records)
    for version in (2, 3, 4):
        walks.live(version)
    return walks, first


@pytest.mark.parametrize("stage", ["check", "train", "approve", "promote"])
@pytest.mark.parametrize("spoil", [flip, os.unlink])
def test_nothing_is_removed_while_a_record_behind_any_version_cannot_be_read(four, objects, stage, spoil):
    walks, first = four
    sha256 = first[stage].sha256
    spoil(path_of(walks, sha256))
    before = objects()
    with pytest.raises(IntegrityError, match=f"removed no artifact.*{sha256}") as caught:
        clean(walks, later_days=100)
    assert objects() == before
    assert f"--lost {sha256}" in str(caught.value)
    assert clean(walks, later_days=100, lost=[sha256]).blobs, "one that is lost for good stops it no longer"
    live = walks.store.channel("production").live
    assert walks.policy.examine("promote", live.evidence, live.image).holds


def test_nothing_is_removed_while_an_output_that_is_kept_cannot_be_read(four, objects):
    walks, _ = four
    flip(path_of(walks, walks.output("export/savedmodel")))
    before = objects()
    with pytest.raises(IntegrityError, match=walks.output("export/savedmodel")):
        clean(walks, later_days=100)
    assert objects() == before


@pytest.mark.parametrize("gone", [["0000000001"], ["0000000002"], ["0000000001", "0000000002"]])
def test_nothing_is_removed_while_entries_of_a_channel_are_missing(four, objects, gone):
    walks, _ = four
    channels = walks.root / "store" / "channels"
    (channels / "production.json").unlink()
    for name in gone:
        (channels / "production" / f"{name}.json").unlink()
    before = objects()
    with pytest.raises(IntegrityError):
        clean(walks, later_days=100)
    assert objects() == before


def test_nothing_is_removed_while_an_entry_was_changed(four, objects):
    walks, _ = four
    path = walks.root / "store" / "channels" / "production" / "0000000002.json"
    path.write_bytes(path.read_bytes().replace(b'"ann"', b'"eve"'))
    before = objects()
    with pytest.raises(IntegrityError, match="history was changed"):
        clean(walks, later_days=100)
    assert objects() == before


@pytest.mark.parametrize("name", ["train/abc/20260101.json", "train/newer-layout", "x"])
def test_nothing_is_removed_where_another_version_keeps_records_in_a_way_that_this_one_does_not_know(
    four, objects, name
):
    walks, _ = four
    walks.store.bucket.write(f"records/{name}", b"")
    before = objects()
    with pytest.raises(IntegrityError, match=f"records/{name} is no name of a record"):
        clean(walks, later_days=100)
    assert objects() == before


def test_a_name_whose_record_was_deleted_goes_and_stops_nothing(walks):
    walks.walk(until="evaluate")
    path_of(walks, walks.records["train"].sha256).unlink()
    removed = clean(walks, later_days=1)
    assert [item.path.split("/")[1] for item in removed.records] == ["train"]
    assert list(walks.store.records("train", walks.records["train"].key)) == []


def test_a_hostile_record_that_names_no_digests_stops_it_by_name(walks, objects):
    walks.walk(until="train")
    made = walks.add(dataclasses.replace(walks.records["data"], needs={"check": 7}))
    before = objects()
    with pytest.raises(IntegrityError, match=made.sha256):
        clean(walks)
    assert objects() == before


# Others at work --------------------------------------------------------------------------------------------


def test_a_record_that_a_run_elsewhere_adds_meanwhile_keeps_what_it_names(walks):
    walks.walk(IMAGES[1], until="publish")
    before = dict(walks.records)
    age(walks.root, 100)
    walks.walk(IMAGES[2], until="publish")
    once = sweep(walks)
    found = once.find()
    assert any(item.path.endswith(before["export"].sha256) for item in found.blobs)
    # That run found the export of the first walk an hour ago, made an image of it, and now says so.
    walks.add(make("image", walks.records["image"].outputs, needs={"export": before["export"].sha256}))
    uploading = walks.store.put_bytes(b"of the next stage")
    removed = once.remove(found)
    assert path_of(walks, before["export"].sha256).exists()
    assert trees.kept(before["export"].outputs["export/savedmodel"], walks.store)
    assert path_of(walks, uploading).exists()
    assert any(item.path.endswith(before["image"].sha256) for item in removed.blobs)


def test_a_version_that_goes_live_meanwhile_is_kept_whole(walks):
    for version in (1, 2, 3):
        walks.live(version)
    once = sweep(walks, versions=1, later_days=100)
    found = once.find()
    live = walks.live(4)
    once.remove(found)
    assert trees.kept(walks.output("export/savedmodel"), walks.store)
    assert walks.policy.examine("promote", live.evidence, live.image).holds


def test_two_collections_at_once_lose_nothing_and_neither_fails(walks, objects):
    for version in (1, 2, 3, 4):
        walks.live(version)
    one, other = sweep(walks, later_days=100), sweep(walks, later_days=100)
    first, second = one.find(), other.find()
    one.remove(first)
    after = objects()
    other.remove(second)
    assert objects() == after
    live = walks.store.channel("production").live
    assert walks.policy.examine("promote", live.evidence, live.image).holds


# The command -----------------------------------------------------------------------------------------------


@pytest.fixture
def runner(walks, monkeypatch):
    for name in CI:
        monkeypatch.delenv(name, raising=False)
    paths = Paths(walks.root, walks.root / "pipeline.yaml", walks.root / "build", walks.root / "state")
    return Runner(walks.settings, paths, walks.store, Digests(walks.root / "digests.json"))


def test_the_command_says_what_it_removed_and_a_dry_run_what_it_would(walks, runner, objects):
    walks.live(1)
    walks.store.put_bytes(b"left over")
    age(walks.root, 1)
    blobs = sum(path.startswith("blobs/") for path in objects())
    said = f"0 records, 1 of {blobs} blobs, 0 logs and 0 files of checkpoints, 9 bytes"
    assert gc.gc(runner, dry_run=True) == f"would remove {said}"
    assert gc.gc(runner, dry_run=False) == f"removed {said}"
    assert gc.gc(runner, dry_run=True).startswith("would remove 0 records, 0 of")


def test_what_a_killed_writer_left_goes_after_a_week(walks, runner, objects):
    blobs = walks.store.bucket.root / "blobs/sha256/ab"
    blobs.mkdir(parents=True, exist_ok=True)
    left = {days: blobs / f".{'ab' * 32}.{days:012x}" for days in (1, 8)}
    for days, path in left.items():
        path.write_bytes(b"half")
        os.utime(path, (time.time() - days * DAY_S,) * 2)
    assert gc.gc(runner, dry_run=False).endswith("; unfinished uploads: 1")
    assert left[1].exists()
    assert not left[8].exists()


def test_no_collection_while_a_run_or_a_deployment_goes_on_here(walks, runner, objects):
    walks.store.put_bytes(b"left over")
    age(walks.root, 1)
    for lock in (alone(runner.paths.build), deployment_lock(runner.paths.state)):
        with lock, pytest.raises(LostRace):
            gc.gc(runner, dry_run=False)
    assert len(objects()) == 1


@pytest.mark.parametrize("vendor", ["GITLAB_CI", "GITHUB_ACTIONS"])
def test_only_a_protected_ref_removes_and_any_may_ask_what_would_go(walks, runner, monkeypatch, vendor):
    monkeypatch.setenv(vendor, "true")
    assert gc.gc(runner, dry_run=True).startswith("would remove")
    with pytest.raises(GateRefused, match="only a protected ref"):
        gc.gc(runner, dry_run=False)
    monkeypatch.setenv("CI_COMMIT_REF_PROTECTED", "true")
    monkeypatch.setenv("GITHUB_REF_PROTECTED", "true")
    assert gc.gc(runner, dry_run=False).startswith("removed")


def test_what_is_called_lost_must_be_a_digest(runner):
    with pytest.raises(SettingsError, match="--lost abc"):
        gc.gc(runner, dry_run=True, lost=["abc"])
