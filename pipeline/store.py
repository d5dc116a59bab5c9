"""Blobs, records and channels, on disk.

    blobs/sha256/ab/abcd…      content-addressed, read-only
    records/STAGE/KEY/NAME     signed envelopes; NAME sorts by time
    records/STAGE/newest       the path of the stage's newest record
    channels/NAME.json         a channel with its whole history, replaced by rename under a lock

Nothing is visible before it is whole: everything is written beside its place, synced, and renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import digest
from pipeline.errors import IntegrityError, LostRace, ProgramFailed, SettingsError

_LOST = (
    "Bring it back from a copy of the store. What the files here make is made again by "
    "`python -m pipeline run --force STAGE --all`; a champion of other files only by running their commit again."
)


@dataclass(frozen=True)
class Entry:
    """A line of a channel's history: which image became live, when, by whom, why, on what evidence.

    `image` is the image's manifest digest; `published`, `model` and `savedmodel` are tree digests of outputs;
    `evidence` is the digest of the record that let it in; `left` is the image that was live before.
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


@dataclass(frozen=True)
class Channel:
    """A channel as read: its history, oldest first. Its revision is the history's length."""

    name: str
    history: tuple[Entry, ...] = ()

    @property
    def live(self) -> Entry | None:
        return self.history[-1] if self.history else None


def open_store(address: str, root: Path) -> FileStore:
    """The store that `settings.store` names; a relative path is relative to the repository."""
    kind, _, place = address.partition(":")
    if kind != "file":
        raise SettingsError(f"store {address!r}: only file:PATH is a store")
    return FileStore(root / place)


class FileStore:
    """A store in a folder. Any number of processes may use it at once."""

    def __init__(self, root: Path):
        self.root = root

    def has(self, sha256: str, size: int) -> bool:
        """Whether a blob is there, whole as far as its size tells (its content is verified when it is read)."""
        try:
            return self._blob(sha256).stat().st_size == size
        except OSError:
            return False

    def put(self, path: Path, sha256: str) -> None:
        """Keeps a copy of a file. Raises IntegrityError if its content is not `sha256`."""
        if self.has(sha256, path.stat().st_size):
            return
        with self._arriving(self._blob(sha256)) as partial:
            _copy(path, partial, sha256, str(path))
            partial.chmod(0o444)

    def put_bytes(self, data: bytes) -> str:
        """Keeps some bytes; returns their sha256."""
        name = digest.of_bytes(data)
        if not self.has(name, len(data)):
            with self._arriving(self._blob(name)) as partial:
                _write(partial, data)
        return name

    def fetch(self, sha256: str, to: Path) -> None:
        """Copies a blob out. Raises IntegrityError, naming it, if it is missing or not what its name says."""
        _copy(self._blob(sha256), to, sha256, f"blob {sha256} of the store")

    def fetch_bytes(self, sha256: str) -> bytes:
        """A small blob's bytes, verified."""
        try:
            data = self._blob(sha256).read_bytes()
        except FileNotFoundError:
            raise IntegrityError(f"blob {sha256} is not in the store {self.root}. {_LOST}") from None
        if digest.of_bytes(data) != sha256:
            raise IntegrityError(
                f"blob {sha256} of the store is damaged; delete {self._blob(sha256)} and run again"
            )
        return data

    def add_record(self, stage: str, key: str, name: str, envelope: bytes) -> str:
        """Keeps a record; returns its sha256. `name` must sort by time."""
        sha256 = self.put_bytes(envelope)
        folder = self.root / "records" / stage / key
        with self._arriving(folder / f"{name}-{sha256[:12]}.json") as partial:
            _write(partial, envelope)
        with self._arriving(self.root / "records" / stage / "newest") as partial:
            _write(partial, f"{key}/{name}-{sha256[:12]}.json".encode())
        return sha256

    def records(self, stage: str, key: str) -> list[bytes]:
        """The records of a stage for a key, oldest first."""
        folder = self.root / "records" / stage / key
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".json"))
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise SettingsError(
                f"store: {folder} cannot be a folder, because a part of it is a file"
            ) from None
        return [(folder / name).read_bytes() for name in names]

    def newest_record(self, stage: str) -> bytes | None:
        """The newest record of a stage, whatever its key; None if there is none."""
        folder = self.root / "records" / stage
        try:
            return (folder / (folder / "newest").read_text()).read_bytes()
        except FileNotFoundError:
            return None

    def channel(self, name: str) -> Channel:
        """A channel with its history; an empty one if nothing ever went live."""
        path = self.root / "channels" / f"{name}.json"
        try:
            rows = json.loads(path.read_bytes())["history"]
            return Channel(name, tuple(Entry(**row) for row in rows))
        except FileNotFoundError:
            return Channel(name)
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"channel {name} ({path}) is not readable: {error}") from error

    def append(self, seen: Channel, entry: Entry) -> Channel:
        """Makes `entry` the live one, if the channel is still as it was `seen`; raises LostRace otherwise."""
        path = self.root / "channels" / f"{seen.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            now = self.channel(seen.name)
            if now != seen:
                raise LostRace(
                    f"{seen.name} was changed meanwhile: {now.live.by} made v{now.live.version} live at {now.live.at}. "
                    "Look at `make status`, then run again."
                )
            changed = Channel(seen.name, (*seen.history, entry))
            document = {"channel": seen.name, "history": [dataclasses.asdict(row) for row in changed.history]}
            with self._arriving(path) as partial:
                _write(partial, json.dumps(document, indent=1).encode())
        return changed

    def _blob(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise IntegrityError(f"{sha256!r} is not a sha256")
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    @contextlib.contextmanager
    def _arriving(self, place: Path) -> Iterator[Path]:
        """A path beside `place`, which takes its place, synced, if the block succeeds."""
        with disk_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f".{place.name}.{os.getpid()}")
            try:
                yield partial
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], Exception] | None = None) -> Iterator[None]:
    """Holds a lock file. Waits for it; or, given `busy`, raises `busy(what the holder wrote)` at once."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            handle.seek(0)
            raise busy(handle.read().strip()) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield


@contextlib.contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turns a full or read-only disk into an error that a person can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG):
            raise ProgramFailed(
                f"{place} could not be written: {error.strerror}. Nothing half-written was kept; "
                "make room or mend the permissions, then run again."
            ) from error
        raise


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _copy(source: Path, to: Path, sha256: str, what: str) -> None:
    """Copies a file while hashing it; removes the copy and raises IntegrityError if the hash is another."""
    hasher = hashlib.sha256()
    try:
        with source.open("rb") as reader, to.open("wb") as writer:
            while piece := reader.read(digest.CHUNK_BYTES):
                hasher.update(piece)
                writer.write(piece)
            writer.flush()
            os.fsync(writer.fileno())
    except FileNotFoundError:
        raise IntegrityError(f"{what} is missing. {_LOST}") from None
    if hasher.hexdigest() != sha256:
        to.unlink()
        raise IntegrityError(f"{what} has sha256 {hasher.hexdigest()}, not {sha256}; it is not used")
