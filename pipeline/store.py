"""Blobs, records and channels, in a bucket.

    blobs/sha256/ab/abcd…               content-addressed
    records/STAGE/KEY/TIME-SHA256       an empty object that names a record, whose envelope is a blob
    records/STAGE/newest                the newest of a stage, as KEY/TIME-SHA256
    channels/NAME/0000000007.json       an entry of a channel: created once, never changed
    channels/NAME.json                  how many entries there are: a hint, since a reader looks for more
    channels/NAME/version/3             the newest entry of a version: a hint
    channels/NAME/image/SHA256          the newest entry of an image: a hint
    begun/NAME.json                     the entry that somebody last began to bring about: a hint

What decides is what is created: the blob of a record before its name, an entry before any hint. So whoever is killed
between leaves nothing torn, and of two that append at the same moment exactly one creates the entry.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import digest
from pipeline.buckets import Bucket, open_bucket
from pipeline.errors import IntegrityError, LostRace
from pipeline.stages import BREAK_GLASS

SMALL_BYTES = 16 << 20
"""More than any record, tree or channel entry has; more than that is not read."""

_RECORD_NAME = re.compile(r"[0-9a-f]{64}/[0-9TZ.]+-(?P<sha256>[0-9a-f]{64})")
# What an entry is looked up by.
_FOUND_BY = ("version", "image")
_LOST = (
    "Bring it back from a copy of the store. What the files here make is made again by "
    "`python -m pipeline run --force STAGE --all`; a champion of other files only by running their commit again."
)


@dataclass(frozen=True)
class Entry:
    """A line of a channel's history: which image became live, when, by whom, why, on what evidence.

    `image` is the image's manifest digest; `published`, `model` and `savedmodel` are tree digests of outputs;
    `evidence` is the digest of the record that let it in; `left` is the image that was live before, or the candidate
    that a rollback took away; `highest` the highest version that the channel ever had, such candidates included;
    `previous` the sha256 of the entry before, so that none can be taken out or changed without breaking the chain;
    `broken` the number of the newest entry before this one that a break-glass let in (0 for none).
    """

    image: str
    version: int
    model: str
    savedmodel: str
    published: str
    by: str
    at: str
    why: str
    evidence: str
    left: str = ""
    highest: int = 0
    previous: str = ""
    broken: int = 0

    def document(self) -> bytes:
        """The entry as it is kept: canonical JSON."""
        return digest.canonical(dataclasses.asdict(self))

    def claims(self, channel: str) -> dict:
        """What the record that lets it into a channel signs: all but the record itself and the moment after it."""
        said = {"channel": channel, **dataclasses.asdict(self)}
        del said["at"], said["evidence"]
        return said

    @classmethod
    def parse(cls, document: bytes) -> Entry:
        """An entry from its document. Raises ValueError for anything else."""
        try:
            entry = cls(**json.loads(document))
        except (TypeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        wrong = [f.name for f in dataclasses.fields(cls) if type(getattr(entry, f.name)).__name__ != f.type]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: of another type than an entry has")
        return entry


@dataclass(frozen=True)
class Channel:
    """A channel as read: how many entries it has, the live one, and that one's sha256."""

    name: str
    revision: int = 0
    live: Entry | None = None
    head: str = ""
    _store: Store | None = field(default=None, compare=False, repr=False)

    def following(self, entry: Entry) -> Entry:
        """An entry with what follows from the channel as it is: `highest`, `previous`, `broken`."""
        live, broken = self.live, 0
        if live:
            broken = self.revision if live.why == BREAK_GLASS.name else live.broken
        highest = max(entry.version, entry.highest, live.highest if live else 0)
        return dataclasses.replace(entry, highest=highest, previous=self.head, broken=broken)

    def newest_first(self) -> Iterator[Entry]:
        """All entries, read as they are asked for. Raises IntegrityError where the chain is broken."""
        entry = self.live
        for revision in range(self.revision - 1, -1, -1):
            if entry is None:
                raise RuntimeError(f"{self.name} has {self.revision} entries, and none is live")
            yield entry
            if revision:
                before, sha256 = self._read(revision)
                if sha256 != entry.previous:
                    raise IntegrityError(
                        f"{self.name}: entry {revision} is not the one that entry {revision + 1} followed: the history "
                        "was changed"
                    )
                entry = before

    def live_at(self, moment: str) -> Entry | None:
        """The entry that was live at a moment (UTC, ISO 8601 as `Entry.at`); None before the first."""
        low, high = 0, self.revision
        while low < high:
            middle = (low + high + 1) // 2
            if self._read(middle)[0].at <= moment:
                low = middle
            else:
                high = middle - 1
        return self._read(low)[0] if low else None

    def break_glasses(self) -> Iterator[Entry]:
        """The entries that a break-glass let in, newest first: each entry names the one before, so no other is read."""
        entry, revision = self.live, self.revision
        if entry and entry.why == BREAK_GLASS.name:
            yield entry
        while entry and 0 < entry.broken < revision:
            revision = entry.broken
            entry, _ = self._read(revision)
            yield entry

    def of_version(self, version: int) -> Entry | None:
        """The newest entry of a version."""
        if self.live is None or version > self.live.highest:
            return None
        return self._store.entry_of(self, "version", version) if self._store else None

    def of_image(self, image: str) -> Entry | None:
        """The newest entry of an image."""
        return self._store.entry_of(self, "image", image) if self._store else None

    def _read(self, revision: int) -> tuple[Entry, str]:
        if self._store is None:
            raise RuntimeError(f"{self.name} was not read from a store")
        return self._store.entry(self.name, revision)


def open_store(address: str, root: Path) -> Store:
    """The store that `settings.store` names; a relative path is relative to the repository."""
    return Store(open_bucket(address, root))


class Store:
    """What lasts. Any number of processes, on any number of machines, may use it at once."""

    def __init__(self, bucket: Bucket):
        self.bucket = bucket

    # --- blobs ---

    def has(self, sha256: str, size: int) -> bool:
        """Whether a blob is there, whole as far as its size tells (its content is verified when it is read)."""
        return self.bucket.size(blob(sha256)) == size

    def put(self, path: Path, sha256: str) -> None:
        """Keeps a copy of a file. Raises IntegrityError if its content is not `sha256`."""
        if not self.has(sha256, path.stat().st_size):
            self.bucket.upload(blob(sha256), path, sha256)

    def put_bytes(self, data: bytes) -> str:
        """Keeps some bytes; returns their sha256."""
        name = digest.of_bytes(data)
        if not self.has(name, len(data)):
            self.bucket.write(blob(name), data)
        return name

    def fetch(self, sha256: str, to: Path) -> None:
        """Copies a blob out. Raises IntegrityError, naming it, if it is missing or not what its name says."""
        if not self.bucket.download(blob(sha256), to, sha256):
            raise self._lost(sha256)

    def fetch_bytes(self, sha256: str) -> bytes:
        """A small blob's bytes, verified."""
        data = self.bucket.read(blob(sha256), SMALL_BYTES)
        if data is None:
            raise self._lost(sha256)
        if digest.of_bytes(data) != sha256:
            place = self.bucket.where(blob(sha256))
            raise IntegrityError(f"blob {sha256} of the store is damaged; delete {place} and run again")
        return data

    def _lost(self, sha256: str) -> IntegrityError:
        return IntegrityError(
            f"blob {sha256} is not in the store: {self.bucket.where(blob(sha256))} is missing. {_LOST}"
        )

    # --- records ---

    def add_record(self, stage: str, key: str, name: str, envelope: bytes) -> str:
        """Keeps a record; returns its sha256. `name` is its time, and sorts by it."""
        sha256 = self.put_bytes(envelope)
        self.bucket.write(f"records/{stage}/{key}/{name}-{sha256}", b"")
        self.bucket.write(f"records/{stage}/newest", f"{key}/{name}-{sha256}".encode())
        return sha256

    def records(self, stage: str, key: str) -> Iterator[str]:
        """The sha256 of each record of a stage for a key, newest first."""
        folder = f"records/{stage}/"
        for item in reversed(list(self.bucket.items(f"{folder}{key}/"))):
            named = _RECORD_NAME.fullmatch(item.path.removeprefix(folder))
            if named:
                yield named["sha256"]

    def newest_record(self, stage: str) -> str | None:
        """The sha256 of the newest record of a stage, whatever its key; None if there is none."""
        said = self.bucket.read(f"records/{stage}/newest", 1024)
        named = _RECORD_NAME.fullmatch(said.decode(errors="replace")) if said else None
        return named["sha256"] if named else None

    # --- channels ---

    def channel(self, name: str) -> Channel:
        """A channel as it is now; an empty one if nothing ever went live."""
        revision = self._hint(f"channels/{name}.json")
        found = self._entry(name, revision) if revision else None
        if revision and found is None:
            raise IntegrityError(
                f"channel {name}: entry {revision}, which {self.bucket.where(f'channels/{name}.json')} names, is gone"
            )
        while (newer := self._entry(name, revision + 1)) is not None:
            revision, found = revision + 1, newer
        if found and revision > 1 and self.entry(name, revision - 1)[1] != found[0].previous:
            raise IntegrityError(
                f"channel {name}: entry {revision} ({self.bucket.where(_entry_path(name, revision))}) does not follow "
                f"entry {revision - 1}: no promotion wrote it so, or the one before was changed. Look at "
                "both; the signed record that each names as its evidence tells which is right."
            )
        return Channel(name, revision, *found, self) if found else Channel(name, _store=self)

    def append(self, seen: Channel, entry: Entry) -> Channel:
        """Makes `entry` the live one, if the channel is still as it was `seen`; raises LostRace otherwise."""
        revision = seen.revision + 1
        at = max(entry.at, seen.live.at) if seen.live else entry.at  # clocks differ a little between machines
        entry = dataclasses.replace(seen.following(entry), at=at)
        data = entry.document()
        if not self.bucket.create(_entry_path(seen.name, revision), data):
            now = self.channel(seen.name)
            who = (
                f"{now.live.by} made v{now.live.version} live at {now.live.at}"
                if now.live
                else "by whom is not known"
            )
            raise LostRace(
                f"{seen.name} was changed meanwhile: {who}. Look at `make status`, then run again."
            )
        hint = json.dumps({"revision": revision}).encode()
        self.bucket.write(f"channels/{seen.name}.json", hint)
        for what in _FOUND_BY:
            self.bucket.write(_hint_path(seen.name, what, getattr(entry, what)), hint)
        return Channel(seen.name, revision, entry, digest.of_bytes(data), self)

    def begin(self, channel: Channel, entry: Entry) -> None:
        """Notes that `entry` is about to follow in a channel: who is killed before it does leaves the note."""
        self.bucket.write(_begun_path(channel), channel.following(entry).document())

    def end(self, channel: Channel) -> None:
        """Forgets what was begun: it came to an end, and the channel stays as it is."""
        self.bucket.delete(_begun_path(channel))

    def begun(self, channel: Channel) -> Entry | None:
        """What was begun on a channel as it is now, and has not entered it. Nobody signs it: it lets nothing in."""
        data = self.bucket.read(_begun_path(channel), SMALL_BYTES)
        try:
            entry = Entry.parse(data) if data else None
        except ValueError:
            return None
        return entry if entry and entry.previous == channel.head else None

    def entry(self, name: str, revision: int) -> tuple[Entry, str]:
        """An entry of a channel, and its sha256. Raises IntegrityError where it is gone or not readable."""
        found = self._entry(name, revision)
        if found is None:
            raise IntegrityError(
                f"channel {name}: entry {revision} ({self.bucket.where(_entry_path(name, revision))}) is gone"
            )
        return found

    def entry_of(self, channel: Channel, what: str, value: int | str) -> Entry | None:
        """The newest entry whose member `what` (version, image) has a value: where the hint says, or wherever it is."""
        if channel.live and getattr(channel.live, what) == value:
            return channel.live
        revision = self._hint(_hint_path(channel.name, what, value))
        if revision and (found := self._entry(channel.name, revision)) and getattr(found[0], what) == value:
            return found[0]
        return next((entry for entry in channel.newest_first() if getattr(entry, what) == value), None)

    def _entry(self, name: str, revision: int) -> tuple[Entry, str] | None:
        path = _entry_path(name, revision)
        data = self.bucket.read(path, SMALL_BYTES)
        if data is None:
            return None
        try:
            return Entry.parse(data), digest.of_bytes(data)
        except ValueError as error:
            raise IntegrityError(
                f"channel {name}: {self.bucket.where(path)} is not readable: {error}"
            ) from error

    def _hint(self, path: str) -> int:
        """A revision that a hint names; 0 where it says nothing: hints cost time when they are wrong, never truth."""
        said = self.bucket.read(path, 1024)
        try:
            return max(0, int(json.loads(said)["revision"])) if said else 0
        except (ValueError, TypeError, KeyError):
            return 0


def blob(sha256: str) -> str:
    """The path of a blob. Raises IntegrityError for what is no sha256."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise IntegrityError(f"{sha256!r} is not a sha256")
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def _entry_path(name: str, revision: int) -> str:
    return f"channels/{name}/{revision:010d}.json"


def _begun_path(channel: Channel) -> str:
    return f"begun/{channel.name}.json"


def _hint_path(name: str, what: str, value: int | str) -> str:
    return f"channels/{name}/{what}/{str(value).removeprefix('sha256:')}"
