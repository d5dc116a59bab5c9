"""What a channel costs does not grow with its history: counted in objects asked for, never in time."""

import dataclasses
import json
from collections.abc import Iterator

import pytest

from pipeline.buckets import Item
from pipeline.errors import LostRace
from pipeline.stages import BREAK_GLASS
from pipeline.store import Entry, Store

SHORT, LONG = 10, 400


class Memory:
    """A bucket in memory that counts what is asked of it; what channels need of one."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.asked = 0

    def where(self, path: str) -> str:
        return path

    def read(self, path: str, at_most: int) -> bytes | None:
        self.asked += 1
        return self.objects.get(path)

    def write(self, path: str, data: bytes) -> None:
        self.asked += 1
        self.objects[path] = data

    def create(self, path: str, data: bytes) -> bool:
        self.asked += 1
        return self.objects.setdefault(path, data) is data

    def items(self, prefix: str) -> Iterator[Item]:
        self.asked += 1
        names = sorted(path for path in self.objects if path.startswith(prefix))
        yield from (Item(path, len(self.objects[path]), 0.0) for path in names)


def image(version: int) -> str:
    return f"sha256:{version:064x}"


def entry(version: int, why: str = "promote") -> Entry:
    at = f"2026-01-01T{version // 3600:02}:{version // 60 % 60:02}:{version % 60:02}.000Z"
    return Entry(image(version), version, "m", "s", "p", "ann", at, why, "e" * 64)


def grown(count: int, broken: tuple[int, ...] = ()) -> Store:
    """A store whose production has so many versions; those in `broken` were let in by a break-glass."""
    store = Store(Memory())
    channel = store.channel("production")
    for version in range(1, count + 1):
        channel = store.append(channel, entry(version, BREAK_GLASS.name if version in broken else "promote"))
    return store


def asked(store: Store, work) -> int:
    """How many objects `work` of production asks for."""
    before = store.bucket.asked
    work(store.channel("production"))
    return store.bucket.asked - before


@pytest.mark.parametrize(
    "work",
    [
        lambda channel: channel.live,
        lambda channel: channel.of_version(3),
        lambda channel: channel.of_version(LONG + 1),
        lambda channel: channel.of_image(image(3)),
        lambda channel: list(channel.break_glasses()),
        lambda channel: channel._store.append(channel, entry(channel.revision + 1)),
    ],
    ids=["live", "a version", "a version that never was", "an image", "break-glasses", "an append"],
)
def test_a_long_history_asks_for_no_more_than_a_short_one(work):
    assert asked(grown(LONG, broken=(4,)), work) == asked(grown(SHORT, broken=(4,)), work)


def test_what_was_live_at_a_time_is_found_by_halving():
    moment = entry(5).at
    few, many = (asked(grown(count), lambda channel: channel.live_at(moment)) for count in (SHORT, LONG))
    assert many - few <= 7


def test_an_image_is_found_with_and_without_its_hint():
    store = grown(SHORT)
    found = store.channel("production").of_image(image(3))
    assert found.version == 3
    for hint in (None, b'{"revision": 9}', b"torn"):
        path = f"channels/production/image/{3:064x}"
        store.bucket.objects.pop(path, None)
        if hint:
            store.bucket.objects[path] = hint
        assert store.channel("production").of_image(image(3)) == found
    assert store.channel("production").of_image(image(99)) is None


@pytest.mark.parametrize("broken", [(), (1,), (SHORT,), (2, 3, 7), (1, LONG)])
def test_every_break_glass_is_found_however_long_ago_newest_first(broken):
    channel = grown(LONG if LONG in broken else SHORT, broken).channel("production")
    assert [one.version for one in channel.break_glasses()] == sorted(broken, reverse=True)


def test_an_entry_copied_for_a_rollback_does_not_bring_its_own_break_glasses_along():
    store = grown(5, broken=(2, 4))
    channel = store.channel("production")
    back = dataclasses.replace(channel.of_version(3), why="rollback", at="2026-01-02T00:00:00.000Z")
    channel = store.append(channel, back)
    assert [one.version for one in channel.break_glasses()] == [4, 2]


@pytest.mark.parametrize("number", [5, 6, 99, -1])
def test_a_forged_number_of_a_break_glass_cannot_make_a_look_back_endless(number):
    store = grown(5, broken=(2,))
    path = "channels/production/0000000005.json"
    forged = {**json.loads(store.bucket.objects[path]), "broken": number}
    store.bucket.objects[path] = json.dumps(forged).encode()
    assert list(store.channel("production").break_glasses()) == []


def test_the_loser_of_a_race_is_told_also_with_a_long_history():
    store = grown(LONG)
    seen = store.channel("production")
    store.append(seen, entry(LONG + 1))
    with pytest.raises(LostRace, match=f"made v{LONG + 1} live"):
        store.append(seen, entry(LONG + 2))
