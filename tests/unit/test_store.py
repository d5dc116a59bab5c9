"""The store: whole or not there; channels change by compare-and-swap, and nothing in their past can."""

import dataclasses
import errno
import fcntl
import json
import multiprocessing
import os

import pytest

from pipeline.bucket_file import FileBucket, disk_errors
from pipeline.buckets import open_bucket
from pipeline.errors import IntegrityError, LostRace, ProgramFailed, SettingsError
from pipeline.locks import holder, locked
from pipeline.store import Channel, Entry, Store

ENTRY = Entry(
    "sha256:" + "a" * 64, 1, "m", "s", "p", "ann@example.org", "2026-01-01T00:00:00Z", "promote", "e" * 64
)
K1, K2 = "1" * 64, "2" * 64


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(root):
    return Store(FileBucket(root))


def test_records_come_back_newest_first_and_the_newest_is_known(store):
    second = store.add_record("train", K1, "20260102T000000.000Z", b"second")
    first = store.add_record("train", K1, "20260101T000000.000Z", b"first")
    other = store.add_record("train", K2, "20260103T000000.000Z", b"other")
    assert list(store.records("train", K1)) == [second, first]
    assert list(store.records("train", "3" * 64)) == []
    assert store.newest_record("train") == other
    assert store.newest_record("data") is None
    assert store.fetch_bytes(second) == b"second"


@pytest.mark.parametrize("said", ["../../../etc/passwd", "x/y", f"{K1}/2026-{'Z' * 64}", ""])
def test_a_hostile_pointer_to_the_newest_record_leads_nowhere(store, root, said):
    (root / "records" / "train").mkdir(parents=True)
    (root / "records" / "train" / "newest").write_text(said)
    assert store.newest_record("train") is None


def test_an_absurdly_large_record_is_refused_and_not_read_into_memory(store, root, monkeypatch):
    monkeypatch.setattr("pipeline.store.SMALL_BYTES", 1000)
    name = store.put_bytes(b"x" * 1001)
    with pytest.raises(IntegrityError, match="more than 1,000 bytes"):
        store.fetch_bytes(name)


def test_a_file_with_another_content_than_named_is_not_kept(store, tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(IntegrityError, match="has sha256"):
        store.put(tmp_path / "f", "0" * 64)
    assert not store.has("0" * 64, 1)
    assert not list((tmp_path / "store").rglob(".*"))


def test_a_missing_blob_is_named_with_its_place_and_the_remedy(store):
    with pytest.raises(
        IntegrityError, match=f"blob {'0' * 64} is not in the store: .* is missing. Bring it back"
    ):
        store.fetch_bytes("0" * 64)


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "", "0" * 63])
def test_a_name_that_is_no_digest_is_refused(store, name):
    with pytest.raises(IntegrityError, match="not a sha256"):
        store.fetch_bytes(name)


@pytest.mark.parametrize("path", ["../up", "/etc/passwd", "a/../../b"])
def test_a_bucket_does_not_leave_its_folder(root, path):
    with pytest.raises(IntegrityError, match="outside"):
        FileBucket(root).read(path, 10)


def test_a_store_in_the_place_of_a_file_is_told(tmp_path):
    (tmp_path / "store").write_text("x")
    with pytest.raises(SettingsError, match="a part of its path is a file"):
        Store(FileBucket(tmp_path / "store")).put_bytes(b"x")


# Channels ----------------------------------------------------------------------------------------------------


def append(store, version, **changes) -> Channel:
    return store.append(store.channel("production"), dataclasses.replace(ENTRY, version=version, **changes))


def test_an_untouched_channel_is_empty(store):
    assert store.channel("production") == Channel("production")
    assert list(store.channel("production").newest_first()) == []


def test_a_channel_remembers_its_history(store):
    append(store, 1)
    append(store, 2)
    channel = store.channel("production")
    assert [entry.version for entry in channel.newest_first()] == [2, 1]
    assert (channel.live.version, channel.revision) == (2, 2)


def test_of_two_promotions_that_saw_the_same_channel_one_wins(store):
    seen = store.channel("production")
    store.append(seen, ENTRY)
    with pytest.raises(LostRace, match=r"ann@example.org made v1 live") as caught:
        store.append(seen, dataclasses.replace(ENTRY, version=2))
    assert caught.value.exit_code == 7
    assert store.channel("production").live.version == 1


def _promote(root, racer, start, outcomes):
    store = Store(FileBucket(root))
    for turn in range(200):
        seen = store.channel("production")
        start.wait()
        try:
            store.append(seen, dataclasses.replace(ENTRY, version=2 * turn + racer))
            outcomes.put((turn, "won"))
        except LostRace:
            outcomes.put((turn, "lost"))
        start.wait()


def test_of_two_promotions_at_once_exactly_one_wins_two_hundred_times(store, root):
    context = multiprocessing.get_context("fork")
    start, outcomes = context.Barrier(2), context.SimpleQueue()
    racers = [context.Process(target=_promote, args=(root, i, start, outcomes)) for i in range(2)]
    for racer in racers:
        racer.start()
    told = sorted(outcomes.get() for _ in range(400))
    for racer in racers:
        racer.join()
    assert told == [(turn, how) for turn in range(200) for how in ("lost", "won")]
    assert store.channel("production").revision == 200
    assert [e.version // 2 for e in store.channel("production").newest_first()] == list(range(199, -1, -1))


@pytest.mark.parametrize("hint", [None, '{"revision": 1}', '{"revision": "x"}', "torn"])
def test_a_hint_that_a_kill_left_behind_misleads_nobody(store, root, hint):
    append(store, 1)
    append(store, 2)
    file = root / "channels" / "production.json"
    file.unlink() if hint is None else file.write_text(hint)
    assert store.channel("production").live.version == 2
    assert append(store, 3).revision == 3


def test_an_entry_that_is_gone_or_torn_is_an_integrity_error_and_not_an_earlier_state(store, root):
    append(store, 1)
    append(store, 2)
    last = root / "channels" / "production" / "0000000002.json"
    whole = last.read_bytes()
    last.write_bytes(whole[:-20])
    with pytest.raises(IntegrityError, match="not readable"):
        store.channel("production")
    last.unlink()
    with pytest.raises(IntegrityError, match=r"entry 2, which .* names, is gone"):
        store.channel("production")


@pytest.mark.parametrize(
    "said", [b"[" * 100_000, b"[]", b'{"image": 1}', None], ids=["nested", "list", "fields", "types"]
)
def test_an_entry_that_is_none_is_named_and_not_a_crash(store, root, said):
    append(store, 1)
    file = root / "channels" / "production" / "0000000001.json"
    file.write_bytes(said or file.read_bytes().replace(b'"highest":1', b'"highest":"x"'))
    with pytest.raises(IntegrityError, match="is not readable"):
        store.channel("production")


def test_a_past_that_was_rewritten_breaks_the_chain(store, root):
    for version in (1, 2, 3):
        append(store, version)
    first = root / "channels" / "production" / "0000000001.json"
    first.write_bytes(first.read_bytes().replace(b"ann@", b"eve@"))
    entries = store.channel("production").newest_first()
    assert [next(entries).version, next(entries).version] == [3, 2]
    with pytest.raises(IntegrityError, match="entry 1 is not the one that entry 2 followed"):
        next(entries)


def test_an_entry_is_readable_json_with_who_when_and_why(store, root):
    append(store, 1)
    row = json.loads((root / "channels" / "production" / "0000000001.json").read_bytes())
    assert (row["by"], row["why"], row["at"]) == ("ann@example.org", "promote", "2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("moment", "live"),
    [
        ("2026-01-15", 1),
        ("2026-02-15T12:00:00Z", 2),
        ("2025-12-31", None),
        ("2026-04-01", 3),
        ("2026-03-01T00:00:00Z", 3),
    ],
)
def test_what_was_live_at_a_time_is_found(store, moment, live):
    for month in (1, 2, 3):
        append(store, month, at=f"2026-{month:02}-01T00:00:00Z")
    found = store.channel("production").live_at(moment)
    assert (found.version if found else None) == live


def test_the_times_of_a_channel_never_go_back(store):
    append(store, 1, at="2026-02-01T00:00:00Z")
    assert append(store, 2, at="2026-01-31T23:59:59Z").live.at == "2026-02-01T00:00:00Z"


@pytest.mark.parametrize("hint", ["kept", "lost", "wrong"])
def test_a_version_is_found_with_and_without_its_hint(store, root, hint):
    for version in (1, 2, 1, 3):
        append(store, version)
    file = root / "channels" / "production" / "version" / "1"
    if hint == "lost":
        file.unlink()
    if hint == "wrong":
        file.write_text('{"revision": 4}')
    channel = store.channel("production")
    assert channel.of_version(1).previous == store.entry("production", 2)[1]
    assert channel.of_version(7) is None


# The disk ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("address", ["ftp:x", "file:", "s3:/bucket"])
def test_an_address_that_is_no_store_is_refused(tmp_path, address):
    with pytest.raises(SettingsError, match="must be file:PATH or s3://BUCKET/PREFIX"):
        open_bucket(address, tmp_path)


def test_who_holds_a_lock_is_seen_and_looking_takes_it_from_nobody(tmp_path):
    path = tmp_path / "lock"
    assert holder(path) == ""
    with locked(path, LostRace):
        assert holder(path) == f"process {os.getpid()}"
    assert holder(path) == ""
    with locked(path, LostRace):
        assert path.exists()


def test_lock_that_somebody_only_looks_at_is_taken_a_moment_later(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.touch()
    looker = path.open()
    fcntl.flock(looker, fcntl.LOCK_SH)
    monkeypatch.setattr("pipeline.locks.time.sleep", lambda seconds: seconds and looker.close())
    with locked(path, LostRace):
        assert holder(path)
