"""A machine remembers the newest entry of each channel that it saw, and refuses a store that has less."""

import dataclasses
import shutil

import pytest

from pipeline.authority import Authority
from pipeline.digest import Digests
from pipeline.errors import IntegrityError
from pipeline.execution import Paths
from pipeline.heads import Heads
from pipeline.store import Entry, open_store
from tests.support import settings

ENTRY = Entry("sha256:" + "a" * 64, 1, "m", "s", "p", "ann", "2026-01-01T00:00:00Z", "promote", "e" * 64)


@pytest.fixture
def store(tmp_path):
    """A store whose production had three versions."""
    store = open_store("file:store", tmp_path)
    for version in (1, 2, 3):
        live = dataclasses.replace(ENTRY, version=version, image="sha256:" + str(version) * 64)
        store.append(store.channel("production"), live)
    return store


def look(state, store):
    """What a machine does that finds a channel as it was signed."""
    heads = Heads(state, store)
    channel = heads.channel("production")
    heads.remember(channel)
    return channel


@pytest.fixture
def cut(store):
    """Takes production's entries from this number on out of the store, and leaves hints that fit."""

    def remove(first: int) -> None:
        folder = store.bucket.root / "channels/production"
        for path in folder.glob("*.json"):
            if int(path.stem) >= first:
                path.unlink()
        (folder.parent / "production.json").write_text(f'{{"revision": {first - 1}}}')

    return remove


def test_entries_that_were_seen_and_are_gone_are_missed(tmp_path, store, cut):
    assert look(tmp_path, store).revision == 3
    cut(3)
    assert store.channel("production").live.version == 2
    with pytest.raises(IntegrityError, match=r"had 3 entries .* has 2 now.*Only if the store was emptied"):
        look(tmp_path, store)


def test_a_store_that_was_emptied_is_missed_too(tmp_path, store, cut):
    look(tmp_path, store)
    cut(1)
    with pytest.raises(IntegrityError, match=r"had 3 entries .* has 0 now"):
        look(tmp_path, store)


def test_other_entries_in_the_place_of_those_that_were_seen_are_found_out(tmp_path, store, cut):
    look(tmp_path, store)
    cut(3)
    for version in (7, 8):
        store.append(store.channel("production"), dataclasses.replace(ENTRY, version=version))
    assert store.channel("production").revision == 4
    with pytest.raises(IntegrityError, match="entry 3 is another than the one that this machine saw"):
        look(tmp_path, store)


def test_another_entry_in_the_place_of_the_newest_is_found_out(tmp_path, store, cut):
    look(tmp_path, store)
    cut(3)
    store.append(store.channel("production"), dataclasses.replace(ENTRY, version=7))
    with pytest.raises(IntegrityError, match="entry 3 is another"):
        look(tmp_path, store)


def test_new_entries_are_seen_and_remembered(tmp_path, store, cut):
    look(tmp_path, store)
    store.append(store.channel("production"), dataclasses.replace(ENTRY, version=4))
    assert look(tmp_path, store).revision == 4
    cut(4)
    with pytest.raises(IntegrityError, match="had 4 entries"):
        look(tmp_path, store)


def test_a_machine_that_never_saw_them_and_one_that_was_told_to_forget_take_what_is_there(
    tmp_path, store, cut
):
    look(tmp_path, store)
    cut(3)
    assert look(tmp_path / "another", store).revision == 2
    (memory,) = (tmp_path / "seen").iterdir()
    memory.unlink()
    assert look(tmp_path, store).revision == 2


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"revision": 3, "other": 1}', "\x00"])
def test_a_memory_that_cannot_be_read_is_none_and_is_written_anew(tmp_path, store, damage):
    look(tmp_path, store)
    (memory,) = (tmp_path / "seen").iterdir()
    whole = memory.read_text()
    memory.write_text(damage)
    assert look(tmp_path, store).revision == 3
    assert memory.read_text() == whole


def test_two_stores_have_a_memory_each(tmp_path, store):
    look(tmp_path, store)
    assert look(tmp_path, open_store("file:other", tmp_path)).revision == 0


@pytest.mark.parametrize(
    ("place", "refused"), [("store", False), ("{}/store", False), ("{}/../elsewhere", True)]
)
def test_a_store_in_cis_checkout_may_have_less_than_the_pipeline_before_had(
    tmp_path, store, cut, monkeypatch, place, refused
):
    """It is handed from job to job as an artifact, and a new pipeline begins with none; one elsewhere lasts."""
    monkeypatch.setenv("GITLAB_CI", "true")
    root = tmp_path / "checkout"
    paths = Paths(root, root / "pipeline.yaml", root / "build", tmp_path / "state")

    def revision() -> int:
        named = settings({"store": f"file:{place.format(root)}"})
        heads = Authority(named, paths, store, Digests(tmp_path / "digests")).heads
        channel = heads.channel("production")
        heads.remember(channel)
        return channel.revision

    assert revision() == 3
    shutil.rmtree(paths.build, ignore_errors=True)
    cut(2)
    if refused:
        with pytest.raises(IntegrityError, match="had 3 entries"):
            revision()
    else:
        assert revision() == 1


def test_an_entry_that_was_planted_and_removed_again_is_not_missed(tmp_path, store, cut):
    look(tmp_path, store)
    store.append(store.channel("production"), dataclasses.replace(ENTRY, version=666))
    planted = Heads(tmp_path, store).channel(
        "production"
    )  # that its signature is wrong is for the policy to say
    assert planted.live.version == 666
    cut(4)
    assert look(tmp_path, store).revision == 3


def test_who_looked_earlier_and_writes_later_forgets_nothing(tmp_path, store, cut):
    heads = Heads(tmp_path, store)
    earlier = heads.channel("production")
    store.append(store.channel("production"), dataclasses.replace(ENTRY, version=4))
    look(tmp_path, store)
    heads.remember(earlier)
    cut(4)
    with pytest.raises(IntegrityError, match="had 4 entries"):
        look(tmp_path, store)
