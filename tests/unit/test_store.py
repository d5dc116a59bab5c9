"""The store: whole or not there; channels change by compare-and-swap."""

import dataclasses
import errno
import json
import multiprocessing

import pytest

from pipeline.errors import IntegrityError, LostRace, ProgramFailed, SettingsError
from pipeline.store import Channel, Entry, FileStore, disk_errors, locked, open_store

ENTRY = Entry(
    "sha256:" + "a" * 64, 1, "m", "s", "p", "ann@example.org", "2026-01-01T00:00:00Z", "promote", "e" * 64
)


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "store")


def test_records_come_back_oldest_first_and_the_newest_is_known(store):
    store.add_record("train", "k1", "2026-01-02", b"second")
    store.add_record("train", "k1", "2026-01-01", b"first")
    store.add_record("train", "k2", "2026-01-03", b"other")
    assert store.records("train", "k1") == [b"first", b"second"]
    assert store.records("train", "unknown") == []
    assert store.newest_record("train") == b"other"
    assert store.newest_record("data") is None


def test_a_record_is_also_a_blob_by_its_digest(store):
    name = store.add_record("train", "k", "2026", b"envelope")
    assert store.fetch_bytes(name) == b"envelope"


def test_a_file_with_another_content_than_named_is_not_kept(store, tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(IntegrityError, match="has sha256"):
        store.put(tmp_path / "f", "0" * 64)
    assert not store.has("0" * 64, 1)
    assert not list((tmp_path / "store").rglob(".*"))


def test_a_missing_blob_is_named(store):
    with pytest.raises(IntegrityError, match="0" * 64):
        store.fetch_bytes("0" * 64)


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "", "0" * 63])
def test_a_name_that_is_no_digest_is_refused(store, name):
    with pytest.raises(IntegrityError, match="not a sha256"):
        store.fetch_bytes(name)


def test_an_untouched_channel_is_empty(store):
    assert store.channel("production") == Channel("production")
    assert store.channel("production").live is None


def test_a_channel_remembers_its_history(store):
    first = store.append(store.channel("production"), ENTRY)
    store.append(first, dataclasses.replace(ENTRY, version=2))
    assert [entry.version for entry in store.channel("production").history] == [1, 2]
    assert store.channel("production").live.version == 2


def test_of_two_promotions_that_saw_the_same_channel_one_wins(store):
    seen = store.channel("production")
    store.append(seen, ENTRY)
    with pytest.raises(LostRace, match=r"ann@example.org made v1 live") as caught:
        store.append(seen, dataclasses.replace(ENTRY, version=2))
    assert caught.value.exit_code == 7
    assert store.channel("production").live.version == 1


def _promote(root, version, start, outcomes):
    store = FileStore(root)
    seen = store.channel("production")
    start.wait()
    try:
        store.append(seen, dataclasses.replace(ENTRY, version=version))
        outcomes.put("won")
    except LostRace:
        outcomes.put("lost")


def test_of_eight_promotions_at_once_exactly_one_wins(store):
    context = multiprocessing.get_context("fork")
    start, outcomes = context.Barrier(8), context.Queue()
    racers = [context.Process(target=_promote, args=(store.root, i, start, outcomes)) for i in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(outcomes.get() for _ in racers) == ["lost"] * 7 + ["won"]
    assert len(store.channel("production").history) == 1


def test_a_damaged_channel_is_an_integrity_error_and_not_an_empty_one(store):
    store.append(store.channel("production"), ENTRY)
    path = store.root / "channels" / "production.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(IntegrityError, match="production"):
        store.channel("production")


def test_a_channel_is_readable_json_with_who_when_and_why(store):
    store.append(store.channel("production"), ENTRY)
    (row,) = json.loads((store.root / "channels" / "production.json").read_bytes())["history"]
    assert row["by"] == "ann@example.org"
    assert row["why"] == "promote"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG])
def test_a_full_or_read_only_disk_is_said_plainly(tmp_path, number):
    with (
        pytest.raises(ProgramFailed, match=r"could not be written.*make room or mend the permissions"),
        disk_errors(tmp_path),
    ):
        raise OSError(number, "no")


def test_another_operating_system_error_is_not_hidden(tmp_path):
    with pytest.raises(ConnectionResetError), disk_errors(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_a_held_lock_tells_who_holds_it(tmp_path):
    second = locked(tmp_path / "lock", LostRace)
    with locked(tmp_path / "lock"), pytest.raises(LostRace, match=r"process \d+"), second:
        pytest.fail("the lock was given twice")


def test_an_address_that_is_no_file_store_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="ftp"):
        open_store("ftp:x", tmp_path)
